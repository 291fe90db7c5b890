use std::sync::Arc;
use std::time::Duration;

use ssm_local::Local;

use super::PoolSize;
use super::state::{Limits, SharedPool};
use crate::{AwsConfig, AwsCredentials, AwsProvider, Session, SessionConfig, StartRequest};

async fn session(local: &Local) -> Arc<Session> {
    let environment = local.environment();
    let variable = |wanted| environment.iter().find(|(name, _)| *name == wanted).unwrap().1.clone();
    let config = AwsConfig {
        region: Some("us-east-1".into()),
        endpoint_url: Some(local.endpoint_url()),
        credentials: Some(AwsCredentials {
            access_key_id: variable("AWS_ACCESS_KEY_ID"),
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY").into(),
            session_token: None,
        }),
        ..AwsConfig::default()
    };
    let request = StartRequest {
        target: "i-0123456789abcdef0".into(),
        document: Some("AWS-StartPortForwardingSession".into()),
        parameters: [("portNumber".to_owned(), vec!["9".to_owned()])].into(),
        ..StartRequest::default()
    };
    let provider = Arc::new(AwsProvider::new(config).await.unwrap());
    Arc::new(Session::start(provider, &request, SessionConfig::default(), |_| {}, |_| {}).await.unwrap())
}

/// The pool can check at any time whether it needs another session. If it did so between a connection's choice of a session and the
/// end of its demand, it would start a second session for this single connection, because the first session is busy with it.
#[tokio::test]
async fn the_demand_of_a_connection_ends_with_its_choice() {
    let local = Local::builder().start().await.unwrap();
    let hold = Duration::from_secs(60);
    let shared = Arc::new(SharedPool::new(Limits {
        size: PoolSize::Auto { max: 8 },
        share_after: Duration::from_secs(3),
        hold,
    }));
    let (number, _) = shared.join();
    let mut demand = Some(shared.demand());
    shared.ready(number, session(&local).await);
    let (_, _lease) = shared.choose(Duration::ZERO, &mut demand).ok().unwrap();
    assert!(demand.is_none());
    assert!(!shared.needs_member());
    // Another connection would have to share, so a new session is needed.
    let other = shared.demand();
    assert!(shared.needs_member());
    drop(other);
    assert!(!shared.needs_member());
}
