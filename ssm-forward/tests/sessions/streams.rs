//! The guarantees of a stream to its owner.

use std::time::Duration;

use bytes::Bytes;
use ssm_forward::{CloseReason, StreamError};
use ssm_local::{Local, LocalTarget};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use crate::common::{TARGET, echo, session};
use crate::running::PATIENCE;

#[tokio::test]
async fn what_was_written_before_the_shutdown_arrives_although_the_stream_is_dropped() {
    const LENGTH: usize = 200_000;
    let local = Local::builder().start().await.unwrap();
    let destination = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let session = session(&local, destination.local_addr().unwrap().port()).await;
    let mut stream = session.open_stream().await.unwrap();
    stream.write_all(&vec![7; LENGTH]).await.unwrap();
    stream.flush().await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    let (mut stream, _) = destination.accept().await.unwrap();
    let mut received = Vec::new();
    timeout(Duration::from_secs(20), stream.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received.len(), LENGTH);
    session.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_hears_that_its_session_was_dropped() {
    let local = Local::builder().start().await.unwrap();
    let port = echo().await;
    for _ in 0..20 {
        let session = session(&local, port).await;
        let mut stream = session.open_stream().await.unwrap();
        drop(session);
        let ended = timeout(PATIENCE, stream.read_chunk()).await.unwrap();
        assert_eq!(ended, Err(StreamError::SessionEnded(CloseReason::Terminated)));
    }
}

#[tokio::test]
async fn what_is_taken_at_once_is_bounded_although_more_is_there() {
    const LENGTH: usize = 2 << 20;
    const LIMIT: usize = 100_000;
    /// Larger than the payload of any frame of an agent.
    const CHUNK: usize = 64 << 10;
    let local = Local::builder().start().await.unwrap();
    let destination = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let session = session(&local, destination.local_addr().unwrap().port()).await;
    let mut stream = session.open_stream().await.unwrap();
    let (mut end, _) = destination.accept().await.unwrap();
    end.write_all(&vec![7; LENGTH]).await.unwrap();
    drop(end);
    while session.stats().receive_bytes < LENGTH {
        sleep(Duration::from_millis(5)).await;
    }
    let (mut chunks, mut received) = (Vec::new(), 0);
    while stream.read_chunks(&mut chunks, LIMIT).await.unwrap() {
        let bytes: usize = chunks.drain(..).map(|chunk| chunk.len()).sum();
        assert!(bytes < LIMIT + CHUNK, "{bytes}");
        assert!(bytes >= LIMIT || received + bytes == LENGTH, "the read is smaller than possible: {bytes}");
        received += bytes;
    }
    assert_eq!(received, LENGTH);
    session.terminate().await;
}

#[tokio::test]
async fn several_senders_of_one_stream_do_not_forget_each_other() {
    const SENDERS: usize = 4;
    const CHUNKS: usize = 100;
    const CHUNK: usize = 64 << 10;
    let local = Local::builder().start().await.unwrap();
    let destination = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let session = session(&local, destination.local_addr().unwrap().port()).await;
    let stream = session.open_stream().await.unwrap();
    let senders = (0..SENDERS).map(|_| {
        let sender = stream.sender();
        tokio::spawn(async move {
            for _ in 0..CHUNKS {
                sender.write_chunk(Bytes::from(vec![7; CHUNK])).await.unwrap();
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let (mut end, _) = destination.accept().await.unwrap();
    // At first, all of them find the queue full.
    sleep(Duration::from_millis(300)).await;
    let mut received = vec![0; SENDERS * CHUNKS * CHUNK];
    timeout(Duration::from_secs(20), end.read_exact(&mut received)).await.unwrap().unwrap();
    for sender in senders {
        sender.await.unwrap();
    }
    session.terminate().await;
}

#[tokio::test]
async fn where_connections_take_turns_the_next_begins_when_one_ends() {
    let old = LocalTarget::new(TARGET).agent_version("3.0.196.0");
    let local = Local::builder().target(old).start().await.unwrap();
    let destination = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = destination.local_addr().unwrap().port();
    let received = tokio::spawn(async move {
        let mut received = Vec::new();
        for _ in 0..3 {
            let (mut stream, _) = destination.accept().await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            received.push(text);
        }
        received
    });
    let session = session(&local, port).await;
    let all = async {
        let mut one = session.open_stream().await.unwrap();
        for text in ["one", "two"] {
            one.write_all(text.as_bytes()).await.unwrap();
            // `open_stream` already waits for the next stream when this one ends.
            let (next, ()) = tokio::join!(session.open_stream(), async {
                tokio::task::yield_now().await;
                one.abandon();
            });
            one = next.unwrap();
        }
        one.write_all(b"six").await.unwrap();
        one.abandon();
        received.await.unwrap()
    };
    assert_eq!(timeout(Duration::from_secs(20), all).await.unwrap(), ["one", "two", "six"]);
    session.terminate().await;
}

#[tokio::test]
async fn a_sender_that_waits_for_room_hears_of_the_end_of_its_stream() {
    let local = Local::builder().start().await.unwrap();
    let destination = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let session = session(&local, destination.local_addr().unwrap().port()).await;
    for abandon in [true, false] {
        let stream = session.open_stream().await.unwrap();
        let sender = stream.sender();
        // The destination does not read.
        let writer =
            tokio::spawn(async move { while sender.write_chunk(Bytes::from(vec![7; 64 << 10])).await.is_ok() {} });
        sleep(Duration::from_millis(500)).await;
        match abandon {
            true => stream.abandon(),
            false => drop(stream),
        }
        timeout(Duration::from_secs(20), writer).await.unwrap().unwrap();
    }
    session.terminate().await;
}
