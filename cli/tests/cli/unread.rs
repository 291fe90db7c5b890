//! Output without a reader blocks neither data, nor signals, nor the end of the process.

use std::io::{BufRead, BufReader, PipeReader, Read, Write, pipe};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Instant;

use serde_json::{Value, json};

use crate::common::{LocalManager, PATIENCE, TARGET, closed_port, connect, echo_on, eventually, free_port};

/// A run of the binary whose output is a small pipe. Only the test reads the pipe, one line at a time.
struct Unread {
    child: Child,
    output: BufReader<PipeReader>,
    /// Kills the process after a timeout, because reads from a pipe have none.
    _watchdog: Sender<()>,
}

impl Unread {
    /// Starts the binary. With `both`, standard error goes to the same pipe; otherwise it is discarded.
    fn start(program: &str, args: &[&str], variables: &[(&str, &str)], both: bool) -> Self {
        let (reader, writer) = pipe().unwrap();
        // The reader has no buffer, so that it does not read more from the pipe than the test needs.
        let output = BufReader::with_capacity(1, reader);
        #[cfg(target_os = "linux")]
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_aws-ssm-forward"));
        command.arg0(program).args(args).env_clear().env("AWS_EC2_METADATA_DISABLED", "true");
        command.envs(variables.iter().copied()).stdin(Stdio::null());
        command.stderr(if both { writer.try_clone().unwrap().into() } else { Stdio::null() });
        command.stdout(writer);
        Self::spawn(command, output)
    }

    fn spawn(mut command: Command, output: BufReader<PipeReader>) -> Self {
        let child = command.spawn().unwrap();
        let (watchdog, gone) = channel::<()>();
        let pid = child.id().to_string();
        std::thread::spawn(move || {
            if let Err(RecvTimeoutError::Timeout) = gone.recv_timeout(4 * PATIENCE) {
                let _ = Command::new("kill").args(["-s", "KILL", &pid]).status();
            }
        });
        Self { child, output, _watchdog: watchdog }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the process has ended");
        line
    }

    /// Sends a signal and waits until the process has ended. Does not read the output. Returns the exit code.
    fn end_by(mut self, signal: &str) -> i32 {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().expect("ended by a signal");
            }
            assert!(Instant::now() < deadline, "{signal} does not end the process");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens `times` connections. The destination refuses each of them.
fn be_refused(address: &str, times: usize) {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..times / 8 {
                    // The reset may arrive before the connection is reported as established.
                    if let Ok(mut stream) = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE) {
                        stream.set_read_timeout(Some(PATIENCE)).unwrap();
                        let _ = stream.read(&mut [0; 1]);
                    }
                }
            });
        }
    });
}

fn assert_echo(address: &str) {
    let mut stream = connect(address);
    stream.write_all(b"still there").unwrap();
    let mut back = [0; 11];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"still there");
}

/// Number of refused connections. Their events exceed the capacity of the pipe and of the queues together.
const REFUSALS: usize = 2800;

/// Returns a bound socket and its port, which refuses connections until the socket listens.
fn refusing_port() -> (socket2::Socket, u16) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

#[test]
fn a_forward_whose_output_nobody_reads_goes_on_and_ends() {
    for format in ["text", "json"] {
        let (destination, port) = refusing_port();
        let spec = format!("0:{port}");
        let mut cli = Unread::start("aws-ssm-forward", &["forward", "--local", "-o", format, "-L", &spec], &[], true);
        let address = loop {
            let line = cli.line();
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            let ready = match format {
                "json" => (event["event"] == "ready").then(|| event["address"].as_str().unwrap()),
                _ => line.strip_prefix("Forwarding ").and_then(|rest| rest.split(' ').next()),
            };
            if let Some(address) = ready {
                break address.to_owned();
            }
        };
        be_refused(&address, REFUSALS);
        destination.listen(16).unwrap();
        echo_on(destination.into());
        assert_echo(&address);
        assert_eq!(cli.end_by("TERM"), 0, "{format}");
    }
}

#[test]
fn what_was_not_told_is_counted_once_somebody_reads_again() {
    let refused = format!("0:{}", closed_port());
    let args = ["forward", "--local", "-o", "json", "-L", &refused];
    let mut cli = Unread::start("aws-ssm-forward", &args, &[], false);
    let address = loop {
        let event: Value = serde_json::from_str(&cli.line()).unwrap();
        if event["event"] == "ready" {
            break event["address"].as_str().unwrap().to_owned();
        }
    };
    be_refused(&address, REFUSALS);
    // Each connection is reported twice: when it is opened, and when it is closed.
    let (mut reported, mut dropped) = (0, 0);
    while reported + dropped < 2 * REFUSALS as u64 {
        let event: Value = serde_json::from_str(&cli.line()).unwrap();
        match event["event"].as_str().unwrap() {
            "events_dropped" => dropped += event["count"].as_u64().unwrap(),
            name => reported += u64::from(name.starts_with("connection_")),
        }
    }
    assert!(dropped > 0 && reported + dropped == 2 * REFUSALS as u64, "{reported} reported, {dropped} dropped");
    assert_eq!(cli.end_by("TERM"), 0);
}

#[test]
fn a_plugin_whose_output_nobody_reads_goes_on_and_ends() {
    let manager = LocalManager::start();
    let port = closed_port().to_string();
    let parameters = json!({ "portNumber": [port] });
    let request =
        json!({ "Target": TARGET, "DocumentName": "AWS-StartPortForwardingSession", "Parameters": parameters });
    for signal in ["TERM", "INT"] {
        let session = manager.call("StartSession", &request).to_string();
        let args = [session.as_str(), "us-east-1", "StartSession", "", &request.to_string(), &manager.endpoint()];
        let mut cli = Unread::start("session-manager-plugin", &args, &manager.variables(), true);
        let address = loop {
            if let Some(rest) = cli.line().strip_prefix("Port ") {
                break format!("127.0.0.1:{}", rest.split(' ').next().unwrap());
            }
        };
        be_refused(&address, 200);
        // The plugin must still forward connections: the destination refuses these too.
        be_refused(&address, 8);
        assert_eq!(cli.end_by(signal), 0, "{signal}");
        assert!(manager.sessions("Active").is_empty(), "{signal}");
    }
}

#[test]
fn a_local_session_manager_whose_output_nobody_reads_serves_and_ends() {
    // The pipe is full before the process writes to it.
    let (reader, mut writer) = pipe().unwrap();
    #[cfg(target_os = "linux")]
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    writer.write_all(&[b'x'; 4096]).unwrap();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_aws-ssm-forward"));
    command.args(["local", "--listen", &address]).stdin(Stdio::null());
    command.stderr(writer.try_clone().unwrap()).stdout(writer);
    let cli = Unread::spawn(command, BufReader::with_capacity(1, reader));
    eventually("the process listens", || TcpStream::connect(&address).is_ok());
    assert_eq!(cli.end_by("TERM"), 0);
}
