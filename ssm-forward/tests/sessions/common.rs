//! Clients of a local Session Manager.

use std::sync::Arc;

use ssm_forward::{AwsConfig, AwsCredentials, AwsProvider, Session, SessionConfig, StartRequest};
use ssm_local::Local;
use tokio::io::copy;
use tokio::net::TcpListener;

pub(crate) const TARGET: &str = "i-0123456789abcdef0";

pub(crate) async fn aws(local: &Local) -> AwsProvider {
    let environment = local.environment();
    let variable = |wanted| environment.iter().find(|(name, _)| *name == wanted).unwrap().1.clone();
    let credentials = AwsCredentials {
        access_key_id: variable("AWS_ACCESS_KEY_ID"),
        secret_access_key: variable("AWS_SECRET_ACCESS_KEY").into(),
        session_token: None,
    };
    let config = AwsConfig {
        profile: None,
        region: Some("us-east-1".into()),
        endpoint_url: Some(local.endpoint_url()),
        ca_bundle: None,
        credentials: Some(credentials),
        person: None,
    };
    AwsProvider::new(config).await.unwrap()
}

/// Returns a request for a session to this port of the node itself.
pub(crate) fn request(port: u16) -> StartRequest {
    StartRequest {
        target: TARGET.into(),
        document: Some("AWS-StartPortForwardingSession".into()),
        parameters: [("portNumber".to_owned(), vec![port.to_string()])].into(),
        ..StartRequest::default()
    }
}

pub(crate) async fn session(local: &Local, port: u16) -> Session {
    let provider = Arc::new(aws(local).await);
    Session::start(provider, &request(port), SessionConfig::default(), |_| {}, |_| {}).await.unwrap()
}

/// Starts an echo server. Returns its port.
pub(crate) async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = copy(&mut from, &mut to).await;
            });
        }
    });
    port
}
