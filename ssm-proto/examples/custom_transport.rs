//! A session over your own transport: in this example a plain TCP connection on loopback, with a length in front of each message.
//!
//! `Session` does no I/O, so it works over any transport that delivers complete messages in order. The example contains both sides:
//! a client that opens a stream and sends a line, and an agent that answers with the line in upper case.
//!
//! ```text
//! cargo run -p ssm-proto --example custom_transport
//! ```

#![expect(clippy::print_stdout, reason = "the output is the purpose of the example")]

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ssm_proto::{AgentConfig, ClientConfig, Clock, Session, SessionEvent, StreamId};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client_end = TcpStream::connect(listener.local_addr()?)?;
    let (agent_end, _) = listener.accept()?;
    let agent = thread::spawn(move || run_agent(agent_end));
    println!("the agent answered: {}", run_client(client_end)?);
    agent.join().map_err(|_| "the agent's thread panicked")?
}

fn run_client(socket: TcpStream) -> Outcome<String> {
    let session = Session::client(ClientConfig::default(), clock()?, fresh_seed()?);
    let mut driver = Driver::new(session, socket)?;
    let mut answer = Vec::new();
    loop {
        for event in driver.step()? {
            match event {
                SessionEvent::Ready(_) => {
                    let stream = driver.session.open()?;
                    driver.session.write(stream, Bytes::from_static(b"hello\n"))?;
                }
                SessionEvent::Readable(stream) => answer.extend(read_all(&mut driver.session, stream)),
                _ => {}
            }
        }
        if answer.ends_with(b"\n") {
            return Ok(String::from_utf8(answer)?.trim_end().to_owned());
        }
    }
}

fn run_agent(socket: TcpStream) -> Outcome<()> {
    let session = Session::agent(AgentConfig::default(), clock()?, fresh_seed()?);
    let mut driver = Driver::new(session, socket)?;
    loop {
        let events = match driver.step() {
            Ok(events) => events,
            Err(error) if is_end(error.as_ref()) => return Ok(()),
            Err(error) => return Err(error),
        };
        for event in events {
            if let SessionEvent::Opened(stream) | SessionEvent::Readable(stream) = event {
                let line = read_all(&mut driver.session, stream).to_ascii_uppercase();
                driver.session.write(stream, line.into())?;
            }
        }
    }
}

/// Reads all data that has arrived. `wait_for_data` requests the next `Readable` event.
fn read_all(session: &mut Session, stream: StreamId) -> Vec<u8> {
    let mut data = Vec::new();
    while let Some(chunk) = session.read(stream) {
        data.extend_from_slice(&chunk);
    }
    session.wait_for_data(Instant::now(), stream);
    data
}

/// Transfers messages between a session and a socket.
struct Driver {
    session: Session,
    socket: TcpStream,
    incoming: Receiver<Bytes>,
}

impl Driver {
    fn new(mut session: Session, socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let mut reader = socket.try_clone()?;
        let (sender, incoming) = channel();
        thread::spawn(move || while read_message(&mut reader).is_ok_and(|message| sender.send(message).is_ok()) {});
        session.handle_connected(Instant::now());
        Ok(Self { session, socket, incoming })
    }

    /// Performs one turn of the loop: sends the session's messages, waits for a message or for the session's timeout, passes the
    /// message to the session, and returns the events.
    fn step(&mut self) -> Outcome<Vec<SessionEvent>> {
        while let Some(message) = self.session.poll_transmit(Instant::now()) {
            self.socket.write_all(&u32::try_from(message.len())?.to_be_bytes())?;
            self.socket.write_all(&message)?;
        }
        let wait = self
            .session
            .poll_timeout()
            .map_or(Duration::from_secs(1), |timeout| timeout.at.saturating_duration_since(Instant::now()));
        match self.incoming.recv_timeout(wait) {
            // An invalid message is dropped. The peer sends it again.
            Ok(message) => self.session.handle_input(Instant::now(), message).unwrap_or_default(),
            Err(RecvTimeoutError::Timeout) => self.session.handle_timeout(Instant::now()),
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
        Ok(std::iter::from_fn(|| self.session.poll_event()).collect())
    }
}

fn read_message(socket: &mut TcpStream) -> io::Result<Bytes> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    socket.read_exact(&mut message)?;
    Ok(message.into())
}

fn is_end(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(UnexpectedEof | BrokenPipe | ConnectionReset))
}

/// Relates the monotonic clock, which the session uses, to the wall clock, whose time the messages contain.
fn clock() -> Outcome<Clock> {
    Ok(Clock { start: Instant::now(), unix: SystemTime::now().duration_since(UNIX_EPOCH)? })
}

/// Returns a seed for the message ids. A real program should get it from the system's random number generator.
fn fresh_seed() -> Outcome<u64> {
    Ok(u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos()))
}
