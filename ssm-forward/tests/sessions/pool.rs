//! The sessions behind a forwarder.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ssm_forward::{
    ForwardConfig, ForwardError, ForwardEvent, Forwarder, ListenAddr, LocalAddr, Pacing, PoolSize, Session,
    SessionConfig, SessionProvider,
};
use ssm_local::{Faults, Local, SessionState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::common::{aws, echo, request};

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious.txt");
    std::fs::write(&path, "precious").unwrap();
    let local = Local::builder().start().await.unwrap();
    let builder = Forwarder::builder(Arc::new(aws(&local).await), request(1));
    let outcome = builder.bind(ListenAddr::Unix(path.clone())).await;
    assert!(matches!(outcome, Err(ForwardError::Listen { .. })), "{outcome:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// A forwarder that is ready.
struct Running {
    address: SocketAddr,
    events: UnboundedReceiver<ForwardEvent>,
    task: JoinHandle<Result<(), ForwardError>>,
}

impl Running {
    async fn start(local: &Local, port: u16, config: ForwardConfig, session: Option<Session>) -> Self {
        let (sender, events) = unbounded_channel();
        let mut builder = Forwarder::builder(Arc::new(aws(local).await), request(port)).config(config);
        if let Some(session) = session {
            builder = builder.session(Arc::new(session));
        }
        let builder = builder.on_event(move |event| drop(sender.send(event)));
        let forwarder = builder.bind(ListenAddr::Tcp(([127, 0, 0, 1], 0).into())).await.unwrap();
        let LocalAddr::Tcp(address) = forwarder.local_addr() else { panic!() };
        let task = tokio::spawn(forwarder.run(std::future::pending()));
        let mut running = Self { address, events, task };
        running.until(|event| matches!(event, ForwardEvent::Ready { .. })).await;
        running
    }

    async fn until(&mut self, wanted: impl Fn(&ForwardEvent) -> bool) {
        let found = async { while !wanted(&self.events.recv().await.unwrap()) {} };
        timeout(Duration::from_secs(20), found).await.unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"?").await.unwrap();
    assert_eq!(timeout(Duration::from_secs(20), stream.read_u8()).await.unwrap().unwrap(), b'?');
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let so = async {
        while !condition() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), so).await.unwrap_or_else(|_| panic!("it did not come to pass: {what}"));
}

fn connected(local: &Local) -> usize {
    local.sessions().iter().filter(|session| session.state == SessionState::Connected).count()
}

fn faults(specs: &[&str]) -> Faults {
    Faults::from_json(&serde_json::json!({ "seed": 1, "faults": specs }).to_string()).unwrap()
}

#[tokio::test]
async fn a_connection_that_comes_during_a_reconnect_is_served_after_it_whoever_started_the_session() {
    for given in [false, true] {
        let local = Local::builder().start().await.unwrap();
        let port = echo().await;
        let session = match given {
            true => Some(crate::common::session(&local, port).await),
            false => None,
        };
        let mut running = Running::start(&local, port, ForwardConfig::default(), session).await;
        local.set_faults(faults(&["api,operation=ResumeSession,answer=throttled,for=1s", "bye,after=50ms"])).await;
        eventually("the WebSocket is gone", || connected(&local) == 0).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        echoes(&mut stream).await;
        running.events.close();
    }
}

#[tokio::test]
async fn one_session_of_several_that_ends_early_takes_nothing_else_along() {
    let local = Local::builder().start().await.unwrap();
    let mut config = ForwardConfig::default();
    config.pool.size = PoolSize::Fixed(2);
    let mut running = Running::start(&local, echo().await, config, None).await;
    let first = local.sessions()[0].id.clone();
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    echoes(&mut stream).await;
    eventually("two sessions", || connected(&local) == 2).await;
    let second = local.sessions().into_iter().find(|session| session.id != first).unwrap().id;
    aws(&local).await.terminate(&second).await.unwrap();
    running.until(|event| matches!(event, ForwardEvent::SessionLost { .. })).await;
    echoes(&mut stream).await;
    assert!(!running.task.is_finished());
}

#[tokio::test]
async fn auto_keeps_the_spare_session_while_the_others_are_busy_and_retires_it_after() {
    let local = Local::builder().start().await.unwrap();
    let mut config = ForwardConfig::default();
    config.pool.size = PoolSize::Auto { max: 3 };
    config.pool.retire_after = Duration::from_secs(1);
    let mut session = SessionConfig::default();
    session.pacing = Pacing::PerSecond(600);
    config.session = session;
    let running = Running::start(&local, echo().await, config, None).await;
    let busy = TcpStream::connect(running.address).await.unwrap();
    let (mut from, mut to) = busy.into_split();
    let writer = tokio::spawn(async move { while to.write_all(&[7; 4000]).await.is_ok() {} });
    let reader = tokio::spawn(async move { while from.read(&mut [0; 65_536]).await.is_ok_and(|length| length > 0) {} });
    eventually("a second session", || connected(&local) == 2).await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(local.sessions().len(), 2, "no further session was started in place of the spare one");
    writer.abort();
    reader.abort();
    eventually("the spare session is terminated", || connected(&local) == 1).await;
    assert_eq!(local.sessions().len(), 2);
}
