//! Copies the relay to the node and starts it, in one command session.
//!
//! A script on the node finds a folder in which programs can be executed, and reports whether the program exists there. If not, the
//! script reads the compressed program from its input. Only a copy with the right digest gets the final name. The secret is sent as
//! input, too.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ssm_proto::relay::RelaySecret;
use tokio::time::timeout;

use super::{RelayConfig, RelayProgram};
use crate::text::one_line;
use crate::{
    ForwardError, Session, SessionConfig, SessionProvider, SessionStream, StartRequest, StreamSender, await_target,
};

/// Timeout for the exchange with the script, once its session is ready. Copying takes a second or two.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(90);
/// The document of the session that starts the relay. It must be one with input, because the secret is sent as input.
pub(crate) const DOCUMENT: &str = "AWS-StartInteractiveCommand";
/// Maximum length of the node's output, in bytes.
const MAX_TEXT: usize = 64 << 10;
/// Size of the pieces in which the program is sent, in bytes.
const PIECE: usize = 16 << 10;

/// A relay that listens on the node.
#[derive(Debug)]
pub(crate) struct Placed {
    /// The relay's port on the node's loopback interface.
    pub(crate) port: u16,
    /// The relay's process id on the node.
    pub(crate) process: u32,
    pub(crate) secret: RelaySecret,
}

/// Why there is no relay, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotPlaced(pub(crate) String);

/// Places the relay: finds or copies its program, and starts it.
///
/// # Errors
/// Returns why the node has no relay.
pub(crate) async fn place(
    provider: &Arc<dyn SessionProvider>,
    request: &StartRequest,
    session: &SessionConfig,
    config: &RelayConfig,
    wait_connected: Duration,
    waiting: impl Fn(&str),
) -> Result<Placed, NotPlaced> {
    if config.programs.is_empty() {
        return Err(NotPlaced("this build has no relay for any kind of machine".into()));
    }
    let script = script(&mark(), config);
    let started = await_target(&request.target, wait_connected, waiting, || start(provider, request, session, &script));
    let session = started.await.map_err(not_started)?;
    let placing = run_start_script(&session, &script, config);
    let outcome = timeout(SCRIPT_TIMEOUT, placing)
        .await
        .unwrap_or_else(|_| Err(NotPlaced(format!("the node did not start it within {} s", SCRIPT_TIMEOUT.as_secs()))));
    session.terminate().await;
    outcome
}

fn not_started(error: ForwardError) -> NotPlaced {
    NotPlaced(format!("no session with {DOCUMENT} to start it: {error}"))
}

/// Runs a script that needs no input on the node, and returns the lines that it reports.
///
/// # Errors
/// Returns why the script could not be run.
pub(crate) async fn run_script(
    provider: &Arc<dyn SessionProvider>,
    request: &StartRequest,
    session: &SessionConfig,
    text: &str,
) -> Result<Vec<String>, NotPlaced> {
    let mark = mark();
    let script = Script { line: format!("{}{text} say end;", prelude(&mark)), mark };
    let session = start(provider, request, session, &script).await.map_err(not_started)?;
    let asking = async {
        let stream = session.open_stream().await.map_err(|error| NotPlaced(error.to_string()))?;
        let mut node = Node {
            sender: stream.sender(),
            stream,
            output: NodeOutput { mark: script.mark.clone(), text: String::new() },
        };
        let mut reports = Vec::new();
        loop {
            match node.next_report().await? {
                (word, _) if word == "end" => return Ok(reports),
                (_, rest) => reports.push(rest),
            }
        }
    };
    let outcome =
        timeout(SCRIPT_TIMEOUT, asking).await.unwrap_or_else(|_| Err(NotPlaced("the node does not answer".into())));
    session.terminate().await;
    outcome
}

async fn start(
    provider: &Arc<dyn SessionProvider>,
    request: &StartRequest,
    session: &SessionConfig,
    script: &Script,
) -> Result<Session, ForwardError> {
    // Because of `exec`, the script itself is the process that the agent signals and waits for.
    let command = format!("exec sh -c '{}'", script.line);
    let request = StartRequest {
        target: request.target.clone(),
        document: Some(DOCUMENT.into()),
        parameters: [("command".to_owned(), vec![command])].into(),
        reason: request.reason.clone(),
        ..StartRequest::default()
    };
    Session::start(provider.clone(), &request, session.clone(), |_| {}, |_| {}).await
}

