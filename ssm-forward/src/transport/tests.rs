//! Tests of the WebSocket with small servers on this machine, correct and faulty ones.

mod routes;

use std::future::poll_fn;
use std::time::Instant;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::*;

/// Serves each connection of a new port with `serve`. Returns the port.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// Answers every connection with `text` and closes it.
async fn saying(text: &'static str) -> u16 {
    server(move |mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(text.as_bytes()).await;
    })
    .await
}

/// Opens a WebSocket to a server that never sends data.
pub(crate) async fn silent() -> Transport {
    let port = server(|stream| async move {
        let mut socket = accept_async(stream).await.unwrap();
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
    })
    .await;
    open(&format!("ws://127.0.0.1:{port}/"), &direct()).await.unwrap()
}

async fn echo<S>(stream: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut socket = accept_async(stream).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_binary() || message.is_text()) && socket.send(message).await.is_err() {
            break;
        }
    }
}

fn direct() -> TransportOptions {
    TransportOptions { connect_timeout: Duration::from_secs(5), proxies: Proxies::none(), ca_bundle: None }
}

async fn open(url: &str, options: &TransportOptions) -> Result<Transport, TransportError> {
    let url = StreamUrl::parse(url, &StreamUrlPolicy::AnyHost).unwrap();
    connect(&url, HeaderMap::new(), options).await
}

async fn open_port(port: u16) -> Result<Transport, TransportError> {
    open(&format!("ws://127.0.0.1:{port}/"), &direct()).await
}

async fn receive(transport: &mut Transport) -> Result<Bytes, TransportError> {
    loop {
        let next = poll_fn(|cx| transport.poll_recv(cx));
        if let Incoming::Binary(message) = timeout(Duration::from_secs(5), next).await.unwrap()? {
            return Ok(message);
        }
    }
}

async fn flush(transport: &mut Transport) {
    let flushed = poll_fn(|cx| match transport.poll_flush(cx) {
        Ok(poll) => poll.map(Ok),
        Err(error) => Poll::Ready(Err(error)),
    });
    timeout(Duration::from_secs(5), flushed).await.unwrap().unwrap();
}

/// Returns the error of an attempt that must fail.
async fn refusal(url: &str, options: &TransportOptions) -> TransportError {
    let error = open(url, options).await.err().unwrap_or_else(|| panic!("{url} was opened"));
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

#[tokio::test]
async fn messages_and_pings_go_both_ways() {
    let mut transport = open_port(server(echo).await).await.unwrap();
    transport.send_text("{}".into()).unwrap();
    transport.start_send(Bytes::from_static(b"one")).unwrap();
    transport.start_send(Bytes::from_static(b"two")).unwrap();
    flush(&mut transport).await;
    for expected in ["{}", "one", "two"] {
        assert_eq!(receive(&mut transport).await.unwrap(), expected);
    }
    transport.start_ping().unwrap();
    flush(&mut transport).await;
    let sign = poll_fn(|cx| transport.poll_recv(cx));
    assert!(matches!(timeout(Duration::from_secs(5), sign).await.unwrap(), Ok(Incoming::Pong)));
    timeout(Duration::from_secs(5), poll_fn(|cx| transport.poll_close(cx))).await.unwrap();
}

#[tokio::test]
async fn the_upgrade_carries_the_headers_and_the_query_to_the_letter() {
    let (asked, mut seen) = tokio::sync::mpsc::channel(1);
    let port = server(move |stream| {
        let asked = asked.clone();
        async move {
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                stream.read_line(&mut head).await.unwrap();
            }
            asked.send(head).await.unwrap();
        }
    })
    .await;
    let text = format!("ws://127.0.0.1:{port}/v1/data-channel/s?role=publish_subscribe&cell-number=A+b/c==");
    let url = StreamUrl::parse(&text, &StreamUrlPolicy::default()).unwrap();
    let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, http::HeaderValue::from_static("AWS4"))]);
    assert!(connect(&url, headers, &direct()).await.is_err());
    let head = seen.recv().await.unwrap().to_ascii_lowercase();
    assert!(
        head.starts_with("get /v1/data-channel/s?role=publish_subscribe&cell-number=a+b/c== http/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nauthorization: aws4\r\n") && head.contains(&format!("\r\nhost: 127.0.0.1:{port}\r\n")));
    for absent in ["origin:", "sec-websocket-extensions:", "sec-websocket-protocol:"] {
        assert!(!head.contains(absent), "{head}");
    }
}

