//! The program under the name of AWS's own client, `session-manager-plugin`. It has the same interface, which `docs/plugin.md`
//! describes.

pub(crate) mod alias;
mod handover;
pub(crate) mod install;
mod invocation;
mod port;

use std::io::{IsTerminal, Write, stdin, stdout};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ssm_forward::{
    AwsConfig, AwsProvider, Session, SessionConfig, SessionMode, SessionNotice, SessionProvider, StartRequest,
    StreamUrl, TicketProvider,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::exit_code::{ExitCode, Failure};
use crate::session_outputs::SessionOutputs;
use crate::shutdown::{Shutdown, interrupted};
use crate::terminal_session::{self, Ended};
use crate::{connect, console, stdio, terminal, untrusted, writer};
use invocation::{Invocation, Request, SessionRequest};

/// Whether this process was started under the name that the AWS CLI and other tools use.
pub(crate) fn is_invoked_as_plugin() -> bool {
    std::env::args_os().next().is_some_and(|program| is_plugin_name(Path::new(&program)))
}

fn is_plugin_name(program: &Path) -> bool {
    program.file_stem().is_some_and(|name| name == NAME)
}

/// The name under which callers start the plugin, and which they pass to `killall`.
const NAME: &str = "session-manager-plugin";

/// Restores the name of the process. After the process replaced itself, it has the executable's name.
fn restore_name() {
    #[cfg(target_os = "linux")]
    if let Ok(name) = std::ffi::CString::new(NAME) {
        let _ = rustix::thread::set_name(&name);
    }
}

const BANNER: &str = "\nThe Session Manager plugin was installed successfully. Use the AWS CLI to start a session.\n\n";
/// If this variable is `true`, the plugin does not look for credentials, and therefore does not sign. The name is the official
/// client's.
const SKIP_CREDENTIALS: &str = "SSM_PLUGIN_SKIP_CLIENT_CONFIGURE";
/// If this variable is `remote`, the plugin ends with the exit code of the remote command.
const EXIT_CODE_VARIABLE: &str = "AWS_SSM_FORWARD_EXIT_CODE";
/// A variable with the hosts that may get the token, in addition to AWS's own and this machine; separated by commas.
const HOSTS_VARIABLE: &str = "AWS_SSM_FORWARD_ALLOW_STREAM_HOSTS";
const USED: &str = "the session was used by another client before and cannot begin again: start a new one";
/// Timeout for credentials and the data channel together.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the plugin.
///
/// # Errors
/// Returns an error of one line. It is already printed where callers expect it.
pub(crate) fn run() -> Result<ExitCode, Failure> {
    let args = handover::arguments();
    restore_name();
    match Invocation::parse(&args, |name| std::env::var(name).ok())? {
        Invocation::Banner => print_or_fail(BANNER)?,
        Invocation::Version => print_or_fail(&format!("{}\n", SessionConfig::default().protocol.client_version))?,
        Invocation::Start(request) => return crate::block_on(serve(*request)),
    }
    Ok(ExitCode::Ok)
}

/// Writes a text that callers look for to standard output, and waits until it is written. For texts before and after a session's
/// data. Ignores errors.
fn print(text: &str) {
    let _ = print_or_fail(text);
}

/// Like [`print()`], but returns errors. For a text that is the whole output, or its end.
fn print_or_fail(text: &str) -> Result<(), Failure> {
    let mut stdout = stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| writer::failure("standard output", stdout.is_terminal(), &error))
}

async fn serve(request: Request) -> Result<ExitCode, Failure> {
    let session_id = request.ticket.session_id.clone();
    print(&format!("\nStarting session with SessionId: {}\n", untrusted::line(&session_id)));
    let shutdown = Shutdown::on_signals_but_keys().map_err(Failure::internal)?;
    let watching_parent = shutdown.watch_parent();
    let (api, config) = api(&request).await;
    let provider: Arc<dyn SessionProvider> = Arc::new(TicketProvider::new(request.ticket, api));
    let opened = tokio::select! {
        // `open` is polled first, so that the caller's session is always taken over. From then on, the session is terminated in
        // every case.
        biased;
        opened = open(provider.clone(), &request.session_request, config) => opened,
        cause = shutdown.requested() => return Ok(cause.exit_code()),
        () = interrupted() => return Ok(ExitCode::Interrupted),
    };
    let session = opened.inspect_err(report_to_caller)?;
    let outcome = match session.mode() {
        Some(SessionMode::Shell) => shell(&session, &shutdown).await,
        Some(SessionMode::Plain) => {
            // The other end of a pipe belongs to an ssh, which may continue in the background as another process. Therefore the
            // pipe decides about the end, not the parent process.
            if !stdin().is_terminal() {
                watching_parent.abort();
            }
            stdio::run(&session, &shutdown, false).await.map(|()| ExitCode::Ok)
        }
        _ => port::serve(&session, provider, &request.session_request, &shutdown).await.inspect_err(report_to_caller),
    };
    terminal::restore();
    session.terminate().await;
    outcome
}

/// Prints a failure to standard output, if this is not a terminal: programs wait for this text there. A user reads the same on
/// standard error.
fn report_to_caller(failure: &Failure) {
    if !stdout().is_terminal() {
        console::say(format!("Cannot perform start session: {failure}\n"));
    }
}