struct Script {
    line: String,
    mark: String,
}

fn mark() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// Returns the beginning of each script. It sets the terminal to raw mode and defines two functions. `say` reports a line, which
/// begins with the mark. `mine` checks whether a path is a folder of this user. It examines the entry once and does not follow
/// symbolic links, because in a shared folder other users could exchange an entry of theirs between two checks.
fn prelude(mark: &str) -> String {
    format!(
        r#"stty raw -echo -isig -opost 2>/dev/null; umask 077; u=$(id -u); say() {{ printf "{mark} %s\n" "$*"; }}; mine() {{ set -- $(ls -ldn "$1" 2>/dev/null); case $1:$3 in d*:$u) ;; *) false;; esac; }}; "#
    )
}

/// The folders for the program, in order of preference.
const FOLDERS: &str = r#""${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/aws-ssm-forward" /var/tmp/aws-ssm-forward-$u /tmp/aws-ssm-forward-$u /dev/shm/aws-ssm-forward-$u"#;

/// Returns the script for the node. It contains no single quotes and no newlines.
fn script(mark: &str, config: &RelayConfig) -> Script {
    let mut line = prelude(mark);
    line += r#"no() { say no "$*"; exit; }; [ "$(uname -s)" = Linux ] || no "the node runs $(uname -s), not Linux"; "#;
    line += "case $(uname -m) in ";
    for RelayProgram { machine, sha256, .. } in config.programs {
        line += &format!("{machine}) s={sha256};; ");
    }
    line += r#"*) no "this build has no relay for $(uname -m)";; esac; "#;
    line += r#"for t in stty sha256sum gzip head ls mv chmod; do command -v $t >/dev/null || no "the node lacks $t"; done; "#;
    // If the session ends early, no incomplete file is left. Files of scripts that were killed are removed too. The file $t exists
    // until the end, so that no other script removes the folder as empty. The relay itself removes an ephemeral file.
    let temporary = if config.ephemeral { r#""$t" "$p" "$f""# } else { r#""$t" "$p""# };
    line += &format!(
        r#"t=; p=; f=; w=; clean() {{ rm -f {temporary}; rmdir "$w"; }} 2>/dev/null; trap clean EXIT; trap exit HUP INT TERM; "#
    );
    line += &format!(
        r##"for d in {FOLDERS}; do mkdir -p "$d" 2>/dev/null; mine "$d" && chmod 700 "$d" 2>/dev/null || continue; t="$d/try.$$"; {{ printf "#!/bin/sh\nexit 0\n" >"$t"; }} 2>/dev/null && chmod 700 "$t" && "$t" 2>/dev/null && w=$d && break; rm -f "$t"; rmdir "$d" 2>/dev/null; done; [ "$w" ] || no "user $u has no folder on the node in which a program can be executed (noexec, full or read-only)"; "##
    );
    line += r#"ok() { h=$(sha256sum <"$1") && [ "${h%% *}" = $s ]; }; "#;
    let (name, flags) = match config.ephemeral {
        true => ("ssm-relay-once-$$", " --ephemeral"),
        false => ("ssm-relay-${s%????????????????????????????????????????????????}", ""),
    };
    line += &format!(
        r#"for o in "$w"/try.* "$w"/ssm-relay-*.[0-9]* "$w"/ssm-relay-once-*; do kill -0 ${{o##*[.-]}} 2>/dev/null || rm -f "$o"; done; f="$w/{name}"; "#
    );
    line += r#"if [ -x "$f" ] && [ ! -L "$f" ] && ok "$f" 2>/dev/null; then :; else p="$f.$$"; say need $(uname -m); read -r n; say send; e=$({ head -c $n | gzip -dc >"$p"; } 2>&1); set -- $e; ok "$p" 2>/dev/null || { rm -f "$p"; no "copying it to $w failed: ${*:-the copy is not what was sent}"; }; chmod 700 "$p" && mv -f "$p" "$f" || { rm -f "$p"; no "$f cannot be written"; }; fi; "#;
    line += &format!(r#"say key; e=$("$f" start{flags} 2>&1); set -- $e; clean; say started "$*";"#);
    Script { line, mark: mark.to_owned() }
}

/// The connection to the script on the node.
struct Node {
    stream: SessionStream,
    sender: StreamSender,
    output: NodeOutput,
}

/// The output of the node that has not been processed.
struct NodeOutput {
    mark: String,
    text: String,
}

impl NodeOutput {
    /// Returns the next line that the script reports: a word, and the rest.
    fn next(&mut self) -> Result<Option<(String, String)>, NotPlaced> {
        while let Some((line, rest)) = self.text.split_once('\n') {
            let said = line.split_once(&self.mark).map(|(_, said)| said.trim().to_owned());
            self.text = rest.to_owned();
            if let Some(said) = said {
                let (word, rest) = said.split_once(' ').unwrap_or((&said, ""));
                return Ok(Some((word.to_owned(), rest.to_owned())));
            }
        }
        if self.text.len() > MAX_TEXT {
            return Err(NotPlaced("the output of the node is too long".into()));
        }
        Ok(None)
    }
}

impl Node {
    /// Waits for the next line that the script reports: a word, and the rest.
    async fn next_report(&mut self) -> Result<(String, String), NotPlaced> {
        let mut pieces = Vec::new();
        loop {
            if let Some(said) = self.output.next()? {
                return Ok(said);
            }
            match self.stream.read_outputs(&mut pieces, MAX_TEXT).await {
                Ok(true) => {}
                Ok(false) => return Err(self.ended("the session ended")),
                Err(error) => return Err(self.ended(&error.to_string())),
            }
            for (_, bytes) in pieces.drain(..) {
                self.output.text += &String::from_utf8_lossy(&bytes);
            }
        }
    }

    fn ended(&self, why: &str) -> NotPlaced {
        NotPlaced(match self.output.text.trim() {
            "" => format!("{why} before it was started"),
            said => format!("{why} before it was started; the node said: {}", one_line(said)),
        })
    }

    async fn send(&self, bytes: Bytes) -> Result<(), NotPlaced> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = rest.split_to(PIECE.min(rest.len()));
            self.sender.write_chunk(piece).await.map_err(|error| NotPlaced(error.to_string()))?;
        }
        Ok(())
    }
}

