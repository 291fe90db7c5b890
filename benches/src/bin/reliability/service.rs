//! The private service at the remote end.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::load::{Broken, Pattern, Pauses, Script, expect, send};

/// The result of a connection at the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// Number of bytes received after the script, all of them correct.
    pub(crate) received: u64,
    pub(crate) end: Result<(), Broken>,
}

/// The service. It follows scripts, and records how each connection ended.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    kept: Arc<Kept>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Kept {
    served: Mutex<BTreeMap<u64, Served>>,
    open: AtomicUsize,
}

impl Service {
    pub(crate) async fn start() -> io::Result<Self> {
        let listener = ssm_forward::bind_tcp((Ipv4Addr::LOCALHOST, 0).into())?;
        let address = listener.local_addr()?;
        let kept: Arc<Kept> = Arc::default();
        let shared = kept.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve_and_note(stream, shared.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, kept, task })
    }

    /// Returns the result of the connection with this seed, if it has ended. Each result is returned once.
    pub(crate) fn served(&self, seed: u64) -> Option<Served> {
        self.kept.served.lock().unwrap_or_else(PoisonError::into_inner).remove(&seed)
    }

    /// Returns the number of connections that were exact since the last call.
    pub(crate) fn take_exact(&self) -> usize {
        let served = std::mem::take(&mut *self.kept.served.lock().unwrap_or_else(PoisonError::into_inner));
        served.values().filter(|served| served.end.is_ok()).count()
    }

    /// Number of open connections.
    pub(crate) fn open_connections(&self) -> usize {
        self.kept.open.load(Ordering::Acquire)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve_and_note(mut stream: TcpStream, kept: Arc<Kept>) {
    kept.open.fetch_add(1, Ordering::AcqRel);
    let served = serve(&mut stream).await;
    // The result is recorded before the other side can see the end of the connection.
    kept.open.fetch_sub(1, Ordering::AcqRel);
    if let Some((seed, served)) = served {
        kept.served.lock().unwrap_or_else(PoisonError::into_inner).insert(seed, served);
    }
}

async fn serve(stream: &mut TcpStream) -> Option<(u64, Served)> {
    let script = Script::read_from(stream).await.ok()?;
    let received = AtomicUsize::new(0);
    let end = follow(stream, &script, &received).await;
    let received = received.into_inner() as u64;
    Some((script.seed, Served { received, end }))
}

async fn follow(stream: &mut TcpStream, script: &Script, received: &AtomicUsize) -> Result<(), Broken> {
    let (mut up, mut down) = (Pattern::up(script), Pattern::down(script));
    sleep(Duration::from_millis(script.deaf.into())).await;
    let count = |bytes| _ = received.fetch_add(bytes, Ordering::Relaxed);
    for _ in 0..script.rounds {
        expect(stream, &mut up, script.up, Pauses::default(), &count).await?;
        send(stream, &mut down, script.down, script, &|_| {}).await?;
    }
    Ok(())
}
