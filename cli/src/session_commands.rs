//! `shell`, `exec` and `ssh-proxy`: one session, connected to the standard streams of this process.

use std::io::Write as _;

use ssm_forward::{Session, TerminalSize};
use tokio::time::Instant;

use crate::args::{ExecArgs, NodeArgs, SshProxyArgs, Verbosity};
use crate::connect::{Connection, Wanted};
use crate::exact_output::{self, Verdict};
use crate::exec_input::Input;
use crate::exit_code::{ExitCode, Failure};
use crate::session_outputs::SessionOutputs;
use crate::shutdown::Shutdown;
use crate::silence::{self, Silence};
use crate::terminal_session::{self, Ended};
use crate::{stdio, terminal};

/// Opens a shell on the node.
///
/// # Errors
/// Returns an error if the session cannot be started or is lost, or if standard output cannot be written.
pub(crate) async fn shell(args: &NodeArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let (target, quiet) = (args.target.as_deref(), verbosity.quiet);
    let wanted =
        Wanted { target, document: None, parameters: Vec::new(), offered: Vec::new(), quiet, waits_quietly: quiet };
    let shutdown = Shutdown::on_signals_but_keys().map_err(Failure::internal)?;
    if terminal::has_keyboard() {
        shutdown.watch_parent();
    }
    let connection = Connection::open(wanted, &args.aws, &args.session, &shutdown).await?;
    let mut outputs = SessionOutputs::plain()?;
    let ended = terminal_session::run(&connection.session, &shutdown, &mut outputs).await;
    terminal::restore();
    connection.close().await;
    match ended? {
        Ended::Closed(text) => closing_error(&text).map_or(Ok(ExitCode::Ok), Err),
        Ended::Escaped => Ok(ExitCode::Ok),
        Ended::Stopped(cause) => Ok(cause.exit_code()),
    }
}

/// Runs a command on the node and returns its exit code.
///
/// # Errors
/// Returns an error if the session cannot be started or is lost, or if the command's output cannot be written or is incomplete.
pub(crate) async fn exec(args: &ExecArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    match (args.tty, args.stdin) {
        // As with `-it` of docker and kubectl, a terminal always has an input.
        (true, _) => exec_on_terminal(args, verbosity).await,
        (false, true) => exec_with_input(args, verbosity).await,
        (false, false) => exec_without_input(args, verbosity).await,
    }
}

/// Runs a command without input. Its standard output and standard error are separate.
async fn exec_without_input(args: &ExecArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let shutdown = Shutdown::on_signals_but_keys().map_err(Failure::internal)?;
    let mut outputs = SessionOutputs::plain()?;
    let words = words_of(&args.command);
    let exact = outputs.not_terminals();
    // The script that is added here may not work with another document or with a parameter `command` of the user.
    let is_ours =
        args.session.document_name.is_none() && !args.session.parameters.iter().any(|(key, _)| key == "command");
    if !exact.is_empty() && is_ours {
        let mark = exact_output::mark();
        outputs.expect_escaped(&mark, &exact);
        let wrapped = command_line(&exact_output::wrap(&mark, &exact, &words))?;
        let outcome = run_command(args, verbosity, &shutdown, &mut outputs, wrapped).await?;
        let verdicts: Vec<_> = outputs.verdicts().collect();
        match (outcome, verdict(&verdicts)) {
            // Without `sh` on the node, a program can still be run directly.
            (Outcome::Ended(_), Verdict::NotBegun(_)) if args.command.len() > 1 => {
                warn("the node has no sh: bytes that are not text may be lost", verbosity);
                outputs.expect_escaped(&mark, &[]);
            }
            (outcome, verdict) => return judge(outcome, verdict, verbosity),
        }
    }
    let outcome = run_command(args, verbosity, &shutdown, &mut outputs, command_line(&words)?).await?;
    judge(outcome, Verdict::Complete, verbosity)
}

/// How a command without a terminal ended.
enum Outcome {
    /// The command ended with this exit code.
    Ended(i64),
    /// This process was stopped before the command ended, and must end with this exit code.
    Stopped(ExitCode),
}

