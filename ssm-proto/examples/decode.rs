//! Decodes messages of a data channel and prints their headers. Input is one message per line, in hexadecimal.
//!
//! ```text
//! cargo run -p ssm-proto --example decode < messages.txt
//! cargo run -p ssm-proto --example decode          # a message that this program encodes itself
//! ```

#![expect(clippy::print_stdout, reason = "the output is the purpose of the example")]

use std::error::Error;
use std::io::{IsTerminal, Read, stdin};

use bytes::Bytes;
use ssm_proto::{AgentConfig, AgentMessage, ClientConfig, Clock, Session};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut text = String::new();
    if !stdin().is_terminal() {
        stdin().read_to_string(&mut text)?;
    }
    let mut messages =
        text.lines().filter(|line| !line.trim().is_empty()).map(parse_hex).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        println!("no input; these are the first messages of a session:");
        messages = first_messages();
    }
    for raw in messages {
        // `decode` verifies the lengths and the digest. The payload is a slice of `raw`: nothing is copied.
        match AgentMessage::decode(raw) {
            Ok(message) => println!(
                "{:?}  sequence number {}  {:?}  {} bytes of payload",
                message.message_type(),
                message.sequence_number(),
                message.payload_type(),
                message.payload().len()
            ),
            Err(error) => println!("not a valid message: {error}"),
        }
    }
    Ok(())
}

fn parse_hex(line: &str) -> Result<Bytes, Box<dyn Error>> {
    let digits: Vec<u8> = line.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    digits.chunks(2).map(byte).collect::<Result<Vec<u8>, Box<dyn Error>>>().map(Bytes::from)
}

/// Returns the handshake request of an agent, and the messages with which a client answers.
fn first_messages() -> Vec<Bytes> {
    let now = Instant::now();
    let clock = Clock { start: now, unix: Duration::from_secs(1_700_000_000) };
    let mut agent = Session::agent(AgentConfig::default(), clock, 1);
    let mut client = Session::client(ClientConfig::default(), clock, 2);
    agent.handle_connected(now);
    client.handle_connected(now);
    let mut messages = Vec::new();
    while let Some(request) = agent.poll_transmit(now) {
        messages.push(request.clone());
        // The agent's own message is valid, so the client accepts it.
        let _ = client.handle_input(now, request);
    }
    messages.extend(std::iter::from_fn(|| client.poll_transmit(now)));
    messages
}
