//! The limit program: only the work that the protocol requires. It has two ends of a WebSocket on loopback: one end
//! creates messages with their digests, the other end decodes and acknowledges each message. There is no multiplexer,
//! no local socket and no retransmission.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use ssm_proto::{Acknowledge, AgentMessage, Header, MessageBuf, MessageType, PayloadType};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use uuid::Uuid;

use super::LimitArgs;
use crate::{Result, say};

/// Maximum number of unacknowledged bytes, and of messages. They are smaller than the sockets' buffers; otherwise both
/// ends could wait for each other.
const WINDOW_BYTES: usize = 4 << 20;
const WINDOW: usize = 1000;
/// Number of bytes that are collected before a system call.
const WRITE_BUFFER: usize = 128 << 10;

/// The results.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Limit {
    /// Acknowledged payload bytes per second.
    pub(super) bytes_per_second: f64,
    /// CPU seconds of both ends together per byte.
    pub(super) cpu_per_byte: f64,
    /// Round trips of one byte, in seconds, shortest first.
    pub(super) round_trips: Vec<f64>,
}

/// Runs the limit program in a separate process, like the clients.
pub(super) async fn measure(payload: usize, time: Duration) -> Result<Limit> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(["limit", "--payload", &payload.to_string(), "--millis", &time.as_millis().to_string()]);
    let output = command.stderr(Stdio::inherit()).kill_on_drop(true).output().await?;
    Ok(serde_json::from_slice(&output.stdout).map_err(|error| format!("the limit program failed: {error}"))?)
}

/// The limit program's process.
pub(crate) async fn limit(args: LimitArgs) -> Result<()> {
    let time = Duration::from_millis(args.millis);
    let (mut sender, receiver) = pair().await?;
    let receiver = tokio::spawn(receive(receiver));
    let cpu_before = cpu();
    let (moved, elapsed) = send(&mut sender, args.payload, time).await?;
    let cpu = cpu() - cpu_before;
    let round_trips = round_trips(&mut sender, time).await?;
    receiver.abort();
    #[expect(clippy::cast_precision_loss, reason = "approximate figures for people")]
    let moved = moved as f64;
    let limit =
        Limit { bytes_per_second: moved / elapsed.as_secs_f64(), cpu_per_byte: cpu.as_secs_f64() / moved, round_trips };
    say(&serde_json::to_string(&limit)?);
    Ok(())
}

type Socket = WebSocketStream<TcpStream>;

async fn pair() -> Result<(Socket, Socket)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let client = TcpStream::connect(listener.local_addr()?).await?;
    let (server, _) = listener.accept().await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let config = Some(WebSocketConfig::default().write_buffer_size(WRITE_BUFFER));
    let client = WebSocketStream::from_raw_socket(client, Role::Client, config).await;
    Ok((client, WebSocketStream::from_raw_socket(server, Role::Server, config).await))
}

async fn send(socket: &mut Socket, payload: usize, time: Duration) -> Result<(u64, Duration)> {
    let data = vec![7; payload];
    let window = (WINDOW_BYTES / payload).clamp(8, WINDOW);
    let (mut number, mut acknowledged) = (0, 0);
    let began = Instant::now();
    while began.elapsed() < time {
        let mut batch = 0;
        while batch < 64 && in_flight(number, acknowledged) < window {
            socket.feed(Message::Binary(seal(&data, number))).await?;
            (number, batch) = (number + 1, batch + 1);
        }
        socket.flush().await?;
        if in_flight(number, acknowledged) == window {
            acknowledged += opened_ack(socket.next().await)?;
        }
        while let Some(more) = socket.next().now_or_never() {
            acknowledged += opened_ack(more)?;
        }
    }
    let elapsed = began.elapsed();
    let moved = u64::try_from(acknowledged)? * payload as u64;
    while acknowledged < number {
        acknowledged += opened_ack(socket.next().await)?;
    }
    Ok((moved, elapsed))
}

fn in_flight(sent: i64, acknowledged: i64) -> usize {
    usize::try_from(sent - acknowledged).unwrap_or(usize::MAX)
}

/// Reads and acknowledges. A message of one byte is also sent back.
async fn receive(mut socket: Socket) -> Result<()> {
    loop {
        answer(&mut socket, None).await?;
        while let Some(more) = socket.next().now_or_never() {
            answer(&mut socket, Some(more)).await?;
        }
        socket.flush().await?;
    }
}

type Incoming = Option<std::result::Result<Message, tokio_tungstenite::tungstenite::Error>>;

async fn answer(socket: &mut Socket, incoming: Option<Incoming>) -> Result<()> {
    let incoming = match incoming {
        Some(incoming) => incoming,
        None => socket.next().await,
    };
    let message = AgentMessage::decode(binary(incoming)?)?;
    if message.message_type() == MessageType::Acknowledge {
        return Ok(());
    }
    let ack = Acknowledge::of(&message).encode(DATE, Uuid::from_u128(1));
    socket.feed(Message::Binary(ack)).await?;
    if let [byte] = message.payload() {
        socket.feed(Message::Binary(seal(&[*byte], 0))).await?;
    }
    Ok(())
}

async fn round_trips(socket: &mut Socket, time: Duration) -> Result<Vec<f64>> {
    let (began, mut times) = (Instant::now(), Vec::new());
    while began.elapsed() < time || times.is_empty() {
        let sent = Instant::now();
        socket.send(Message::Binary(seal(&[7], 0))).await?;
        opened_ack(socket.next().await)?;
        let back = AgentMessage::decode(binary(socket.next().await)?)?;
        times.push(sent.elapsed().as_secs_f64());
        socket.send(Message::Binary(Acknowledge::of(&back).encode(DATE, Uuid::from_u128(1)))).await?;
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times)
}

const DATE: u64 = 1_700_000_000_000;

fn seal(payload: &[u8], sequence_number: i64) -> Bytes {
    let mut buf = MessageBuf::with_limit(payload.len(), payload.len());
    buf.put_slice(payload);
    let id = Uuid::from_u128(sequence_number.unsigned_abs().into());
    let header = Header::new(MessageType::InputStreamData, DATE, id);
    Header { sequence_number, payload_type: PayloadType::Output, ..header }.seal(buf)
}

fn binary(incoming: Incoming) -> Result<Bytes> {
    Ok(incoming.ok_or("the other end closed the WebSocket")??.into_data())
}

/// Returns 1 if the message is an acknowledgement.
fn opened_ack(incoming: Incoming) -> Result<i64> {
    let message = AgentMessage::decode(binary(incoming)?)?;
    Acknowledge::decode_number(message.payload()).map(|_| 1).ok_or_else(|| "an acknowledgement was expected".into())
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}
