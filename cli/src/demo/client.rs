//! The local program of the demo. It downloads, uploads and sends small requests, only through the local port.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::data::{HexDigest, Seeded, hex};

/// Time without progress after which a transfer fails.
const STALL: Duration = Duration::from_secs(30);

/// The result of a request, with the error as text for the user.
pub(super) type Result<T> = std::result::Result<T, String>;

/// One keep-alive connection to the local port.
pub(super) struct Client {
    sender: SendRequest<BoxBody<Bytes, Infallible>>,
    host: String,
}

/// The result of a transfer.
pub(super) struct Transfer {
    /// Time from the request to the last byte, or to the answer.
    pub(super) elapsed: Duration,
    /// The digest at the receiving end.
    pub(super) sha256: HexDigest,
}

impl Client {
    /// Connects to the local port at `address`.
    pub(super) async fn connect(address: &str) -> Result<Self> {
        let stream = timeout(STALL, TcpStream::connect(address)).await.map_err(text)?.map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(text)?;
        tokio::spawn(connection);
        Ok(Self { sender, host: address.into() })
    }

    /// Downloads `bytes` bytes of a seed, and updates `moved` as they arrive.
    pub(super) async fn download(&mut self, seed: u64, bytes: u64, moved: &Arc<AtomicU64>) -> Result<Transfer> {
        let began = Instant::now();
        let download = async {
            let mut body = self.get(&format!("/data?bytes={bytes}&seed={seed}")).await?.into_body();
            let mut hasher = Sha256::new();
            while let Some(frame) = body.frame().await {
                if let Some(data) = frame.map_err(text)?.data_ref() {
                    hasher.update(data);
                    moved.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
            }
            Ok(Transfer { elapsed: began.elapsed(), sha256: hex(hasher) })
        };
        unless_stalled(download, moved).await
    }

    /// Uploads `bytes` bytes of a seed, and updates `moved` as they are sent.
    pub(super) async fn upload(&mut self, seed: u64, bytes: u64, moved: &Arc<AtomicU64>) -> Result<Transfer> {
        let began = Instant::now();
        let body = Counted { data: Seeded::new(seed, bytes), moved: moved.clone() };
        let upload = async {
            let answer = self.send("POST", "/data", body.boxed()).await?;
            let received: Received = serde_json::from_slice(&collect(answer).await?).map_err(text)?;
            Ok(Transfer { elapsed: began.elapsed(), sha256: received.sha256 })
        };
        unless_stalled(upload, moved).await
    }

    /// Requests one byte `count` times, one request after the other. Returns the times in ascending order.
    pub(super) async fn round_trips(&mut self, count: usize) -> Result<Vec<Duration>> {
        let mut round_trips = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            let answer = async { collect(self.get("/ping").await?).await };
            timeout(STALL, answer).await.map_err(text)??;
            round_trips.push(began.elapsed());
        }
        round_trips.sort_unstable();
        Ok(round_trips)
    }

    async fn get(&mut self, path: &str) -> Result<Response<Incoming>> {
        self.send("GET", path, Empty::new().boxed()).await
    }

    async fn send(&mut self, method: &str, path: &str, body: BoxBody<Bytes, Infallible>) -> Result<Response<Incoming>> {
        let request =
            Request::builder().method(method).uri(path).header("host", &self.host).body(body).map_err(text)?;
        self.sender.ready().await.map_err(text)?;
        let answer = self.sender.send_request(request).await.map_err(text)?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(format!("the private service answered {status}")),
        }
    }
}

#[derive(serde::Deserialize)]
struct Received {
    sha256: HexDigest,
}

async fn collect(answer: Response<Incoming>) -> Result<Bytes> {
    Ok(answer.into_body().collect().await.map_err(text)?.to_bytes())
}

/// Runs a transfer. Fails if `moved` does not change for [`STALL`].
async fn unless_stalled<T>(transfer: impl Future<Output = Result<T>>, moved: &AtomicU64) -> Result<T> {
    tokio::pin!(transfer);
    loop {
        let before = moved.load(Ordering::Relaxed);
        match timeout(STALL, &mut transfer).await {
            Ok(result) => return result,
            Err(_) if moved.load(Ordering::Relaxed) == before => {
                return Err(format!("no progress for {} s", STALL.as_secs()));
            }
            Err(_) => {}
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A body that counts the bytes that were read from it.
struct Counted {
    data: Seeded,
    moved: Arc<AtomicU64>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.data.next().map(|chunk| {
            self.moved.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            Ok(Frame::data(chunk))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.data.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stall_ends_the_transfer_and_progress_does_not() {
        let moved = AtomicU64::new(0);
        let began = tokio::time::Instant::now();
        assert!(unless_stalled(std::future::pending::<Result<()>>(), &moved).await.is_err());
        assert_eq!(began.elapsed(), STALL);
        let slow = async {
            for _ in 0..5 {
                tokio::time::sleep(STALL - Duration::from_secs(1)).await;
                moved.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        assert_eq!(unless_stalled(slow, &moved).await, Ok(()));
    }
}
