//! Exit codes, and the one-line errors that lead to them.

use std::process::Termination;

use ssm_forward::{ForwardError, ProviderError, ProviderErrorKind, SystemError};

use crate::{port_holder, untrusted};

/// The exit codes of the command. They are part of its interface and listed in `docs/cli.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// Success, or the command was stopped after it was ready.
    Ok,
    /// `demo`: the received data differs from what was sent.
    Mismatch,
    /// `doctor`: no check failed, but a check has a warning, or its result is unknown.
    Doubtful,
    /// `cp`: a file could not be copied.
    NotCopied,
    /// The command line is invalid.
    Usage,
    /// The local socket cannot be opened.
    Listen,
    /// Credentials, region or configuration are missing or invalid.
    Config,
    /// The API refused the request or cannot be reached, or the target is not connected.
    Api,
    /// The data channel could not be opened, the agent refused the session, or the start took too long.
    Channel,
    /// `--wait-ready`, `ssh-proxy`: the remote port does not accept connections.
    RemotePort,
    /// The session ended while it was in use.
    SessionLost,
    /// A bug in this program.
    Internal,
    /// Standard output, standard error or a file cannot be written.
    Output,
    /// The reader of standard output has closed it. No error is printed.
    ReaderGone,
    /// SIGHUP before the command was ready.
    HangUp,
    /// Ctrl-C (SIGINT) before the command was ready.
    Interrupted,
    /// SIGTERM before the command was ready.
    Terminated,
    /// `run`: the command exists but cannot be executed.
    CommandNotExecutable,
    /// `run`: the command does not exist.
    CommandNotFound,
    /// The exit code of the command that ran on the node, or on this machine (`run`).
    Remote(i64),
}

impl ExitCode {
    /// Returns the exit code of the process.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Mismatch | Self::Doubtful | Self::NotCopied => 1,
            Self::Usage => 2,
            Self::Listen => 3,
            Self::Config => 4,
            Self::Api => 5,
            Self::Channel => 6,
            Self::RemotePort => 7,
            Self::SessionLost => 8,
            Self::Internal => 70,
            Self::Output => 74,
            Self::CommandNotExecutable => 126,
            Self::CommandNotFound => 127,
            // The exit code that a shell reports for a program that SIGPIPE ended, such as `cat`.
            Self::ReaderGone => 141,
            Self::HangUp => 129,
            Self::Interrupted => 130,
            Self::Terminated => 143,
            // Exit codes of Windows can be larger, and some agents report -1. No failure may become 0, which is success.
            Self::Remote(code) => u8::try_from(code).unwrap_or(u8::MAX),
        }
    }
}

impl Termination for ExitCode {
    fn report(self) -> std::process::ExitCode {
        std::process::ExitCode::from(self.number())
    }
}

/// An error for the user: one line that states the problem and what to do, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The `kind` of the JSON event `error`, in snake_case. These names are a stable interface.
    pub(crate) kind: &'static str,
    /// The error in one line.
    pub(crate) message: String,
    /// The exit code of the process.
    pub(crate) code: ExitCode,
    /// The text for people in place of `message`: several lines with an excerpt of a file.
    pub(crate) excerpt: Option<String>,
}

impl Failure {
    /// Creates a failure. Line breaks in `message` become spaces, and invisible characters are escaped.
    pub(crate) fn new(code: ExitCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: untrusted::line(&one_line(&message.into())), code, excerpt: None }
    }

    /// Sets the text for people. `excerpt` must not contain control characters except line breaks.
    pub(crate) fn with_excerpt(self, excerpt: String) -> Self {
        Self { excerpt: Some(excerpt), ..self }
    }

    /// Returns the text for people: the excerpt if there is one, otherwise the message.
    pub(crate) fn shown(&self) -> &str {
        self.excerpt.as_deref().unwrap_or(&self.message)
    }

    /// Creates the failure for a bug in this program.
    pub(crate) fn internal(what: impl std::fmt::Display) -> Self {
        Self::new(ExitCode::Internal, "internal", format!("internal error: {what}; please report it"))
    }
}

impl From<ProviderError> for Failure {
    fn from(error: ProviderError) -> Self {
        use ProviderErrorKind as Kind;
        let (code, kind) = match error.kind {
            Kind::Credentials => (ExitCode::Config, "credentials"),
            Kind::ExpiredCredentials => (ExitCode::Config, "expired_credentials"),
            Kind::Region => (ExitCode::Config, "region"),
            Kind::Configuration => (ExitCode::Config, "configuration"),
            Kind::AccessDenied => (ExitCode::Api, "access_denied"),
            Kind::Unreachable => (ExitCode::Api, "unreachable"),
            Kind::Throttled => (ExitCode::Api, "throttled"),
            Kind::Service => (ExitCode::Api, "service"),
            Kind::NotConnected => (ExitCode::Api, "not_connected"),
            Kind::SessionGone => (ExitCode::Api, "session_gone"),
            Kind::NotFound => (ExitCode::Api, "not_found"),
            Kind::Invalid => (ExitCode::Api, "invalid_request"),
            _ => (ExitCode::Api, "api"),
        };
        Self::new(code, kind, error.message)
    }
}