/// Runs a command line without a terminal and writes its outputs.
async fn run_command(
    args: &ExecArgs,
    verbosity: Verbosity,
    shutdown: &Shutdown,
    outputs: &mut SessionOutputs,
    line: String,
) -> Result<Outcome, Failure> {
    let wanted = Wanted {
        target: args.target.as_deref(),
        document: Some("AWS-StartNonInteractiveCommand"),
        parameters: vec![("command", line)],
        offered: vec![("separateOutputStream", "true".to_owned())],
        quiet: verbosity.quiet,
        waits_quietly: verbosity.quiet,
    };
    let connection = Connection::open(wanted, &args.aws, &args.session, shutdown).await?;
    let ended = tokio::select! {
        ended = terminal_session::run(&connection.session, shutdown, outputs) => ended,
        () = warn_if_output_stops(&connection.session, verbosity) => unreachable!("the watch never ends"),
    };
    let (code, version) = (connection.session.exit_code(), connection.session.agent_version());
    connection.close().await;
    match (ended?, code) {
        (_, Some(code)) => Ok(Outcome::Ended(code)),
        (Ended::Stopped(cause), None) => Ok(Outcome::Stopped(cause.exit_code())),
        (Ended::Escaped, None) => Ok(Outcome::Stopped(ExitCode::Interrupted)),
        (Ended::Closed(text), None) => Err(closing_error(&text).unwrap_or_else(|| {
            let text = format!("the agent (version {version:?}) did not report how the command ended");
            Failure::new(ExitCode::SessionLost, "no_exit_code", text)
        })),
    }
}

/// Warns if the agent has stopped reading the output of an active command (AGENT-9). Never completes, because the command may also be
/// silent for another reason.
async fn warn_if_output_stops(session: &Session, verbosity: Verbosity) {
    let mut silence = Silence::new(Instant::now());
    loop {
        silence.detected(session).await;
        // An inactive command may be silent. A later reconnect can still stop its output.
        if silence.was_active() {
            break;
        }
    }
    let seconds = silence::LIMIT.as_secs();
    let text = format!(
        "no output for {seconds} s since the session was reconnected; if the command printed something while the session was \
         disconnected, the agent no longer reads its output, and the command is blocked: press Ctrl-C to end it"
    );
    warn(&text, verbosity);
    std::future::pending().await
}

/// Returns the worst of the verdicts.
fn verdict(verdicts: &[Verdict]) -> Verdict {
    let worst = verdicts.iter().max_by_key(|verdict| match verdict {
        Verdict::Complete => 0,
        Verdict::Plain => 1,
        Verdict::NotBegun(_) => 2,
        Verdict::Broken => 3,
    });
    worst.cloned().unwrap_or(Verdict::Complete)
}

/// Returns the command's exit code. If the output is incomplete and the exit code is 0, returns an error instead.
fn judge(outcome: Outcome, verdict: Verdict, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let code = match outcome {
        Outcome::Ended(code) => code,
        Outcome::Stopped(code) => return Ok(code),
    };
    let missing = match verdict {
        Verdict::Complete => return Ok(ExitCode::Remote(code)),
        Verdict::Plain => {
            let text = "the node lacks sed, dd, mkfifo, mktemp or a place for temporary files: bytes that are not text may be lost";
            warn(text, verbosity);
            return Ok(ExitCode::Remote(code));
        }
        Verdict::NotBegun(noise) if noise.is_empty() => "the command did not start".to_owned(),
        Verdict::NotBegun(noise) => format!("the command did not start; the node said: {noise}"),
        Verdict::Broken => "bytes of the command's output are missing".to_owned(),
    };
    match code {
        0 => Err(Failure::new(ExitCode::SessionLost, "incomplete", missing)),
        code => {
            warn(&missing, verbosity);
            Ok(ExitCode::Remote(code))
        }
    }
}

/// Prints a warning, unless `--quiet` is set.
fn warn(text: &str, verbosity: Verbosity) {
    if !verbosity.quiet {
        let _ = writeln!(terminal::Stderr, "warning: {text}");
    }
}

