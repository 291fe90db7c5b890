//! Your own session provider. This one adds an audit line to every call that starts, resumes or terminates a session, and passes
//! the calls themselves to another provider. In the same way, a provider can get its sessions from a service of your company
//! instead of the AWS API.
//!
//! ```text
//! cargo run -p ssm-forward --example custom_provider
//! ```

#![expect(clippy::print_stdout, reason = "the output is the purpose of the example")]

use std::error::Error;
use std::sync::Arc;

use ssm_forward::{
    AwsConfig, AwsCredentials, AwsProvider, BoxFuture, HeaderMap, ProviderError, Session, SessionConfig,
    SessionProvider, SessionTicket, StartRequest, Url,
};
use ssm_local::Local;

struct Audited<P> {
    inner: P,
    who: &'static str,
}

impl<P: SessionProvider> SessionProvider for Audited<P> {
    fn start<'a>(&'a self, request: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        Box::pin(async move {
            let ticket = self.inner.start(request).await?;
            // The ticket's token is secret, its id is not.
            println!("audit: {} started {} on {}", self.who, ticket.session_id, request.target);
            Ok(ticket)
        })
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        println!("audit: {} resumes {session_id}", self.who);
        self.inner.resume(session_id)
    }

    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
        println!("audit: {} ends {session_id}", self.who);
        self.inner.terminate(session_id)
    }

    fn sign_upgrade<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        self.inner.sign_upgrade(url)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let local = Local::builder().fixed_credentials("AKIAEXAMPLE", "example").ports_only().start().await?;
    let config = AwsConfig {
        region: Some("us-east-1".into()),
        endpoint_url: Some(local.endpoint_url()),
        credentials: Some(AwsCredentials {
            access_key_id: "AKIAEXAMPLE".into(),
            secret_access_key: "example".into(),
            session_token: None,
        }),
        ..AwsConfig::default()
    };
    let provider = Audited { inner: AwsProvider::new(config).await?, who: "alice" };
    let request = StartRequest::to_port("i-0123456789abcdef0", 22);
    let config = SessionConfig::default();
    let session = Session::start(Arc::new(provider), &request, config, |_id| {}, |_notice| {}).await?;
    session.terminate().await;
    local.shutdown().await;
    Ok(())
}
