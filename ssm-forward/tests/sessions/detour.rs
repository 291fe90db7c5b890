//! Sessions whose data channel uses a different path.

use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ssm_forward::{
    AwsProvider, BoxFuture, DataKey, HeaderMap, ProviderError, Session, SessionConfig, SessionNotice, SessionProvider,
    SessionTicket, StartRequest, Url,
};
use ssm_local::Local;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::common::{aws, request};

/// Sends the data channel through another port.
struct Detour {
    provider: AwsProvider,
    port: u16,
}

impl Detour {
    fn redirect(&self, mut ticket: SessionTicket) -> SessionTicket {
        let mut url = Url::parse(&ticket.stream_url).unwrap();
        url.set_port(Some(self.port)).unwrap();
        ticket.stream_url = url.into();
        ticket
    }
}

impl SessionProvider for Detour {
    fn start<'a>(&'a self, request: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        Box::pin(async { Ok(self.redirect(self.provider.start(request).await?)) })
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        Box::pin(async { Ok(self.redirect(self.provider.resume(session_id).await?)) })
    }

    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
        self.provider.terminate(session_id)
    }

    fn sign_upgrade<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        self.provider.sign_upgrade(url)
    }

    fn data_key<'a>(
        &'a self,
        key_id: &'a str,
        context: &'a std::collections::BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<DataKey, ProviderError>> {
        self.provider.data_key(key_id, context)
    }
}

/// Forwards a limited number of bytes of the first connection to the service. After that, it sends only pings to the client, so
/// that the path seems to work.
async fn carry(mut client: TcpStream, service: u16, first: bool) {
    const DEAF_AFTER: u64 = 300_000;
    let mut service = TcpStream::connect(("127.0.0.1", service)).await.unwrap();
    let (from_client, mut to_client) = client.split();
    let (mut from_service, mut to_service) = service.split();
    let limit = if first { DEAF_AFTER } else { u64::MAX };
    let mut heard = from_client.take(limit);
    tokio::select! {
        _ = copy(&mut heard, &mut to_service) => {}
        _ = copy(&mut from_service, &mut to_client) => return,
    }
    while first && copy(&mut Cursor::new([0x89, 0]), &mut to_client).await.is_ok() {
        sleep(Duration::from_millis(20)).await;
    }
}

async fn provider(local: &Local) -> Detour {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, service) = (listener.local_addr().unwrap().port(), local.local_addr().port());
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(carry(client, service, std::mem::take(&mut first)));
        }
    });
    Detour { provider: aws(local).await, port }
}

#[tokio::test]
async fn a_service_that_reads_no_more_but_still_talks_is_left_and_nothing_is_lost() {
    const LENGTH: usize = 2 << 20;
    let local = Local::builder().start().await.unwrap();
    let destination = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = destination.local_addr().unwrap().port();
    let received = tokio::spawn(async move {
        let (mut stream, _) = destination.accept().await.unwrap();
        let mut received = vec![0; LENGTH];
        stream.read_exact(&mut received).await.unwrap();
        received
    });
    let mut config = SessionConfig::default();
    config.liveness.ping_interval = Duration::from_millis(200);
    config.liveness.pong_timeout = Duration::from_millis(200);
    let causes: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = causes.clone();
    let on_notice = move |notice| {
        if let SessionNotice::Reconnecting { cause, .. } = notice {
            told.lock().unwrap().push(cause);
        }
    };
    let provider = Arc::new(provider(&local).await);
    let session = Session::start(provider, &request(port), config, |_| {}, on_notice).await.unwrap();
    let mut stream = session.open_stream().await.unwrap();
    let sent: Vec<u8> = (0..LENGTH).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let whole = async {
        stream.write_all(&sent).await.unwrap();
        received.await.unwrap()
    };
    assert!(timeout(Duration::from_secs(30), whole).await.unwrap() == sent);
    let causes = causes.lock().unwrap().clone();
    assert!(causes.first().is_some_and(|cause| cause.contains("no answer to pings")), "{causes:?}");
    session.terminate().await;
}