/// Runs a command on a terminal of the node.
async fn exec_on_terminal(args: &ExecArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let command = match args.command.as_slice() {
        [line] => vec![with_early_output(line, terminal::size())],
        words => words.to_vec(),
    };
    let wanted = Wanted {
        target: args.target.as_deref(),
        document: Some("AWS-StartInteractiveCommand"),
        parameters: vec![("command", command_line(&words_of(&command))?)],
        offered: Vec::new(),
        quiet: verbosity.quiet,
        waits_quietly: verbosity.quiet,
    };
    let shutdown = Shutdown::on_signals_but_keys().map_err(Failure::internal)?;
    let connection = Connection::open(wanted, &args.aws, &args.session, &shutdown).await?;
    let mut outputs = SessionOutputs::plain()?;
    let ended = terminal_session::run(&connection.session, &shutdown, &mut outputs).await;
    terminal::restore();
    let code = connection.session.exit_code();
    connection.close().await;
    match (ended?, code) {
        (_, Some(code)) => Ok(ExitCode::Remote(code)),
        (Ended::Stopped(cause), None) => Ok(cause.exit_code()),
        (Ended::Escaped, None) => Ok(ExitCode::Interrupted),
        // Agents do not report the exit code of a command on a terminal.
        (Ended::Closed(text), None) => closing_error(&text).map_or(Ok(ExitCode::Ok), Err),
    }
}

/// Runs a command with standard input.
async fn exec_with_input(args: &ExecArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let input = Input::read()?;
    let line = command_line(&words_of(&args.command))?;
    let wanted = Wanted {
        target: args.target.as_deref(),
        document: Some("AWS-StartInteractiveCommand"),
        parameters: vec![("command", command_line(&words_of(&[input.script(&line)]))?)],
        offered: Vec::new(),
        quiet: verbosity.quiet,
        waits_quietly: verbosity.quiet,
    };
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let connection = Connection::open(wanted, &args.aws, &args.session, &shutdown).await?;
    let outcome = input.run(&connection.session, &shutdown).await;
    connection.close().await;
    outcome
}

/// Connects the standard streams of this process to the node's SSH server.
///
/// # Errors
/// Returns an error if the session cannot be started or is lost, if the SSH server refuses the connection, or if standard output
/// cannot be written.
pub(crate) async fn ssh_proxy(args: &SshProxyArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let wanted = Wanted {
        target: args.target.as_deref(),
        document: Some("AWS-StartSSHSession"),
        parameters: Vec::new(),
        offered: vec![("portNumber", args.port.to_string())],
        // ssh prints its own messages for the user.
        quiet: true,
        waits_quietly: verbosity.quiet,
    };
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let connection = Connection::open(wanted, &args.aws, &args.session, &shutdown).await?;
    let outcome = stdio::run(&connection.session, &shutdown, verbosity.quiet).await;
    connection.close().await;
    outcome.map(|()| ExitCode::Ok)
}

/// Returns an error with the agent's closing text, if this text is not empty.
fn closing_error(text: &str) -> Option<Failure> {
    let text = text.trim();
    (!text.is_empty()).then(|| Failure::new(ExitCode::SessionLost, "session_ended", text))
}

/// Returns a line for the shell of a terminal that prints a character before it runs `line`. Without encryption, such a session
/// has no handshake, and only the first output shows that it is ready. Until then, the session gets neither input nor the
/// terminal's size; therefore the line also sets the size.
fn with_early_output(line: &str, size: TerminalSize) -> String {
    format!("stty rows {} cols {} 2>/dev/null; printf '\\r'; {line}", size.rows, size.cols)
}

/// Returns the words of the command. A single argument is a line for a shell. Several arguments are the words of the command and
/// are passed unchanged. A shell must be named explicitly, because agents start commands without one: they only split the line
/// into words.
pub(crate) fn words_of(command: &[String]) -> Vec<String> {
    let shell = ["sh", "-c"].into_iter().filter(|_| command.len() == 1);
    shell.map(str::to_owned).chain(command.iter().cloned()).collect()
}

/// Joins the words to a line that agents split into the same words.
///
/// # Errors
/// Returns an error if a word contains a NUL character.
pub(crate) fn command_line(words: &[String]) -> Result<String, Failure> {
    shlex::try_join(words.iter().map(String::as_str))
        .map_err(|error| Failure::new(ExitCode::Usage, "usage", format!("the command can't be quoted: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_exactly_the_words_that_were_given() {
        let line = |words: &[&str]| {
            command_line(&words_of(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())).unwrap()
        };
        assert_eq!(line(&["ls -l | wc -l"]), "sh -c 'ls -l | wc -l'");
        assert_eq!(line(&["ls", "-l", "a b", "it's"]), r#"ls -l 'a b' "it's""#);
    }
}
