//! A port session for the program that started the plugin: listens at the document's address, and prints the texts that callers
//! wait for.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ssm_forward::{
    CloseReason, ForwardConfig, ForwardEvent, Forwarder, ListenAddr, LocalAddr, PoolSize, PortProperties, Session,
    SessionMode, SessionProvider, SessionType, StartRequest,
};
use tokio::signal::unix::{SignalKind, signal};

use super::{SessionRequest, exit_text};
use crate::exit_code::{ExitCode, Failure};
use crate::shutdown::Shutdown;
use crate::{console, untrusted};

/// The variable with a path at which the document may let the plugin listen without a request.
const SOCKET_VARIABLE: &str = "AWS_SSM_FORWARD_ALLOW_UNIX_SOCKET";

/// Accepts connections until the session has ended or a stop is requested.
pub(super) async fn serve(
    session: &Arc<Session>,
    provider: Arc<dyn SessionProvider>,
    session_request: &SessionRequest,
    shutdown: &Shutdown,
) -> Result<ExitCode, Failure> {
    let Some(SessionType::Port(properties)) = session.session_type() else {
        return Err(Failure::internal("a port session without a port"));
    };
    let mux = session.mode() == Some(SessionMode::Mux);
    let mut config = ForwardConfig::default();
    config.pool.restart = false;
    // The caller passed one session, and did not permit to start others.
    config.pool.size = PoolSize::Fixed(1);
    let texts = Texts { session_id: untrusted::line(session.id()), mux, accepted: AtomicBool::new(false) };
    let forwarder = Forwarder::builder(provider, StartRequest::default())
        .session(session.clone())
        .config(config)
        .on_event(move |event| texts.print(&event))
        .bind(listen_address(&properties, session_request)?)
        .await?;
    let stopped = AtomicBool::new(false);
    let stop = async {
        tokio::select! {
            _ = shutdown.requested() => {}
            () = key() => console::say("Terminate signal received, exiting.\n"),
        }
        stopped.store(true, Ordering::Relaxed);
    };
    let ended = forwarder.run(stop).await;
    if stopped.into_inner() {
        console::say(exit_text(session.id(), ""));
        return Ok(ExitCode::Ok);
    }
    match session.close_reason() {
        Some(CloseReason::Closed(text)) => {
            console::say(exit_text(session.id(), &text));
            Ok(ExitCode::Ok)
        }
        _ => ended.map(|()| ExitCode::Ok).map_err(Failure::from),
    }
}

/// Waits for Ctrl-C, Ctrl-\ or Ctrl-Z.
async fn key() {
    const SIGTSTP: i32 = 20;
    let kinds = [SignalKind::interrupt(), SignalKind::quit(), SignalKind::from_raw(SIGTSTP)];
    let [Ok(mut interrupt), Ok(mut quit), Ok(mut stop)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = quit.recv() => {}
        _ = stop.recv() => {}
    }
}

/// Returns the address to listen at. The document may choose any port. A path must be the requested one: otherwise, an attacker who
/// controls the node could choose a file of this machine, such as the socket of an SSH agent that is not running.
fn listen_address(properties: &PortProperties, session_request: &SessionRequest) -> Result<ListenAddr, Failure> {
    let refused = |why: String| Failure::new(ExitCode::Channel, "agent", why);
    if properties.local_connection_type.as_deref() == Some("unix") {
        let path = properties.local_unix_socket.as_deref().filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| refused("the document names no localUnixSocket to listen on".into()))?;
        let allowed = std::env::var(SOCKET_VARIABLE).ok();
        if session_request.local_unix_socket.as_deref() != Some(path) && allowed.as_deref() != Some(path) {
            return Err(refused(format!(
                "the session wants to listen on the Unix socket {path}, which was not requested: pass the parameter \
                 localUnixSocket, or set {SOCKET_VARIABLE} to that path"
            )));
        }
        return Ok(ListenAddr::Unix(PathBuf::from(path)));
    }
    let port = properties.local_port_number.as_deref().filter(|port| !port.is_empty()).unwrap_or("0");
    let port: u16 =
        port.parse().map_err(|_| refused(format!("the document's localPortNumber {port:?} is not a port")))?;
    Ok(ListenAddr::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

/// Prints the texts that callers wait for on standard output. The official client's texts differ with and without a multiplexer.
struct Texts {
    session_id: String,
    mux: bool,
    accepted: AtomicBool,
}

impl Texts {
    fn print(&self, event: &ForwardEvent) {
        let id = &self.session_id;
        let text = match event {
            ForwardEvent::Ready { local, .. } => {
                let opened = match local {
                    LocalAddr::Tcp(address) => format!("Port {} opened for sessionId {id}.", address.port()),
                    _ => format!("Unix socket {} opened for sessionId {id}.", untrusted::line(&local.to_string())),
                };
                if self.mux { format!("{opened}\nWaiting for connections...\n") } else { format!("{opened}\n") }
            }
            ForwardEvent::ConnectionOpened { .. } if !self.accepted.swap(true, Ordering::Relaxed) => {
                if self.mux {
                    format!("\nConnection accepted for session [{id}]\n")
                } else {
                    format!("Connection accepted for session {id}.\n")
                }
            }
            ForwardEvent::ConnectionClosed { refused: true, .. } => {
                "\nConnection to destination port failed, check SSM Agent logs.\n".into()
            }
            ForwardEvent::Warning { text } => {
                return console::note(&format!("warning: {}", untrusted::line(text)));
            }
            _ => return,
        };
        console::say(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_made_only_where_it_was_asked_for() {
        let properties = PortProperties {
            local_connection_type: Some("unix".into()),
            local_unix_socket: Some("/home/u/.ssh/agent".into()),
            ..PortProperties::default()
        };
        let address = |path: Option<&str>| {
            let session_request =
                SessionRequest { local_unix_socket: path.map(str::to_owned), ..SessionRequest::default() };
            listen_address(&properties, &session_request)
        };
        assert_eq!(address(Some("/home/u/.ssh/agent")).unwrap(), ListenAddr::Unix("/home/u/.ssh/agent".into()));
        for path in [None, Some(""), Some("/home/u/.ssh"), Some("/run/db.sock")] {
            let failure = address(path).unwrap_err();
            assert!(failure.message.contains("/home/u/.ssh/agent, which was not requested"), "{failure}");
        }
    }
}
