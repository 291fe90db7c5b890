//! The whole tunnel in one process: a local program, the forwarder, the local Session Manager, an echo server.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ssm_forward::{
    AwsConfig, AwsCredentials, AwsProvider, ForwardEvent, Forwarder, ListenAddr, LocalAddr, StartRequest,
};
use ssm_local::{Local, LocalTarget};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

const TARGET: &str = "i-0123456789abcdef0";
const HOST: &str = "echo.internal";

/// A running tunnel. Its fields keep all tasks running during the measurement.
struct Tunnel {
    _local: Local,
    address: SocketAddr,
}

async fn tunnel() -> Tunnel {
    let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let port = echo.local_addr().expect("the listener is bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let local = Local::builder().target(LocalTarget::new(TARGET)).host(HOST, [Ipv4Addr::LOCALHOST]);
    let local = local.start().await.expect("a free port");
    let address = forward(&local, port).await;
    Tunnel { _local: local, address }
}

async fn forward(local: &Local, port: u16) -> SocketAddr {
    let mut variables: BTreeMap<_, _> = local.environment().into_iter().collect();
    let mut variable = |name| variables.remove(name).unwrap_or_default();
    let config = AwsConfig {
        profile: None,
        region: Some(variable("AWS_REGION")),
        endpoint_url: Some(local.endpoint_url()),
        ca_bundle: None,
        credentials: Some(AwsCredentials {
            access_key_id: variable("AWS_ACCESS_KEY_ID"),
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY").into(),
            session_token: None,
        }),
        person: None,
    };
    let provider = Arc::new(AwsProvider::new(config).await.expect("credentials are configured"));
    let parameters = [("host", HOST.to_owned()), ("portNumber", port.to_string())];
    let request = StartRequest {
        target: TARGET.into(),
        document: Some("AWS-StartPortForwardingSessionToRemoteHost".into()),
        parameters: parameters.into_iter().map(|(key, value)| (key.to_owned(), vec![value])).collect(),
        ..StartRequest::default()
    };
    let (events, mut ready) = mpsc::unbounded_channel();
    let forwarder = Forwarder::builder(provider, request).on_event(move |event| drop(events.send(event)));
    let forwarder = forwarder.bind(ListenAddr::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).await;
    let forwarder = forwarder.expect("a free port");
    tokio::spawn(forwarder.run(std::future::pending()));
    while let Some(event) = ready.recv().await {
        if let ForwardEvent::Ready { local: LocalAddr::Tcp(address), .. } = event {
            return address;
        }
    }
    panic!("the forwarder ended before it was ready");
}

/// Sends all bytes of `out` and waits until the echo has returned them.
async fn there_and_back(stream: &mut TcpStream, out: &[u8], back: &mut [u8]) {
    let (mut read, mut write) = stream.split();
    let (sent, got) = tokio::join!(write.write_all(out), read.read_exact(back));
    sent.expect("the tunnel accepts the bytes");
    got.expect("the tunnel returns the bytes");
}

fn echoes(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let tunnel = runtime.block_on(tunnel());
    let mut group = c.benchmark_group("tunnel, there and back");
    for (name, size) in [("1 byte", 1), ("1 KiB", 1 << 10), ("1 MiB", 1 << 20)] {
        let (out, mut back) = (vec![7; size], vec![0; size]);
        group.throughput(Throughput::Bytes(size as u64)).sample_size(20);
        let mut stream = runtime.block_on(TcpStream::connect(tunnel.address)).expect("the forwarder listens");
        stream.set_nodelay(true).expect("the connection is open");
        group.bench_function(name, |b| {
            b.iter(|| runtime.block_on(there_and_back(&mut stream, &out, &mut back)));
        });
        assert_eq!(out, back);
    }
    group.finish();
}

criterion_group!(tunnel_benches, echoes);
criterion_main!(tunnel_benches);