async fn open(
    provider: Arc<dyn SessionProvider>,
    session_request: &SessionRequest,
    mut config: SessionConfig,
) -> Result<Arc<Session>, Failure> {
    config.protocol.inherited = true;
    let (may_be_silent, patience) = (session_request.may_be_silent(), session_request.patience_if_used());
    // The caller has already started the session. Only the target of the request is still needed.
    let request = StartRequest { target: session_request.target.clone(), ..StartRequest::default() };
    let seems_used = Arc::new(Notify::new());
    let found = seems_used.clone();
    let notify = move |notice| match notice {
        SessionNotice::SeemsUsed => found.notify_one(),
        other => print_notice(other),
    };
    let mut start = std::pin::pin!(Session::start(provider, &request, config, |_| {}, notify));
    let mut deadline = Instant::now() + START_TIMEOUT;
    let mut failure = "the session was not ready within 60 s: is its agent online?".to_owned();
    loop {
        tokio::select! {
            started = &mut start => return Ok(Arc::new(started?)),
            () = seems_used.notified() => {
                USED.clone_into(&mut failure);
                deadline = patience.map_or(deadline, |patience| deadline.min(Instant::now() + patience));
                if patience != Some(Duration::ZERO) {
                    console::note("the node answers, but the session does not begin; if it was used before, start a new one");
                }
            }
            () = sleep_until(deadline) => break,
        }
    }
    if may_be_silent && patience.is_none() {
        console::note("the session is open, but there is no output yet; Ctrl-C ends it");
        return Ok(Arc::new(start.await?));
    }
    Err(Failure::new(ExitCode::Channel, "timeout", failure))
}

/// Returns the provider that resumes, terminates and signs, and the configuration of the data channel. A failure is only a warning:
/// the caller has already started the session, and its token is enough to use it.
async fn api(request: &Request) -> (Option<Arc<dyn SessionProvider>>, SessionConfig) {
    match configured(request).await {
        Ok((_, config)) if std::env::var(SKIP_CREDENTIALS).is_ok_and(|value| value == "true") => (None, config),
        Ok((provider, config)) => (Some(provider), config),
        Err(failure) => {
            let text = format!("warning: the session can't be signed, resumed or terminated: {failure}");
            let _ = writeln!(terminal::Stderr, "{text}");
            (None, connect::plain_session_config())
        }
    }
}

async fn configured(request: &Request) -> Result<(Arc<dyn SessionProvider>, SessionConfig), Failure> {
    // A caller may pass a wrong region. The stream URL contains the session's region.
    let seen = StreamUrl::aws_region(&request.ticket.stream_url).filter(|_| request.endpoint.is_none());
    let config = AwsConfig {
        profile: request.profile.clone(),
        region: Some(seen.unwrap_or_else(|| request.region.clone())),
        endpoint_url: request.endpoint.clone(),
        ca_bundle: None,
        credentials: None,
        person: Some(Arc::new(terminal::AtTerminal::only_told())),
    };
    let provider = AwsProvider::new(config).await?;
    let allowed: Vec<String> = std::env::var(HOSTS_VARIABLE)
        .map(|hosts| hosts.split(',').map(|host| host.trim().to_owned()).filter(|host| !host.is_empty()).collect())
        .unwrap_or_default();
    let config = connect::session_config(&provider, &allowed, None)?;
    Ok((Arc::new(provider), config))
}

/// Prints a notice to standard error, because other programs read standard output.
fn print_notice(notice: SessionNotice) {
    let text = match notice {
        SessionNotice::Reconnecting { cause, attempt: 2, .. } => format!("reconnecting: {cause}"),
        SessionNotice::Message(text) => return console::say(untrusted::lines(&text) + "\n"),
        _ => return,
    };
    console::note(&untrusted::line(&text));
}

async fn shell(session: &Session, shutdown: &Shutdown) -> Result<ExitCode, Failure> {
    let ended = terminal_session::run(session, shutdown, &mut SessionOutputs::plain()?).await?;
    terminal::restore();
    let remote = session.exit_code();
    if let Some(code) = remote {
        print_or_fail(&format!("EXIT_CODE: {code}"))?;
    }
    match &ended {
        Ended::Closed(text) => print_or_fail(&exit_text(session.id(), text))?,
        Ended::Escaped => print_or_fail(&exit_text(session.id(), ""))?,
        // The program that stopped the session may no longer read.
        Ended::Stopped(_) => {}
    }
    let wanted = std::env::var(EXIT_CODE_VARIABLE).is_ok_and(|value| value == "remote");
    Ok(match (wanted, remote, ended) {
        (true, Some(code), _) => ExitCode::Remote(code),
        (true, None, Ended::Stopped(cause)) => cause.exit_code(),
        _ => ExitCode::Ok,
    })
}

/// Returns the last text of a session.
fn exit_text(session_id: &str, output: &str) -> String {
    let session_id = untrusted::line(session_id);
    match &*untrusted::lines(output) {
        "" => format!("\n\nExiting session with sessionId: {session_id}.\n\n"),
        output => format!("\n\nSessionId: {session_id} : {output}\n\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_what_counts() {
        assert!(is_plugin_name(Path::new("/usr/local/bin/session-manager-plugin")));
        assert!(is_plugin_name(Path::new("session-manager-plugin.exe")));
        assert!(!is_plugin_name(Path::new("/opt/session-manager-plugin/aws-ssm-forward")));
    }

    #[test]
    fn last_words_are_those_that_other_tools_parse() {
        assert_eq!(exit_text("s-1", ""), "\n\nExiting session with sessionId: s-1.\n\n");
        assert_eq!(exit_text("s-1", "gone"), "\n\nSessionId: s-1 : gone\n\n");
        let hostile = exit_text("s\u{1b}]0;x\u{7}", "one\u{1b}[2J\n\u{202e}two");
        assert_eq!(hostile, "\n\nSessionId: s\\u{1b}]0;x\\u{7} : one\\u{1b}[2J\n  \\u{202e}two\n\n");
    }
}
