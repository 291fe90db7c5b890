//! What a local program that has ended its sending side receives: the answer, or a reset.

use std::io::ErrorKind;
use std::time::Duration;

use ssm_forward::{ForwardConfig, ForwardEvent};
use ssm_local::{Local, LocalTarget};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::common::TARGET;
use crate::running::{PATIENCE, Running};

/// Sends a request, ends the sending side, and reads until the connection ends or fails.
async fn ask(running: &Running) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut program = TcpStream::connect(running.address).await.unwrap();
    program.write_all(b"?").await.unwrap();
    program.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let end = timeout(PATIENCE, program.read_to_end(&mut answer)).await.expect("no end");
    (answer, end.map(drop).map_err(|error| error.kind()))
}

#[tokio::test]
async fn a_far_side_that_stays_silent_is_told_as_a_reset_and_why() {
    for (answer, what) in [(&b""[..], "and never answered"), (b"a part", "and did not end the connection")] {
        let local = Local::builder().start().await.unwrap();
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = ForwardConfig::default();
        config.linger = Duration::from_secs(1);
        let mut running = Running::start(&local, server.local_addr().unwrap().port(), config, None).await;
        // Behaves like a server that continues its answer only when it sees the end of its input.
        let told = tokio::spawn(async move {
            let (mut stream, _) = server.accept().await.unwrap();
            stream.write_all(answer).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap()
        });
        assert_eq!(ask(&running).await, (answer.to_vec(), Err(ErrorKind::ConnectionReset)));
        let closed = running.until(|event| matches!(event, ForwardEvent::ConnectionClosed { .. })).await;
        let ForwardEvent::ConnectionClosed { error: Some(error), refused: false, .. } = closed else {
            panic!("{closed:?}")
        };
        assert!(error.contains(what), "{error}");
        let warning = running.until(|event| matches!(event, ForwardEvent::Warning { .. })).await;
        assert!(format!("{warning:?}").contains("reset after the linger"), "{warning:?}");
        assert_eq!(timeout(PATIENCE, told).await.unwrap().unwrap(), 1, "the server sees the end of its input");
    }
}

#[tokio::test]
async fn where_no_agent_tells_the_end_an_answer_with_pauses_arrives_and_ends() {
    let old = LocalTarget::new(TARGET).agent_version("3.0.196.0");
    let local = Local::builder().target(old).start().await.unwrap();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        for _ in 0..3 {
            stream.write_all(&[7; 100_000]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    });
    let running = Running::start(&local, port, ForwardConfig::default(), None).await;
    let (answer, end) = ask(&running).await;
    assert_eq!(end, Ok(()));
    assert_eq!(answer.len(), 300_000);
}
