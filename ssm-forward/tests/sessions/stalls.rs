//! A connection that accepts no data blocks only the connections that share its session, and a warning reports this.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ssm_forward::{ForwardConfig, ForwardEvent, PoolSize};
use ssm_local::Local;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::running::{PATIENCE, Running, connected, echoes, eventually, flood, server, stuck};

fn fixed(size: usize) -> ForwardConfig {
    let mut config = ForwardConfig::default();
    config.pool.size = PoolSize::Fixed(size);
    config
}

/// The end of a connection that accepts no data.
#[derive(Clone, Copy, Debug)]
enum End {
    Reader,
    Destination,
}

/// Opens a connection with one end that accepts no data, and waits until this has stalled the session. The result must be kept.
async fn stall(running: &Running, end: End, sent: &AtomicU64) -> Option<TcpStream> {
    match end {
        End::Reader => {
            let stream = running.connect(b'S').await;
            stuck(sent).await;
            Some(stream)
        }
        End::Destination => {
            let written = flood(running.connect(b'D').await);
            stuck(&written).await;
            None
        }
    }
}

/// Whether this is the warning that names a connection.
fn blames(event: &ForwardEvent) -> bool {
    matches!(event, ForwardEvent::Warning { text } if text.contains("in the same session"))
}

/// Sends and receives continuously.
fn chat(mut stream: TcpStream) -> JoinHandle<()> {
    tokio::spawn(async move {
        while stream.read_u8().await.is_ok() && stream.write_all(b"?").await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    })
}

#[tokio::test]
async fn a_stalled_session_gets_no_new_connection_while_another_can_be_had() {
    for end in [End::Reader, End::Destination] {
        let (port, sent) = server().await;
        let local = Local::builder().start().await.unwrap();
        let running = Running::start(&local, port, fixed(2), None).await;
        eventually("two sessions", || connected(&local) == 2).await;
        let _stalled = stall(&running, end, &sent).await;
        // The other session is used, so that the stalled one seems to be idle in comparison.
        let chatter = chat(running.connect(b'?').await);
        for number in 0..16 {
            let mut stream = running.connect(b'?').await;
            let answer = timeout(PATIENCE, stream.read_u8()).await;
            assert_eq!(answer.unwrap_or_else(|_| panic!("{end:?}: {number} hangs")).unwrap(), b'?');
        }
        chatter.abort();
    }
}

#[tokio::test]
async fn a_connection_that_would_land_on_a_stalled_session_gets_a_new_one() {
    for end in [End::Reader, End::Destination] {
        let (port, sent) = server().await;
        let local = Local::builder().start().await.unwrap();
        let mut running = Running::start(&local, port, ForwardConfig::default(), None).await;
        let _stalled = stall(&running, end, &sent).await;
        assert_eq!(connected(&local), 1);
        echoes(&mut running.connect(b'?').await).await;
        running.until(|event| matches!(event, ForwardEvent::SessionAdded { sessions: 2, .. })).await;
        assert_eq!(connected(&local), 2, "{end:?}");
    }
}

#[tokio::test]
async fn who_waits_for_another_connection_is_told_for_which_once() {
    for (end, words) in [(End::Reader, "reads too slowly or not at all"), (End::Destination, "accepts no more data")] {
        let (port, sent) = server().await;
        let local = Local::builder().start().await.unwrap();
        let mut running = Running::start(&local, port, fixed(1), None).await;
        let mut other = running.connect(b'?').await;
        assert_eq!(timeout(PATIENCE, other.read_u8()).await.unwrap().unwrap(), b'?');
        let _stalled = stall(&running, end, &sent).await;
        let peer =
            match running.until(|event| matches!(event, ForwardEvent::ConnectionOpened { connection: 2, .. })).await {
                ForwardEvent::ConnectionOpened { peer, .. } => peer.unwrap(),
                other => panic!("{other:?}"),
            };
        let told = running.until(blames).await;
        let ForwardEvent::Warning { text } = told else { panic!() };
        assert!(text.contains(&format!("connection 2 (from {peer}) {words}: another connection")), "{text}");
        other.write_all(b"?").await.unwrap();
        let again = timeout(Duration::from_secs(2), running.until(blames));
        assert!(again.await.is_err(), "once");
    }
}

#[tokio::test]
async fn who_reads_slowly_slows_down_no_new_connection() {
    let (port, sent) = server().await;
    let local = Local::builder().start().await.unwrap();
    let mut running = Running::start(&local, port, ForwardConfig::default(), None).await;
    let mut slow = running.connect(b'S').await;
    stuck(&sent).await;
    // The program alternates between reading and pausing: the session's buffer is full most of the time, but not always.
    let reader = tokio::spawn(async move {
        while slow.read_exact(&mut vec![0; 100_000]).await.is_ok() {
            sleep(Duration::from_millis(300)).await;
        }
    });
    sleep(Duration::from_secs(1)).await;
    for _ in 0..8 {
        echoes(&mut running.connect(b'?').await).await;
    }
    running.until(|event| matches!(event, ForwardEvent::SessionAdded { .. })).await;
    reader.abort();
}
