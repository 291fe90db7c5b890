//! `shell`, `exec` and `ssh-proxy`: one session, and the standard streams of this process in it.

use ssm_forward::TerminalSize;

use crate::args::{ExecArgs, ShellArgs, SshProxyArgs, Verbosity};
use crate::connect::{Connection, Wanted};
use crate::exec_input::Input;
use crate::exit_code::{ExitCode, Failure};
use crate::shutdown::Shutdown;
use crate::terminal_session::{self, Ended};
use crate::{stdio, terminal};

/// A shell on the node.
///
/// # Errors
/// In one line, what went wrong and what to do.
pub(crate) async fn shell(args: &ShellArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let (target, quiet) = (args.target.as_deref(), verbosity.quiet);
    let wanted =
        Wanted { target, document: None, parameters: Vec::new(), offered: Vec::new(), quiet, waits_quietly: quiet };
    let shutdown = Shutdown::on_signals_but_keys().map_err(Failure::internal)?;
    if terminal::has_keyboard() {
        shutdown.watch_parent();
    }
    let connection = Connection::open(wanted, &args.aws, &args.session, &shutdown).await?;
    let ended = terminal_session::run(&connection.session, &shutdown).await;
    terminal::restore();
    connection.close().await;
    match ended? {
        Ended::Closed(text) => told(&text).map_or(Ok(ExitCode::Ok), Err),
        Ended::Escaped => Ok(ExitCode::Ok),
        Ended::Stopped(cause) => Ok(cause.exit_code()),
    }
}

/// A command on the node, with its exit code.
///
/// # Errors
/// In one line, what went wrong and what to do.
pub(crate) async fn exec(args: &ExecArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    if args.stdin {
        return exec_with_input(args, verbosity).await;
    }
    let command = match (args.tty, args.command.as_slice()) {
        (true, [line]) => command_line(&[speaking_first(line, terminal::size())])?,
        (_, words) => command_line(words)?,
    };
    let (document, offered) = match args.tty {
        true => ("AWS-StartInteractiveCommand", Vec::new()),
        false => ("AWS-StartNonInteractiveCommand", vec![("separateOutputStream", "true".to_owned())]),
    };
    let (target, quiet) = (args.target.as_deref(), verbosity.quiet);
    let wanted = Wanted {
        target,
        document: Some(document),
        parameters: vec![("command", command)],
        offered,
        quiet,
        waits_quietly: quiet,
    };
    let shutdown = Shutdown::on_signals_but_keys().map_err(Failure::internal)?;
    let connection = Connection::open(wanted, &args.aws, &args.session, &shutdown).await?;
    let ended = terminal_session::run(&connection.session, &shutdown).await;
    terminal::restore();
    let (code, version) = (connection.session.exit_code(), connection.session.agent_version());
    connection.close().await;
    match (ended?, code) {
        (_, Some(code)) => Ok(ExitCode::Remote(code)),
        (Ended::Stopped(cause), None) => Ok(cause.exit_code()),
        (Ended::Escaped, None) => Ok(ExitCode::Interrupted),
        (Ended::Closed(text), None) => match told(&text) {
            Some(failure) => Err(failure),
            // On a terminal no agent tells how a command ended.
            None if args.tty => Ok(ExitCode::Ok),
            None => {
                let text = format!("the agent (version {version:?}) did not tell how the command ended");
                Err(Failure::new(ExitCode::SessionLost, "no_exit_code", text))
            }
        },
    }
}

/// A command that gets standard input.
async fn exec_with_input(args: &ExecArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let input = Input::read()?;
    let line = match args.command.as_slice() {
        [line] => line.clone(),
        words => command_line(words)?,
    };
    let wanted = Wanted {
        target: args.target.as_deref(),
        document: Some("AWS-StartInteractiveCommand"),
        parameters: vec![("command", command_line(&[input.script(&line)])?)],
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

/// A connection to the node's SSH server on the standard streams.
///
/// # Errors
/// In one line, what went wrong and what to do.
pub(crate) async fn ssh_proxy(args: &SshProxyArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let wanted = Wanted {
        target: args.target.as_deref(),
        document: Some("AWS-StartSSHSession"),
        parameters: Vec::new(),
        offered: vec![("portNumber", args.port.to_string())],
        // ssh has lines of its own for the person.
        quiet: true,
        waits_quietly: verbosity.quiet,
    };
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let connection = Connection::open(wanted, &args.aws, &args.session, &shutdown).await?;
    let outcome = stdio::run(&connection.session, &shutdown, verbosity.quiet).await;
    connection.close().await;
    outcome.map(|()| ExitCode::Ok)
}

/// What the agent had to say about the end, if that is a complaint.
fn told(text: &str) -> Option<Failure> {
    let text = text.trim();
    (!text.is_empty()).then(|| Failure::new(ExitCode::SessionLost, "session_ended", text))
}

/// Lets a line for a terminal's shell say something before all else. Without encryption such a session has no handshake: only
/// the first output tells that it is up, and until then neither a key nor the terminal's size gets there.
fn speaking_first(line: &str, size: TerminalSize) -> String {
    format!("stty rows {} cols {} 2>/dev/null; printf '\\r'; {line}", size.rows, size.cols)
}

/// One argument is a line for a shell, several are the words of a command, which gets exactly these. Agents start commands
/// without a shell: they only split the line into words.
fn command_line(words: &[String]) -> Result<String, Failure> {
    let shell = ["sh", "-c"].into_iter().filter(|_| words.len() == 1);
    shlex::try_join(shell.chain(words.iter().map(String::as_str)))
        .map_err(|error| Failure::new(ExitCode::Usage, "usage", format!("the command can't be quoted: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_exactly_the_words_that_were_given() {
        let line =
            |words: &[&str]| command_line(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).unwrap();
        assert_eq!(line(&["ls -l | wc -l"]), "sh -c 'ls -l | wc -l'");
        assert_eq!(line(&["ls", "-l", "a b", "it's"]), r#"ls -l 'a b' "it's""#);
    }
}
