//! A running forwarder, and servers behind its agent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ssm_forward::{ForwardConfig, ForwardError, ForwardEvent, Forwarder, ListenAddr, LocalAddr, Session};
use ssm_local::{Faults, Local, SessionState};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::common::{aws, request};

/// Timeout. It is longer than every step of these tests; reaching it is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A forwarder that is ready.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) events: UnboundedReceiver<ForwardEvent>,
    pub(crate) task: JoinHandle<Result<(), ForwardError>>,
}

impl Running {
    pub(crate) async fn start(local: &Local, port: u16, config: ForwardConfig, session: Option<Session>) -> Self {
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

    /// Returns the next matching event. Events before it are skipped.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&ForwardEvent) -> bool) -> ForwardEvent {
        let found = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if wanted(&event) {
                    return event;
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap()
    }

    /// Opens a connection and sends its first byte, which tells [`server`] what to do.
    pub(crate) async fn connect(&self, first: u8) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(&[first]).await.unwrap();
        stream
    }

    /// Opens a connection that downloads until it is aborted.
    pub(crate) async fn download(&self) -> JoinHandle<()> {
        let mut stream = self.connect(b'S').await;
        tokio::spawn(async move { while stream.read(&mut [0; 65_536]).await.is_ok_and(|length| length > 0) {} })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a server whose behaviour depends on the first byte of a connection: `S` makes it send forever, `D` makes it read nothing,
/// and any other byte is echoed with all following bytes. Returns its port, and the number of sent bytes.
pub(crate) async fn server() -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, count.clone()));
        }
    });
    (port, sent)
}

async fn serve(mut stream: TcpStream, sent: Arc<AtomicU64>) {
    match stream.read_u8().await {
        Ok(b'S') => {
            while stream.write_all(&[7; 16_384]).await.is_ok() {
                sent.fetch_add(16_384, Ordering::Relaxed);
            }
        }
        Ok(b'D') => std::future::pending().await,
        Ok(first) => {
            let (mut from, mut to) = stream.split();
            let _ = to.write_all(&[first]).await;
            let _ = copy(&mut from, &mut to).await;
        }
        Err(_) => {}
    }
}

/// Writes as long as the data is read, and returns the number of written bytes.
pub(crate) fn flood(mut stream: TcpStream) -> Arc<AtomicU64> {
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    tokio::spawn(async move {
        while stream.write_all(&[7; 16_384]).await.is_ok() {
            count.fetch_add(16_384, Ordering::Relaxed);
        }
    });
    sent
}

/// Waits until the count has changed and then stays the same.
pub(crate) async fn stuck(count: &AtomicU64) {
    const STILL: Duration = Duration::from_secs(2);
    let (mut seen, mut since) = (0, Instant::now());
    let settled = async {
        while seen == 0 || since.elapsed() < STILL {
            sleep(Duration::from_millis(20)).await;
            let now = count.load(Ordering::Relaxed);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
    };
    timeout(PATIENCE, settled).await.unwrap();
}

pub(crate) async fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"?").await.unwrap();
    assert_eq!(timeout(PATIENCE, stream.read_u8()).await.expect("no answer").unwrap(), b'?');
}

pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let so = async {
        while !condition() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, so).await.unwrap_or_else(|_| panic!("this did not happen in time: {what}"));
}

pub(crate) fn connected(local: &Local) -> usize {
    local.sessions().iter().filter(|session| session.state == SessionState::Connected).count()
}

pub(crate) fn faults(specs: &[&str]) -> Faults {
    Faults::from_json(&serde_json::json!({ "seed": 1, "faults": specs }).to_string()).unwrap()
}