async fn run_start_script(session: &Session, script: &Script, config: &RelayConfig) -> Result<Placed, NotPlaced> {
    let stream = session.open_stream().await.map_err(|error| NotPlaced(error.to_string()))?;
    let mut node =
        Node { sender: stream.sender(), stream, output: NodeOutput { mark: script.mark.clone(), text: String::new() } };
    let mut program = Bytes::new();
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| NotPlaced(error.to_string()))?;
    let secret = RelaySecret::new(key);
    loop {
        let (word, rest) = node.next_report().await?;
        match word.as_str() {
            "need" => {
                let fitting = config.programs.iter().find(|program| program.machine == rest);
                program = Bytes::from_static(fitting.ok_or_else(|| NotPlaced(format!("no relay for {rest}")))?.gzip);
                node.send(format!("{}\n", program.len()).into()).await?;
            }
            "send" => {
                tracing::info!(bytes = program.len(), "the relay is copied to the node");
                node.send(std::mem::take(&mut program)).await?;
            }
            "key" => node.send(format!("{} 0\n", *secret.to_hex()).into()).await?,
            "started" => return started(&rest, secret),
            "no" => return Err(NotPlaced(one_line(&rest))),
            _ => {}
        }
    }
}

/// Parses the line that the relay prints when it has started.
fn started(said: &str, secret: RelaySecret) -> Result<Placed, NotPlaced> {
    let numbers = said.strip_prefix("listening ").and_then(|rest| {
        let (port, process) = rest.split_once(' ')?;
        Some((port.parse().ok()?, process.parse().ok()?))
    });
    numbers.map(|(port, process)| Placed { port, process, secret }).ok_or_else(|| match said {
        "" => NotPlaced("it did not start".into()),
        said => NotPlaced(format!("it did not start: {}", one_line(said))),
    })
}

/// Returns a script that reports each program's file and each running program, one line each.
pub(crate) fn status_script() -> String {
    format!(
        r#"for d in {FOLDERS}; do mine "$d" || continue; for f in "$d"/ssm-relay-*; do [ -f "$f" ] && say file "$f" $(wc -c <"$f"); done; done; {}"#,
        running()
    )
}

