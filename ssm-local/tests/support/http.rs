//! HTTP calls for the tests, signed with the credentials of a local Session Manager.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use ssm_local::Local;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Maximum time of any request on loopback.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends a request with these headers and the headers that HTTP requires. Returns the status and the body.
pub(crate) async fn send(local: &Local, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(local.local_addr()).await.unwrap();
    let host = if headers.to_ascii_lowercase().contains("host:") {
        String::new()
    } else {
        format!("Host: {}\r\n", local.local_addr())
    };
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Sends a request that is signed for a service with the credentials of `signer`.
pub(crate) async fn send_signed(
    local: &Local,
    signer: &Local,
    service: &str,
    (method, path): (&str, &str),
    target: Option<&str>,
    body: &str,
) -> (u16, String) {
    let target = target.map(|target| ("x-amz-target", target));
    let host = local.local_addr().to_string();
    let identity = credentials(signer);
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("us-east-1")
        .name(service)
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let signable = [("host", host.as_str())].into_iter().chain(target);
    let request = SignableRequest::new(method, path, signable, SignableBody::Bytes(body.as_bytes())).unwrap();
    let (signature, _) = sign(request, &params).unwrap().into_parts();
    let headers = target.into_iter().chain(signature.headers());
    let headers: String = headers.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    send(local, method, path, &headers, body).await
}

fn credentials(local: &Local) -> Identity {
    let environment = local.environment();
    let value = |wanted| environment.iter().find(|(name, _)| *name == wanted).unwrap().1.clone();
    Credentials::new(value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY"), None, None, "test").into()
}