impl From<ForwardError> for Failure {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Listen { address, source } => listen_failure(&address, &source),
            ForwardError::Provider(error) => error.into(),
            other => {
                let (code, kind) = match &other {
                    ForwardError::Config(_) => (ExitCode::Config, "configuration"),
                    ForwardError::Transport(_) | ForwardError::NotResumed(_) => (ExitCode::Channel, "transport"),
                    ForwardError::Agent(_) => (ExitCode::Channel, "agent"),
                    ForwardError::TimedOut { .. } => (ExitCode::Channel, "timeout"),
                    ForwardError::RemoteRefused { .. } => (ExitCode::RemotePort, "remote_refused"),
                    ForwardError::SessionEnded(_) => (ExitCode::SessionLost, "session_ended"),
                    _ => return Self::internal(other),
                };
                Self::new(code, kind, other.to_string())
            }
        }
    }
}

/// Returns the failure for a local socket that cannot be opened, with the reason and what to do.
fn listen_failure(address: &str, source: &SystemError) -> Failure {
    use std::io::ErrorKind;
    let remedy = match source.kind() {
        ErrorKind::AddrInUse if address.starts_with('/') || !address.contains(':') => {
            "another process listens on it, or the file is not a socket; choose another path, or remove it".into()
        }
        ErrorKind::AddrInUse => {
            let holder = port_holder::of(address).map(|holder| format!(" by {holder}")).unwrap_or_default();
            format!("it is already in use{holder}; choose another port, or 0 for any free port")
        }
        ErrorKind::PermissionDenied if is_privileged(address) => {
            "a port below 1024 needs root; choose one above 1023, or 0 for any free port".into()
        }
        ErrorKind::PermissionDenied => format!("{source}; choose a path that you can write to"),
        ErrorKind::AddrNotAvailable => "the address is not one of this machine; bind 127.0.0.1, or '*' for all".into(),
        _ => source.to_string(),
    };
    Failure::new(ExitCode::Listen, "listen", format!("cannot listen on {address}: {remedy}"))
}

fn is_privileged(address: &str) -> bool {
    address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.port() < 1024)
}

fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ssm_forward::{CloseReason, ConfigError, SessionError, StreamError, TransportError};

    use super::*;

    fn listen(address: &str, kind: std::io::ErrorKind) -> Failure {
        let source = std::io::Error::from(kind).into();
        ForwardError::Listen { address: address.into(), source }.into()
    }

    #[test]
    fn each_error_has_its_exit_code() {
        let provider = |kind| Failure::from(ProviderError { kind, message: "m".into() }).code;
        assert_eq!(provider(ProviderErrorKind::Credentials), ExitCode::Config);
        assert_eq!(provider(ProviderErrorKind::ExpiredCredentials), ExitCode::Config);
        assert_eq!(provider(ProviderErrorKind::Region), ExitCode::Config);
        assert_eq!(provider(ProviderErrorKind::Configuration), ExitCode::Config);
        assert_eq!(provider(ProviderErrorKind::NotConnected), ExitCode::Api);
        assert_eq!(provider(ProviderErrorKind::Unreachable), ExitCode::Api);
        let code = |error: ForwardError| Failure::from(error).code;
        assert_eq!(code(ConfigError::MaxPayload(0).into()), ExitCode::Config);
        assert_eq!(code(ForwardError::Agent(SessionError::NotAPort("a shell".into()))), ExitCode::Channel);
        assert_eq!(code(TransportError::Silent(3).into()), ExitCode::Channel);
        assert_eq!(code(ForwardError::NotResumed(TransportError::Silent(3).into())), ExitCode::Channel);
        assert_eq!(
            code(ForwardError::TimedOut { target: "i-1".into(), limit: Duration::from_secs(1) }),
            ExitCode::Channel
        );
        let source = StreamError::Refused.into();
        assert_eq!(code(ForwardError::RemoteRefused { destination: "db:1".into(), source }), ExitCode::RemotePort);
        assert_eq!(code(ForwardError::SessionEnded(CloseReason::Terminated)), ExitCode::SessionLost);
    }

    #[test]
    fn a_privileged_port_names_its_remedy() {
        let failure = listen("127.0.0.1:80", std::io::ErrorKind::PermissionDenied);
        assert_eq!(failure.code, ExitCode::Listen);
        assert!(failure.message.contains("127.0.0.1:80") && failure.message.contains("above 1023"), "{failure}");
        let failure = listen("/etc/db.sock", std::io::ErrorKind::PermissionDenied);
        assert!(failure.message.contains("/etc/db.sock") && failure.message.contains("can write to"), "{failure}");
    }

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::new(ExitCode::Channel, "agent", "first\n  second\r\n\nthird");
        assert_eq!(failure.message, "first second third");
        let failure = Failure::from(ProviderError { kind: ProviderErrorKind::Invalid, message: "no\u{1b}[2J".into() });
        assert_eq!(failure.message, "no\\u{1b}[2J");
    }
}
