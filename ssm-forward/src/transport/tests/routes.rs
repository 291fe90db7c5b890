//! Tests of the routes to a host: TLS and trusted roots, proxies of each kind.

use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsAcceptor;

use super::*;

fn acceptor(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> TlsAcceptor {
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Sends the text through an encrypted WebSocket and expects its echo.
async fn says(url: &str, options: &TransportOptions, text: &'static str) {
    let mut transport = open(url, options).await.unwrap();
    transport.start_send(Bytes::from_static(text.as_bytes())).unwrap();
    flush(&mut transport).await;
    assert_eq!(receive(&mut transport).await.unwrap(), text);
}

/// Starts a TLS server. Returns its port.
async fn tls_server(acceptor: TlsAcceptor) -> u16 {
    server(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                echo(stream).await;
            }
        }
    })
    .await
}

/// Starts a TLS server whose certificate is trusted only through the bundle. Returns its port and the bundle.
async fn tls_echo(name: &str) -> (u16, tempfile::NamedTempFile) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name.to_owned()]).unwrap();
    let bundle = pem_file(&cert.pem());
    (tls_server(acceptor(vec![cert.der().clone()], &signing_key)).await, bundle)
}

fn pem_file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// Uses a company's CA, like the one of a TLS-intercepting proxy, and a server with a certificate that this CA has signed.
#[tokio::test]
async fn who_signed_what_is_not_trusted_is_told_with_what_to_do() {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "Proxy Root");
    params.distinguished_name.push(DnType::OrganizationName, "Example\u{1b}[31m Ltd");
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    let port = tls_server(acceptor(vec![leaf.der().clone()], &key)).await;

    let error = refusal(&format!("wss://localhost:{port}/"), &direct()).await.to_string();
    for part in ["CN=Proxy Root", "probably a proxy", "--ca-bundle", "AWS_CA_BUNDLE", "ca_bundle in the AWS profile"] {
        assert!(error.contains(part), "no {part} in {error}");
    }
    let bundle = pem_file(&root.pem());
    let trusting = TransportOptions { ca_bundle: Some(bundle.path().into()), ..direct() };
    says(&format!("wss://localhost:{port}/"), &trusting, "secret").await;
}

#[tokio::test]
async fn the_ca_bundle_is_trusted_and_nobody_else() {
    let (port, bundle) = tls_echo("localhost").await;
    let trusting = TransportOptions { ca_bundle: Some(bundle.path().into()), ..direct() };
    says(&format!("wss://localhost:{port}/"), &trusting, "secret").await;

    let error = refusal(&format!("wss://localhost:{port}/"), &direct()).await;
    assert!(error.to_string().contains("rcgen self signed") && error.to_string().contains("AWS_CA_BUNDLE"), "{error}");
    let error = refusal(&format!("wss://127.0.0.1:{port}/"), &trusting).await;
    assert!(error.to_string().contains("TLS"), "{error}");
    let missing = TransportOptions { ca_bundle: Some("/nonexistent.pem".into()), ..direct() };
    let error = refusal(&format!("wss://localhost:{port}/"), &missing).await;
    assert!(error.to_string().contains("the CA bundle /nonexistent.pem: No such file"), "{error}");
}

/// Starts a proxy that connects every tunnel to `target` on this machine, and reports the requests.
async fn proxy_to(target: u16) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (asked, seen) = tokio::sync::mpsc::unbounded_channel();
    let port = server(move |mut stream| {
        let asked = asked.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            asked.send(String::from_utf8(head).unwrap()).unwrap();
            stream.write_all(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n").await.unwrap();
            let mut onwards = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut onwards).await;
        }
    })
    .await;
    (port, seen)
}

