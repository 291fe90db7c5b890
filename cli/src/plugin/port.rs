//! A port session for whoever started the plugin: a listener where the document says, and the texts that callers wait for.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ssm_forward::{
    CloseReason, ForwardConfig, ForwardEvent, Forwarder, ListenAddr, LocalAddr, PoolSize, PortProperties, Session,
    SessionMode, SessionProvider, SessionType, StartRequest,
};
use tokio::signal::unix::{SignalKind, signal};

use super::{exit_text, say};
use crate::exit_code::{ExitCode, Failure};
use crate::shutdown::Shutdown;
use crate::terminal;

/// Serves connections until the session is over or somebody asks to stop.
pub(super) async fn serve(
    session: &Arc<Session>,
    provider: Arc<dyn SessionProvider>,
    shutdown: &Shutdown,
) -> Result<ExitCode, Failure> {
    let Some(SessionType::Port(properties)) = session.session_type() else {
        return Err(Failure::internal("a port session without a port"));
    };
    let mux = session.mode() == Some(SessionMode::Mux);
    let mut config = ForwardConfig::default();
    config.pool.restart = false;
    // The caller gave one session, and no right to start others.
    config.pool.size = PoolSize::Fixed(1);
    let texts = Texts { session_id: session.id().to_owned(), mux, accepted: AtomicBool::new(false) };
    let forwarder = Forwarder::builder(provider, StartRequest::default())
        .session(session.clone())
        .config(config)
        .on_event(move |event| texts.tell(&event))
        .bind(listen_address(&properties)?)
        .await?;
    let stopped = AtomicBool::new(false);
    let stop = async {
        tokio::select! {
            _ = shutdown.requested() => {}
            () = key() => say("Terminate signal received, exiting.\n"),
        }
        stopped.store(true, Ordering::Relaxed);
    };
    let ended = forwarder.run(stop).await;
    if stopped.into_inner() {
        say(&exit_text(session.id(), ""));
        return Ok(ExitCode::Ok);
    }
    match session.close_reason() {
        Some(CloseReason::Closed(text)) => {
            say(&exit_text(session.id(), &text));
            Ok(ExitCode::Ok)
        }
        _ => ended.map(|()| ExitCode::Ok).map_err(Failure::from),
    }
}

/// Ctrl-C, Ctrl-\ or Ctrl-Z.
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

fn listen_address(properties: &PortProperties) -> Result<ListenAddr, Failure> {
    if properties.local_connection_type.as_deref() == Some("unix") {
        let path = properties.local_unix_socket.as_deref().filter(|path| !path.is_empty());
        let missing = || Failure::new(ExitCode::Channel, "agent", "the document names no localUnixSocket to listen on");
        return path.map(|path| ListenAddr::Unix(PathBuf::from(path))).ok_or_else(missing);
    }
    let port = properties.local_port_number.as_deref().filter(|port| !port.is_empty()).unwrap_or("0");
    let port: u16 = port.parse().map_err(|_| {
        Failure::new(ExitCode::Channel, "agent", format!("the document's localPortNumber {port:?} is no port"))
    })?;
    Ok(ListenAddr::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

/// What callers wait for on standard output. With and without a multiplexer the official client says it differently.
struct Texts {
    session_id: String,
    mux: bool,
    accepted: AtomicBool,
}

impl Texts {
    fn tell(&self, event: &ForwardEvent) {
        let id = &self.session_id;
        let text = match event {
            ForwardEvent::Ready { local, .. } => {
                let opened = match local {
                    LocalAddr::Tcp(address) => format!("Port {} opened for sessionId {id}.", address.port()),
                    _ => format!("Unix socket {local} opened for sessionId {id}."),
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
                let _ = writeln!(terminal::Stderr, "warning: {text}");
                return;
            }
            _ => return,
        };
        say(&text);
    }
}
