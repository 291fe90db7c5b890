//! A provider that uses a program's configuration of the AWS SDK.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use ssm_forward::{AwsProvider, ProviderErrorKind, SdkConfig, SessionProvider, StartRequest};

use crate::{Api, GRANTED};

#[derive(Clone, Debug, Default)]
struct Counting(Arc<AtomicUsize>);

impl ProvideCredentials for Counting {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        self.0.fetch_add(1, Ordering::Relaxed);
        future::ProvideCredentials::ready(Ok(Credentials::new("AKIDOFTHESDK", "made-up", None, None, "test")))
    }
}

fn builder() -> aws_types::sdk_config::Builder {
    SdkConfig::builder().behavior_version(BehaviorVersion::latest())
}

#[tokio::test]
async fn the_region_the_endpoint_and_the_credentials_are_those_of_the_sdk() {
    let (api, credentials) = (Api::answering("200 OK", GRANTED), Counting::default());
    let sdk = builder()
        .region(Region::new("eu-north-1"))
        .endpoint_url(&api.url)
        .credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
        .build();
    let provider = AwsProvider::from_sdk_config(&sdk).await.unwrap();
    assert_eq!(credentials.0.load(Ordering::Relaxed), 0, "credentials are only requested at the first call");
    let provider: Arc<dyn SessionProvider> = Arc::new(provider);
    for _ in 0..2 {
        let ticket = provider.start(&StartRequest::default()).await.unwrap();
        assert_eq!(ticket.session_id, "s-1");
    }
    assert_eq!(credentials.0.load(Ordering::Relaxed), 1, "credentials are kept");
    let requests = api.requests();
    assert!(
        requests[0].contains("Credential=AKIDOFTHESDK/") && requests[0].contains("/eu-north-1/ssm/"),
        "{requests:?}"
    );
}

#[tokio::test]
async fn a_malformed_endpoint_of_the_sdk_is_a_mistake_of_the_configuration() {
    let sdk = builder().region(Region::new("eu-north-1")).endpoint_url("not a url").build();
    let error = AwsProvider::from_sdk_config(&sdk).await.unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::Configuration);
}