#[tokio::test]
async fn other_hosts_are_reached_through_the_proxy_by_name() {
    let (target, bundle) = tls_echo("ssm.invalid").await;
    let (proxy, mut seen) = proxy_to(target).await;
    let proxies = Proxies::all(&format!("http://user:pa%20ss@127.0.0.1:{proxy}"), "");
    let options = TransportOptions { proxies, ca_bundle: Some(bundle.path().into()), ..direct() };
    says("wss://ssm.invalid/v1", &options, "through").await;
    let asked = seen.recv().await.unwrap();
    assert_eq!(
        asked,
        "CONNECT ssm.invalid:443 HTTP/1.1\r\nHost: ssm.invalid:443\r\nProxy-Authorization: Basic dXNlcjpwYSBzcw==\r\n\r\n"
    );
}

/// Starts a server that forwards bytes to a port of this machine, in both directions. Returns its own port and the recorded bytes.
async fn recorder(to: u16) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let seen = Arc::new(Mutex::default());
    let recorded = seen.clone();
    let port = server(move |stream| {
        let seen = seen.clone();
        async move {
            let onwards = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            let ((from, back), (answers, onwards)) = (stream.into_split(), onwards.into_split());
            tokio::join!(record(from, onwards, &seen), record(answers, back, &seen));
        }
    })
    .await;
    (port, recorded)
}

async fn record(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, seen: &Mutex<Vec<u8>>) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        seen.lock().unwrap().extend(&bytes[..length]);
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_proxy_that_passes_tls_on_sees_the_host_and_nothing_else() {
    let (target, bundle) = tls_echo("ssm.invalid").await;
    let (proxy, _asked) = proxy_to(target).await;
    let (proxy, seen) = recorder(proxy).await;
    let proxies = Proxies::all(&format!("http://127.0.0.1:{proxy}"), "");
    let options = TransportOptions { proxies, ca_bundle: Some(bundle.path().into()), ..direct() };
    says("wss://ssm.invalid/hush-path?hush=token", &options, "hush-content").await;
    let seen = seen.lock().unwrap();
    let has = |text: &str| seen.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(has("CONNECT ssm.invalid:443") && !has("hush"), "{}", String::from_utf8_lossy(&seen));
}

#[tokio::test]
async fn this_machine_is_reached_past_the_proxy() {
    let port = server(echo).await;
    let options = TransportOptions { proxies: Proxies::all("http://127.0.0.1:1", ""), ..direct() };
    open(&format!("ws://127.0.0.1:{port}/"), &options).await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    for (answer, login, text) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "", "does not allow a tunnel to ssm.invalid:443 (HTTP 403)"),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "", "could not open a tunnel to ssm.invalid:443 (HTTP 503)"),
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "", "requires a login: put USER:PASSWORD@"),
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "u:wrong@", "refuses the user name or the password"),
        ("nonsense\r\n\r\n", "", "does not answer as an HTTP proxy"),
        ("", "", "closed the connection instead of answering"),
    ] {
        let place = format!("127.0.0.1:{}", saying(answer).await);
        let proxies = Proxies::all(&format!("http://{login}{place}"), "");
        let error = refusal("wss://ssm.invalid/", &TransportOptions { proxies, ..direct() }).await.to_string();
        assert_eq!(error.split(text).next(), Some(&*format!("the proxy {place} (set by the program) ")), "{error}");
        assert!(!error.contains("wrong"), "{error}");
    }
}

