//! The relay: the part of a tunnel that runs on the node. Only `aws-ssm-forward` copies, starts and uses it.
//!
//! `start` reads a secret from standard input, starts a second process in the background and prints the port where it listens,
//! on loopback only. The secret never appears in an argument or a variable. `feed` brings data from that process to standard
//! output. The protocol is in `docs/relay.md`.

mod dial;
mod feed;
mod pipe;
mod serve;
mod target;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serve::Options;
use ssm_proto::relay::{RELAY_VERSION, RelaySecret};

const USAGE: &str = "usage: ssm-relay start [--ephemeral] < SECRET-AND-PORT | ssm-relay feed PORT NONCE\n\
                     This program is started by aws-ssm-forward (forward --relay), not by hand.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["start", flags @ ..] if flags.iter().all(|flag| *flag == EPHEMERAL) => start(flags),
        ["serve", flags @ ..] if flags.iter().all(|flag| *flag == EPHEMERAL) => serve(flags.contains(&EPHEMERAL)),
        ["feed", port, nonce] => feed::run(port, nonce),
        ["--version"] => say(&format!("ssm-relay {} (protocol {RELAY_VERSION})", env!("CARGO_PKG_VERSION"))),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ssm-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The program's file is removed as soon as the program runs.
const EPHEMERAL: &str = "--ephemeral";

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn say(line: &str) -> Outcome<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Reads one short line, and nothing after it.
fn read_line(from: impl std::io::Read) -> Outcome<String> {
    const LONGEST: u64 = 256;
    let mut line = String::new();
    BufReader::new(from.take(LONGEST)).read_line(&mut line)?;
    Ok(line)
}

/// Starts the process that serves, passes the secret on to it, and prints its answer.
fn start(flags: &[&str]) -> Outcome<()> {
    let secret = read_line(std::io::stdin())?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .args(flags)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(secret.as_bytes())?;
    }
    let answer = child.stdout.take().map(read_line).transpose()?.unwrap_or_default();
    match answer.trim() {
        "" => Err("it ended at once".into()),
        answer => say(answer),
    }
}

/// Raises the limit of open files to the maximum of this process. Returns how many of them connections may use.
fn descriptors() -> u64 {
    // For pipes, those that prove nothing yet, attempts to connect (64 each), feeds (8), and a few other files.
    const RESERVE: u64 = 256;
    let limits = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits });
    let limit = if raised.is_ok() { limits.maximum } else { limits.current };
    limit.map_or(u64::MAX, |limit| limit.saturating_sub(RESERVE).max(limit / 2))
}

/// Serves until it is not needed any more.
fn serve(ephemeral: bool) -> Outcome<()> {
    // A session of its own, so that this process outlives the one that started it.
    rustix::process::setsid()?;
    if ephemeral && let Ok(program) = std::env::current_exe() {
        let _ = std::fs::remove_file(&program);
        let _ = program.parent().map(std::fs::remove_dir);
    }
    let line = read_line(std::io::stdin())?;
    let (secret, port) = line.trim().split_once(' ').ok_or("a secret and a port are expected")?;
    let secret = RelaySecret::from_hex(secret).ok_or("the secret has another form")?;
    let relay = match serve::Relay::bind(port.parse()?, Options { secret, descriptors: descriptors() }) {
        Ok(relay) => relay,
        Err(error) => return say(&format!("failed {error}")),
    };
    say(&format!("listening {} {}", relay.port()?, std::process::id()))?;
    let nowhere = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nowhere)?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    Ok(relay.run()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        let limits = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(300), ..limits }).unwrap();
        let usable = descriptors();
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: limits.maximum, ..limits });
        assert!(limits.maximum.is_none_or(|most| usable < most && usable >= most / 2), "{usable}");
    }
}
