//! Destinations that do not answer a connection.

use std::sync::Arc;
use std::time::Duration;

use ssm_forward::{ForwardConfig, ForwardError, ForwardEvent, Forwarder, ListenAddr, LocalAddr, ProbeError};
use ssm_local::{Faults, Local};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::common::{aws, echo, request};

/// Timeout. It is longer than every step of these tests.
const PATIENCE: Duration = Duration::from_secs(20);
/// A fault that simulates dropped packets: the node's system does not give up while a test runs.
const DROPPED: &str = "slow-dial,by=1h";

async fn local(faults: &[&str]) -> Local {
    let faults = faults.iter().fold(Faults::new(), |faults, fault| faults.with(fault.parse().unwrap()));
    Local::builder().faults(faults).start().await.unwrap()
}

fn any_port() -> ListenAddr {
    ListenAddr::Tcp("127.0.0.1:0".parse().unwrap())
}

#[tokio::test]
async fn a_port_that_drops_packets_is_the_remote_ports_fault() {
    let local = local(&[DROPPED]).await;
    let mut config = ForwardConfig::default();
    config.wait_ready = true;
    config.connect_timeout = Duration::from_secs(2);
    let forwarder = Forwarder::builder(Arc::new(aws(&local).await), request(5432)).config(config);
    let forwarder = forwarder.bind(any_port()).await.unwrap();
    let ended = timeout(PATIENCE, forwarder.run(std::future::pending())).await.unwrap();
    let Err(error @ ForwardError::RemoteRefused { source: ProbeError::TimedOut(_), .. }) = ended else {
        panic!("{ended:?}")
    };
    let text = error.to_string();
    assert!(text.contains("port 5432 of i-0123456789abcdef0") && text.contains("security group"), "{text}");
}

/// Starts a forwarder that warns early. Returns its address and its warnings.
async fn impatient(local: &Local, port: u16) -> (String, mpsc::UnboundedReceiver<String>) {
    let mut config = ForwardConfig::default();
    config.answer_patience = Duration::from_millis(300);
    let (warnings, told) = mpsc::unbounded_channel();
    let forwarder = Forwarder::builder(Arc::new(aws(local).await), request(port))
        .config(config)
        .on_event(move |event| {
            if let ForwardEvent::Warning { text } = event {
                let _ = warnings.send(text);
            }
        })
        .bind(any_port())
        .await
        .unwrap();
    let LocalAddr::Tcp(address) = forwarder.local_addr() else { panic!("no TCP") };
    tokio::spawn(forwarder.run(std::future::pending()));
    (address.to_string(), told)
}

#[tokio::test]
async fn a_connection_without_an_answer_is_told_about() {
    let local = local(&[DROPPED]).await;
    let (address, mut told) = impatient(&local, 5432).await;
    let mut connections = Vec::new();
    for _ in 0..3 {
        connections.push(TcpStream::connect(&address).await.unwrap());
    }
    let text = timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert!(text.starts_with("connection 1 has had no answer from port 5432 of i-0123456789abcdef0"), "{text}");
    // The other connections have the same cause, and there is only one warning per minute.
    let more = timeout(Duration::from_secs(1), told.recv()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn a_connection_that_is_answered_is_not() {
    let local = local(&[]).await;
    let (address, mut told) = impatient(&local, echo().await).await;
    let mut connection = TcpStream::connect(&address).await.unwrap();
    connection.write_all(b"hello").await.unwrap();
    connection.read_exact(&mut [0; 5]).await.unwrap();
    let more = timeout(Duration::from_secs(1), told.recv()).await;
    assert!(more.is_err(), "{more:?}");
}