#[tokio::test]
async fn a_proxy_that_cannot_be_reached_is_named() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for scheme in ["http", "https", "socks5"] {
        let proxies = Proxies::all(&format!("{scheme}://user:secret@{closed}"), "");
        let error = refusal("wss://ssm.invalid/", &TransportOptions { proxies, ..direct() }).await.to_string();
        assert!(error.starts_with(&format!("cannot reach the proxy {closed} (set by the program): ")), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

/// The untrusted certificate may be the proxy's own or, through the proxy, the host's.
#[tokio::test]
async fn behind_a_proxy_the_hop_that_is_not_trusted_is_named() {
    let (target, _) = tls_echo("ssm.invalid").await;
    let (proxy, _seen) = proxy_to(target).await;
    let proxies = Proxies::all(&format!("http://127.0.0.1:{proxy}"), "");
    let error = refusal("wss://ssm.invalid/", &TransportOptions { proxies, ..direct() }).await.to_string();
    let start = format!("cannot reach ssm.invalid:443 through the proxy 127.0.0.1:{proxy} (set by the program): TLS: ");
    assert!(error.starts_with(&start), "{error}");
    let proxies = Proxies::all(&format!("https://127.0.0.1:{target}"), "");
    let error = refusal("wss://ssm.invalid/", &TransportOptions { proxies, ..direct() }).await.to_string();
    assert!(
        error.starts_with(&format!("cannot reach the proxy 127.0.0.1:{target} (set by the program): TLS: ")),
        "{error}"
    );
}

/// Starts a server whose connections stay open and send nothing.
async fn silent() -> u16 {
    server(|stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await
}

#[tokio::test]
async fn a_silent_proxy_is_given_up_and_named() {
    let port = silent().await;
    for (scheme, text) in [
        ("http", "did not answer a request for ssm.invalid:443 within 0.2 s"),
        ("socks5", "did not answer a request for ssm.invalid:443 within 0.2 s"),
        ("https", "TLS: the handshake was not answered within 0.2 s"),
    ] {
        let proxies = Proxies::all(&format!("{scheme}://127.0.0.1:{port}"), "");
        let options = TransportOptions { connect_timeout: Duration::from_millis(200), proxies, ca_bundle: None };
        let error = refusal("wss://ssm.invalid/", &options).await.to_string();
        assert!(error.contains(&format!("the proxy 127.0.0.1:{port} (set by the program)")), "{error}");
        assert!(error.ends_with(text), "{error}");
    }
}

/// Runs in virtual time, with a longer timeout for all steps together than for each step.
#[tokio::test(start_paused = true)]
async fn each_step_has_a_limit_of_its_own() {
    let port = silent().await;
    let options = |proxy: &str| TransportOptions {
        connect_timeout: Duration::from_secs(600),
        proxies: if proxy.is_empty() {
            Proxies::none()
        } else {
            Proxies::all(&format!("{proxy}://127.0.0.1:{port}"), "")
        },
        ca_bundle: None,
    };
    let own = format!("127.0.0.1:{port}/");
    for (proxy, url, text, limit) in [
        ("http", "wss://ssm.invalid/", "did not answer a request for ssm.invalid:443", steps::PROXY),
        ("socks5", "wss://ssm.invalid/", "did not answer a request for ssm.invalid:443", steps::PROXY),
        ("https", "wss://ssm.invalid/", "TLS: the handshake was not answered", steps::TLS),
        ("", &format!("wss://{own}"), "TLS: the handshake was not answered", steps::TLS),
        ("", &format!("ws://{own}"), "the upgrade to a WebSocket was not answered", steps::UPGRADE),
    ] {
        let error = refusal(url, &options(proxy)).await.to_string();
        assert!(error.ends_with(&format!("{text} within {:.1} s", limit.as_secs_f32())), "{error}");
    }
}

#[tokio::test]
async fn the_head_of_an_upgrade_has_an_end() {
    let port = server(|mut stream| async move {
        let header = [b"x: ", &[b'y'; 1000][..], b"\r\n"].concat();
        let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n").await;
        while stream.write_all(&header).await.is_ok() {}
    })
    .await;
    let error = refusal(&format!("ws://127.0.0.1:{port}/"), &direct()).await;
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error:?}");
    assert!(!error.to_string().contains("within"), "{error}");
}

#[tokio::test]
async fn the_answer_of_a_proxy_has_an_end() {
    let port = server(|mut stream| async move {
        let header = [b"x: ", &[b'y'; 1000][..], b"\r\n"].concat();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(&header).await.is_ok() {}
    })
    .await;
    let proxies = Proxies::all(&format!("http://127.0.0.1:{port}"), "");
    let error = refusal("wss://ssm.invalid/", &TransportOptions { proxies, ..direct() }).await.to_string();
    assert!(error.contains("longer than 16 KiB"), "{error}");
}

/// Starts a SOCKS proxy that connects every tunnel to `target` on this machine. With a login, it accepts only that login. It
/// reports the requested host and port.
async fn socks_to(
    target: u16,
    login: Option<(&'static str, &'static str)>,
) -> (u16, tokio::sync::mpsc::UnboundedReceiver<(String, u16)>) {
    let (asked, seen) = tokio::sync::mpsc::unbounded_channel();
    let port = server(move |mut stream| {
        let asked = asked.clone();
        async move {
            let asked_for = socks_handshake(&mut stream, login).await;
            let Ok(Some(place)) = asked_for else { return };
            asked.send(place).unwrap();
            let mut onwards = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut onwards).await;
        }
    })
    .await;
    (port, seen)
}

/// Performs the server's part of RFC 1928 and 1929.
async fn socks_handshake(
    stream: &mut TcpStream,
    login: Option<(&str, &str)>,
) -> std::io::Result<Option<(String, u16)>> {
    async fn text(stream: &mut TcpStream) -> std::io::Result<String> {
        let length = stream.read_u8().await?;
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await?;
        Ok(String::from_utf8(bytes).unwrap())
    }
    if stream.read_u8().await? != 5 {
        return Ok(None);
    }
    let methods = text(stream).await?.into_bytes();
    let method = if login.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        stream.write_all(&[5, 0xff]).await?;
        return Ok(None);
    }
    stream.write_all(&[5, method]).await?;
    if let Some((user, password)) = login {
        assert_eq!(stream.read_u8().await?, 1);
        let good = (text(stream).await?.as_str(), text(stream).await?.as_str()) == (user, password);
        stream.write_all(&[1, u8::from(!good)]).await?;
        if !good {
            return Ok(None);
        }
    }
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    assert_eq!(head, [5, 1, 0, 3], "connect to a name");
    let place = (text(stream).await?, stream.read_u16().await?);
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    Ok(Some(place))
}