/// Returns a script that stops the running programs and removes the files.
pub(crate) fn remove_script() -> String {
    format!(
        r#"{} for p in $r; do kill $p 2>/dev/null; done; for d in {FOLDERS}; do mine "$d" || continue; for f in "$d"/ssm-relay-*; do [ -f "$f" ] && rm -f "$f" && say removed "$f"; done; rmdir "$d" 2>/dev/null; done;"#,
        running()
    )
}

/// Returns a script that lists the running relays that were started from one of the folders, whose files may have been removed.
/// Programs of feeds are not listed, because they end with their relay.
fn running() -> String {
    format!(
        r#"r=; for p in /proc/[0-9]*; do e=$(readlink "$p/exe" 2>/dev/null) || continue; case $e in */aws-ssm-forward*/ssm-relay-*) for d in {FOLDERS}; do q=$(cd "${{d%/*}}" 2>/dev/null && pwd -P) && [ "${{e%/*}}" = "${{q%/}}/${{d##*/}}" ] && case $(tr "\0" " " <"$p/cmdline" 2>/dev/null) in *" feed "*) ;; *) r="$r ${{p#/proc/}}"; say running ${{p#/proc/}} "$e";; esac; done;; esac; done;"#
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_line_of_the_node_has_a_length() {
        let mut output = NodeOutput { mark: "MARK".into(), text: "noise\r\nMARK need x86_64\r\nhalf".into() };
        assert_eq!(output.next().unwrap(), Some(("need".into(), "x86_64".into())));
        assert_eq!(output.next().unwrap(), None);
        output.text += &"x".repeat(MAX_TEXT);
        assert_eq!(output.next().unwrap_err().0, "the output of the node is too long");
    }

    const PROGRAMS: &[RelayProgram] = &[RelayProgram {
        machine: "x86_64",
        sha256: "0000000000000000000000000000000000000000000000000000000000000000",
        gzip: b"",
    }];

    #[test]
    fn scripts_can_stand_between_single_quotes_on_one_line() {
        for ephemeral in [false, true] {
            let Script { line, .. } = script("mark", &RelayConfig { programs: PROGRAMS, ephemeral, feeds: true });
            assert!(!line.contains(['\'', '\n']) && !line.contains("{{"), "{line}");
            assert!(line.len() < 4000, "{}", line.len());
        }
        for line in [status_script(), remove_script()] {
            assert!(!line.contains(['\'', '\n']), "{line}");
        }
    }

    /// Returns the output of a script with this home folder.
    fn reported(home: &Path, script: &str) -> String {
        let line = format!("{}{script}", prelude("mark"));
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", &line]).env("HOME", home).env_remove("XDG_CACHE_HOME").stdin(Stdio::null());
        String::from_utf8(shell.output().unwrap().stdout).unwrap()
    }

    #[test]
    fn only_folders_of_the_user_are_used() {
        let home = tempfile::tempdir().unwrap();
        let (cache, other) = (home.path().join(".cache"), home.path().join("other"));
        let folder = cache.join("aws-ssm-forward");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir(&other).unwrap();
        for folder in [&folder, &other] {
            std::fs::write(folder.join("ssm-relay-1"), "").unwrap();
        }
        let is_reported = || reported(home.path(), &status_script()).contains(&*folder.to_string_lossy());
        assert!(is_reported());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&folder, Some(65534), None).unwrap();
            assert!(!is_reported(), "it belongs to another user");
        }
        std::fs::remove_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(&other, &folder).unwrap();
        assert!(!is_reported(), "it is a symbolic link");
    }

    #[test]
    fn what_the_relay_says_is_its_port_or_why_there_is_none() {
        let secret = || RelaySecret::new([0; 32]);
        let placed = started("listening 4711 99", secret()).unwrap();
        assert_eq!((placed.port, placed.process), (4711, 99));
        assert_eq!(started("", secret()).unwrap_err().to_string(), "it did not start");
        let error = started("ssm-relay: Permission denied (os error 13)", secret()).unwrap_err();
        assert_eq!(error.to_string(), "it did not start: ssm-relay: Permission denied (os error 13)");
    }
}