#[tokio::test]
async fn a_refused_upgrade_tells_its_status_and_whether_to_try_again() {
    for (answer, retryable, hint) in [
        ("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", false, "400"),
        ("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", true, "401; the credentials"),
        (
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
            true,
            "403; the credentials need ssmmessages:OpenDataChannel",
        ),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false, "404; the session does not exist"),
        ("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n", false, "410; the session does not exist"),
        ("HTTP/1.1 302 Found\r\nlocation: ws://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", true, "302"),
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", true, "503; the service failed"),
    ] {
        let port = saying(answer).await;
        let error = refusal(&format!("ws://127.0.0.1:{port}/"), &direct()).await;
        assert!(matches!(error, TransportError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(&format!("127.0.0.1 refused the data channel with HTTP {hint}")), "{error}");
        assert_eq!(error.is_retryable(), retryable, "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_none_is_no_panic() {
    for text in ["", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n", "\0\u{1}\u{2}"] {
        let port = saying(text).await;
        let error = refusal(&format!("ws://127.0.0.1:{port}/"), &direct()).await;
        assert!(matches!(error, TransportError::Unreachable { .. }), "{error:?}");
        let error = refusal(&format!("wss://127.0.0.1:{port}/"), &direct()).await;
        assert!(error.to_string().contains("TLS"), "{error}");
    }
}

#[tokio::test]
async fn an_unanswered_upgrade_ends_in_time() {
    let port = server(|stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let since = Instant::now();
    let options = TransportOptions { connect_timeout: Duration::from_millis(300), ..direct() };
    for (scheme, step) in [("ws", "the upgrade to a WebSocket"), ("wss", "TLS: the handshake")] {
        let error = refusal(&format!("{scheme}://127.0.0.1:{port}/"), &options).await.to_string();
        assert!(error.contains("cannot reach 127.0.0.1") && error.contains(step), "{error}");
        assert!(error.ends_with("was not answered within 0.3 s"), "{error}");
    }
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
}

#[tokio::test]
async fn nobody_listens_and_no_such_name() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error = refusal(&format!("ws://127.0.0.1:{port}/"), &direct()).await;
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")) && error.is_retryable(), "{error}");
    let error = refusal("ws://nowhere.invalid/", &direct()).await;
    assert!(error.to_string().contains("nowhere.invalid"), "{error}");
}

/// `localhost` often resolves to `::1` first, on which no server listens.
#[tokio::test]
async fn every_address_of_a_name_is_tried() {
    let port = server(echo).await;
    let mut transport = open(&format!("ws://localhost:{port}/"), &direct()).await.unwrap();
    transport.start_send(Bytes::from_static(b"x")).unwrap();
    flush(&mut transport).await;
    assert_eq!(receive(&mut transport).await.unwrap(), "x");
}

#[tokio::test]
async fn how_it_ended_is_told() {
    let closing = server(|stream| async move {
        let reason = CloseFrame { code: 1000.into(), reason: "Bye".into() };
        let _ = accept_async(stream).await.unwrap().close(Some(reason)).await;
    })
    .await;
    let hanging_up = server(|stream| async move { drop(accept_async(stream).await.unwrap()) }).await;
    let resetting = server(|stream| async move {
        let socket = accept_async(stream).await.unwrap();
        socket2::SockRef::from(socket.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    for (port, text) in [
        (closing, "closed by the service: 1000 Bye"),
        (hanging_up, "broke: the service closed the connection without a reason"),
        (resetting, "broke: reset by the service"),
    ] {
        let mut transport = open_port(port).await.unwrap();
        let error = receive(&mut transport).await.unwrap_err();
        assert!(error.to_string().ends_with(text) && error.is_retryable(), "{error}");
    }
}

#[tokio::test]
async fn a_message_beyond_the_limit_ends_it() {
    let port = server(|stream| async move {
        let mut socket = accept_async(stream).await.unwrap();
        let _ = socket.send(Message::binary(vec![0; MAX_MESSAGE + 1])).await;
        let _ = socket.next().await;
    })
    .await;
    let error = receive(&mut open_port(port).await.unwrap()).await.unwrap_err();
    assert!(matches!(error, TransportError::Broken(_)), "{error:?}");
}

/// If the service does not read, its data must still be received, and vice versa.
#[tokio::test]
async fn reading_goes_on_while_writing_is_blocked() {
    let (resume, wait) = tokio::sync::watch::channel(false);
    let port = server(move |stream| {
        let mut wait = wait.clone();
        async move {
            let mut socket = accept_async(stream).await.unwrap();
            for number in 0..100_u8 {
                socket.send(Message::binary(vec![number; 1000])).await.unwrap();
            }
            wait.wait_for(|go| *go).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if message.is_text() {
                    socket.send(message).await.unwrap();
                }
            }
        }
    })
    .await;
    let mut transport = open_port(port).await.unwrap();
    let filled = poll_fn(|cx| {
        for _ in 0..100_000 {
            match transport.poll_ready(cx) {
                Ok(Poll::Ready(())) => transport.start_send(Bytes::from(vec![0; 1024])).unwrap(),
                Ok(Poll::Pending) => return Poll::Ready(true),
                Err(error) => panic!("{error}"),
            }
        }
        Poll::Ready(false)
    });
    assert!(filled.await, "100 MB were accepted although the peer does not read");
    for number in 0..100_u8 {
        assert_eq!(receive(&mut transport).await.unwrap(), vec![number; 1000]);
    }
    resume.send(true).unwrap();
    flush(&mut transport).await;
    transport.send_text("last".into()).unwrap();
    flush(&mut transport).await;
    assert_eq!(receive(&mut transport).await.unwrap(), "last");
}

#[tokio::test]
async fn messages_are_gathered_until_the_flush() {
    const MESSAGES: usize = 50;
    let port = server(|mut stream| async move {
        let mut key = String::new();
        let mut lines = BufReader::new(&mut stream).lines();
        while let Some(line) = lines.next_line().await.unwrap().filter(|line| !line.is_empty()) {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("sec-websocket-key: ") {
                key = line[line.len() - value.len()..].to_owned();
            }
        }
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        let head = format!(
            "HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut buffer = vec![0; 1 << 16];
        let first = stream.read(&mut buffer).await.unwrap();
        let text = format!("{first}");
        let frame = [&[0x82, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        stream.write_all(&frame).await.unwrap();
        let _ = stream.read(&mut buffer).await;
    })
    .await;
    let mut transport = open_port(port).await.unwrap();
    for _ in 0..MESSAGES {
        assert!(poll_fn(|cx| Poll::Ready(transport.poll_ready(cx))).await.unwrap().is_ready());
        transport.start_send(Bytes::from_static(&[7; 100])).unwrap();
    }
    assert!(
        timeout(Duration::from_millis(50), receive(&mut transport)).await.is_err(),
        "data was sent before the flush"
    );
    flush(&mut transport).await;
    let first: usize = std::str::from_utf8(&receive(&mut transport).await.unwrap()).unwrap().parse().unwrap();
    assert_eq!(first, MESSAGES * 106);
}