#[tokio::test]
async fn a_socks_proxy_looks_the_name_up() {
    let (target, bundle) = tls_echo("ssm.invalid").await;
    for (scheme, login, url) in [("socks5", None, ""), ("socks5h", Some(("user", "pa ss")), "user:pa%20ss@")] {
        let (proxy, mut seen) = socks_to(target, login).await;
        let proxies = Proxies::all(&format!("{scheme}://{url}127.0.0.1:{proxy}"), "");
        let options = TransportOptions { proxies, ca_bundle: Some(bundle.path().into()), ..direct() };
        says("wss://ssm.invalid/v1", &options, "through").await;
        assert_eq!(seen.recv().await.unwrap(), ("ssm.invalid".to_owned(), 443));
    }
    for (url, part) in [("", "requires a login"), ("user:wrong@", "refuses the user name or the password")] {
        let (proxy, _seen) = socks_to(target, Some(("user", "pa ss"))).await;
        let proxies = Proxies::all(&format!("socks5://{url}127.0.0.1:{proxy}"), "");
        let error = refusal("wss://ssm.invalid/", &TransportOptions { proxies, ..direct() }).await.to_string();
        assert!(error.contains(part) && error.contains("set by the program") && !error.contains("wrong"), "{error}");
    }
}

#[tokio::test]
async fn a_proxy_may_be_spoken_to_over_tls() {
    let (target, bundle) = tls_echo("ssm.invalid").await;
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let acceptor = acceptor(vec![cert.der().clone()], &signing_key);
    let proxy = server(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            assert!(head.starts_with(b"CONNECT ssm.invalid:443 "));
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut onwards = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut onwards).await;
        }
    })
    .await;
    let both = pem_file(&(std::fs::read_to_string(bundle.path()).unwrap() + &cert.pem()));
    let proxies = Proxies::all(&format!("https://localhost:{proxy}"), "");
    let options = TransportOptions { proxies, ca_bundle: Some(both.path().into()), ..direct() };
    says("wss://ssm.invalid/v1", &options, "through").await;
}
