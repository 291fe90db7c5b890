//! The sessions of a forwarder.

use std::sync::Arc;
use std::time::Duration;

use ssm_forward::{ForwardConfig, ForwardError, ForwardEvent, Forwarder, ListenAddr, PoolSize, SessionProvider};
use ssm_local::{Local, LocalTarget, Profile};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::common::{TARGET, aws, echo, request};
use crate::running::{PATIENCE, Running, connected, echoes, eventually, faults, server};

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
async fn a_connection_that_was_handed_in_is_counted_at_once() {
    let local = Local::builder().start().await.unwrap();
    let builder = Forwarder::builder(Arc::new(aws(&local).await), request(echo().await));
    let (forwarder, entrance) = builder.hand_in();
    let stats = forwarder.stats();
    let running = tokio::spawn(forwarder.run(std::future::pending()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    entrance.hand_in(listener.accept().await.unwrap().0).await.unwrap();
    assert_eq!(stats.snapshot().connections_open, 1);
    echoes(&mut stream).await;
    running.abort();
    let (late, _) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), running);
    drop(late);
    assert!(entrance.hand_in(listener.accept().await.unwrap().0).await.is_err());
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
    let (port, _) = server().await;
    let local = Local::builder().profile(Profile::Real).start().await.unwrap();
    let mut config = ForwardConfig::default();
    config.pool.size = PoolSize::Auto { max: 3 };
    config.pool.retire_after = Duration::from_secs(1);
    let mut running = Running::start(&local, port, config, None).await;
    let download = running.download().await;
    let mut second = running.connect(b'?').await;
    running.until(|event| matches!(event, ForwardEvent::SessionAdded { sessions: 2, max: 3, .. })).await;
    assert_eq!(timeout(PATIENCE, second.read_u8()).await.unwrap().unwrap(), b'?');
    drop(second);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(connected(&local), 2, "the next connection would have to share");
    download.abort();
    eventually("the spare session is terminated", || connected(&local) == 1).await;
    assert_eq!(local.sessions().len(), 2);
}

#[tokio::test]
async fn auto_starts_no_second_session_for_one_connection_however_busy_or_for_one_after_the_other() {
    let (port, _) = server().await;
    let local = Local::builder().profile(Profile::Real).start().await.unwrap();
    let running = Running::start(&local, port, ForwardConfig::default(), None).await;
    for _ in 0..20 {
        echoes(&mut running.connect(b'?').await).await;
    }
    let download = running.download().await;
    sleep(Duration::from_secs(2)).await;
    download.abort();
    assert_eq!(local.sessions().len(), 1);
}

#[tokio::test]
async fn connections_that_begin_together_get_a_session_each() {
    const CONNECTIONS: usize = 8;
    let (port, _) = server().await;
    let local = Local::builder().profile(Profile::Real).start().await.unwrap();
    let mut config = ForwardConfig::default();
    config.pool.share_after = PATIENCE;
    let mut running = Running::start(&local, port, config, None).await;
    let mut downloads = Vec::new();
    for _ in 0..CONNECTIONS {
        downloads.push(running.download().await);
    }
    eventually("a session for each", || connected(&local) == CONNECTIONS).await;
    let aws = aws(&local).await;
    for session in local.sessions() {
        aws.terminate(&session.id).await.unwrap();
    }
    for _ in 0..CONNECTIONS {
        let lost = running.until(|event| matches!(event, ForwardEvent::SessionLost { .. })).await;
        assert!(matches!(lost, ForwardEvent::SessionLost { connections: 1, .. }), "{lost:?}");
    }
}

#[tokio::test]
async fn connections_share_at_once_where_no_further_session_can_be_had() {
    let (port, _) = server().await;
    let local = Local::builder().start().await.unwrap();
    let mut running = Running::start(&local, port, ForwardConfig::default(), None).await;
    local.set_faults(faults(&["api,operation=StartSession,answer=forbidden"])).await;
    let (mut one, mut other) = (running.connect(b'1').await, running.connect(b'2').await);
    let is_told =
        |event: &ForwardEvent| matches!(event, ForwardEvent::Warning { text } if text.contains("no further session"));
    running.until(is_told).await;
    for (stream, first) in [(&mut one, b'1'), (&mut other, b'2')] {
        assert_eq!(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap(), first);
    }
    // The start is neither retried immediately nor reported again.
    let before = Instant::now();
    let (mut one, mut other) = (running.connect(b'?').await, running.connect(b'?').await);
    echoes(&mut one).await;
    echoes(&mut other).await;
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    while let Ok(event) = running.events.try_recv() {
        assert!(!is_told(&event), "{event:?}");
    }
}

#[tokio::test]
async fn where_an_agent_carries_one_connection_at_a_time_the_next_gets_a_session_of_its_own() {
    let (port, _) = server().await;
    let old = LocalTarget::new(TARGET).agent_version("3.0.196.0");
    let local = Local::builder().target(old).start().await.unwrap();
    let running = Running::start(&local, port, ForwardConfig::default(), None).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = running.connect(b'?').await;
        assert_eq!(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap(), b'?');
        streams.push(stream);
    }
    assert_eq!(connected(&local), 3);
}
