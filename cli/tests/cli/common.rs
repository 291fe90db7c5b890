//! Runs the real binary with a clean environment, and provides servers for it. Every wait has a time limit.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

/// Timeout of every wait. It is longer than any correct run takes, so reaching it is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The target of every test.
pub(crate) const TARGET: &str = "i-0123456789abcdef0";

/// Made-up credentials and a region.
pub(crate) const CREDENTIALS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "made-up"), ("AWS_REGION", "eu-central-1")];

/// A run of the binary. Dropping it kills the process.
pub(crate) struct Cli {
    pub(crate) pid: u32,
    /// Present if standard input is piped.
    pub(crate) stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    exit: Receiver<Option<i32>>,
    exited: bool,
    home: TempDir,
}

/// The result of a run that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

impl Cli {
    /// Starts the binary with these arguments and no variables but PATH, HOME and `variables`.
    pub(crate) fn start(args: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start_with(args, variables, |command| command.stdin(Stdio::null()))
    }

    /// Starts the binary under the name with which the AWS CLI starts it.
    pub(crate) fn start_as_plugin(args: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start_with(args, variables, |command| command.arg0("session-manager-plugin").stdin(Stdio::null()))
    }

    /// Starts the binary. `finish` can change the command before it is started.
    pub(crate) fn start_with(
        args: &[&str],
        variables: &[(&str, &str)],
        finish: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        Self::spawn(env!("CARGO_BIN_EXE_aws-ssm-forward"), args, variables, finish)
    }

    /// Starts another program in the same environment.
    pub(crate) fn start_program(program: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::spawn(program, args, variables, |command| command.stdin(Stdio::null()))
    }

    fn spawn(
        program: &str,
        args: &[&str],
        variables: &[(&str, &str)],
        finish: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", home.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(variables.iter().copied())
            .current_dir(home.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = finish(&mut command).spawn().unwrap();
        let stdin = child.stdin.take();
        let (stdout, stderr) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        let (sender, exit) = channel();
        let pid = child.id();
        thread::spawn(move || sender.send(child.wait().unwrap().code()));
        Self { pid, stdin, stdout, stderr, exit, exited: false, home }
    }

    /// Waits for the next line of stdout.
    pub(crate) fn line(&self) -> String {
        self.stdout.recv_timeout(PATIENCE).unwrap_or_else(|error| {
            panic!("no line on stdout ({error}); stderr: {:#?}", self.stderr.try_iter().collect::<Vec<_>>())
        })
    }

    /// Waits for the next JSON event with this name. Skips other events; fails at an error.
    pub(crate) fn event(&self, name: &str) -> Value {
        loop {
            let event: Value = serde_json::from_str(&self.line()).unwrap();
            assert!(event["event"] != "error" || name == "error", "{event}");
            if event["event"] == name {
                return event;
            }
        }
    }

    /// Waits for the next line of stderr.
    pub(crate) fn error_line(&self) -> String {
        self.stderr.recv_timeout(PATIENCE).expect("no line on stderr")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.pid.to_string()]).status().unwrap().success());
    }

    /// Waits until the process has ended. Returns its exit code and the remaining output.
    pub(crate) fn end(mut self) -> Ended {
        let code = match self.exit.recv_timeout(PATIENCE) {
            Ok(code) => code.expect("ended by a signal"),
            Err(error) => {
                panic!("the process did not end ({error}); stderr: {:#?}", self.stderr.try_iter().collect::<Vec<_>>())
            }
        };
        self.exited = true;
        Ended { code, stdout: rest(&self.stdout), stderr: rest(&self.stderr) }
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        if !self.exited && matches!(self.exit.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
            let _ = Command::new("kill").args(["-s", "KILL", &self.pid.to_string()]).status();
        }
    }
}

/// Runs the binary and waits until it has ended.
pub(crate) fn run(args: &[&str], variables: &[(&str, &str)]) -> Ended {
    Cli::start(args, variables).end()
}

impl Ended {
    /// Asserts the exit code, and that stderr has exactly one error line, which contains all of `parts`.
    #[track_caller]
    pub(crate) fn assert_one_line(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        let errors: Vec<_> = self.stderr.iter().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{self:#?}");
        for part in parts {
            assert!(errors[0].contains(part), "no {part:?} in {self:#?}");
        }
        assert!(!self.stderr.iter().any(|line| line.contains("panicked") || line.contains("backtrace")), "{self:#?}");
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    receiver
}

fn rest(lines: &Receiver<String>) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => all.push(line),
            Err(RecvTimeoutError::Disconnected) => return all,
            Err(RecvTimeoutError::Timeout) => panic!("the output did not end: {all:#?}"),
        }
    }
}

/// The command `local` as a separate process.
pub(crate) struct LocalManager {
    cli: Cli,
    args: Vec<String>,
    variables: Vec<(String, String)>,
}

impl LocalManager {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts `local` with additional arguments.
    pub(crate) fn start_with(args: &[&str]) -> Self {
        Self::listen("127.0.0.1:0", args)
    }

    /// Starts `local` with fixed credentials, so that it can be restarted while clients use it.
    pub(crate) fn start_restartable() -> Self {
        Self::start_with(&["--insecure-credentials", "fixed"])
    }

    /// Kills the process and starts another one at the same address, which does not know the sessions.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let (address, args) = (self.address().to_owned(), std::mem::take(&mut self.args));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        *self = Self::listen(&address, &args);
    }

    /// Waits for the next line of stderr.
    pub(crate) fn stderr_line(&self) -> String {
        self.cli.error_line()
    }

    /// Returns the home folder of the process, which is also the home folder of the node.
    pub(crate) fn home(&self) -> &std::path::Path {
        self.cli.home.path()
    }

    /// Kills the process with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.cli.signal("KILL");
        let _ = self.cli.exit.recv_timeout(PATIENCE);
    }

    fn listen(address: &str, args: &[&str]) -> Self {
        let cli = Cli::start(&[&["local", "--target", TARGET, "--listen", address], args].concat(), &[]);
        let mut variables = Vec::new();
        while !["AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
            .iter()
            .all(|wanted| variables.iter().any(|(key, _): &(String, String)| key == wanted))
        {
            let line = cli.line();
            let (key, value) = line.strip_prefix("export ").and_then(|line| line.split_once('=')).expect(&line);
            variables.push((key.to_owned(), value.to_owned()));
        }
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Self { cli, args, variables }
    }

    /// Returns the environment variables for a client.
    pub(crate) fn variables(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    /// Returns the URL of the API.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    fn address(&self) -> &str {
        let url = self.variables.iter().find(|(key, _)| key == "AWS_ENDPOINT_URL").map(|(_, value)| value).unwrap();
        url.strip_prefix("http://").unwrap().trim_end_matches('/')
    }

    /// Calls the API. The call must succeed.
    pub(crate) fn call(&self, operation: &str, body: &Value) -> Value {
        let (status, answer) = self.answer(operation, body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Calls the API. Returns the status and the body of the response.
    pub(crate) fn answer(&self, operation: &str, body: &Value) -> (u16, Value) {
        let target = format!("AmazonSSM.{operation}");
        let answer = self.send("POST", "/", &[("x-amz-target", &target)], &body.to_string());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status =
            head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"));
        (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}")))
    }

    /// Replaces the injected faults.
    pub(crate) fn set_faults(&self, faults: &[&str]) {
        let body = serde_json::json!({ "faults": faults }).to_string();
        let answer = self.send("PUT", "/faults", &[], &body);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Sends a signed request. Returns the whole response.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
        let variables: BTreeMap<_, _> = self.variables().into_iter().collect();
        let (id, secret) = (variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]);
        let identity = Credentials::new(id, secret, None, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(variables["AWS_REGION"])
            .name("ssm")
            .time(SystemTime::now())
            .settings(SigningSettings::default());
        let host = self.address();
        let headers = [&[("host", host)], headers].concat();
        let request =
            SignableRequest::new(method, path, headers.iter().copied(), SignableBody::Bytes(body.as_bytes())).unwrap();
        let (signature, _) = sign(request, &params.build().unwrap().into()).unwrap().into_parts();
        let signed: String = headers
            .into_iter()
            .chain(signature.headers())
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let mut stream = connect(host);
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\n{signed}content-length: {length}\r\nconnection: close\r\n");
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Returns the ids of the sessions in this state: `Active` or `History`.
    pub(crate) fn sessions(&self, state: &str) -> Vec<String> {
        let answer = self.call("DescribeSessions", &serde_json::json!({ "State": state }));
        let id = |session: &Value| session["SessionId"].as_str().unwrap().to_owned();
        answer["Sessions"].as_array().unwrap().iter().map(id).collect()
    }
}

/// Waits until the condition is true.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timeout while waiting for: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Connects, and sets timeouts for reads and writes.
pub(crate) fn connect(address: &str) -> TcpStream {
    let address: SocketAddr = address.parse().unwrap();
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Starts a server that sends back all data that it receives. Returns its port.
pub(crate) fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    echo_on(listener);
    port
}

/// Starts the server of [`echo_server`] on an existing listener.
pub(crate) fn echo_on(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut from = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut from, &mut &stream);
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
    });
}

/// Returns a port on which no program listens. The port is bound as long as the tests run, so that no other program can use it.
pub(crate) fn closed_port() -> u16 {
    static BOUND: Mutex<Vec<Socket>> = Mutex::new(Vec::new());
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    BOUND.lock().unwrap().push(socket);
    port
}

/// Returns a port on which no program listens at this time. Another program may use it later.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The end of the status line, and the body. With `None`, the server never responds.
type Answer = Option<(&'static str, String)>;

/// An API with made-up responses.
pub(crate) struct FakeApi {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeApi {
    /// Starts the API. `answer` is called with the operation and the server's address.
    pub(crate) fn start(answer: impl Fn(&str, SocketAddr) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), requests.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, seen) = (answer.clone(), seen.clone());
                thread::spawn(move || serve(stream, &*answer, &seen, address));
            }
        });
        Self { address, requests }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the requested operations (or paths).
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    stream: TcpStream,
    answer: &dyn Fn(&str, SocketAddr) -> Answer,
    seen: &Mutex<Vec<String>>,
    address: SocketAddr,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(asked) = read_request(&mut reader) {
        seen.lock().unwrap().push(asked.clone());
        let Some((status, body)) = answer(&asked, address) else {
            // The connection stays open until the client closes it.
            let _ = std::io::copy(&mut reader, &mut std::io::sink());
            return;
        };
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {length}\r\n");
        if (&stream).write_all(format!("{head}\r\n{body}").as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads a request. Returns the API operation, or the path if there is none.
fn read_request(reader: &mut impl BufRead) -> Option<String> {
    let (mut asked, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if asked.is_empty() {
            asked = line.split(' ').nth(1)?.to_owned();
        }
        match line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim())) {
            Some((name, value)) if name == "content-length" => length = value.parse().ok()?,
            Some((name, value)) if name == "x-amz-target" => asked = value.rsplit('.').next()?.to_owned(),
            _ => {}
        }
        if line.is_empty() {
            std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).ok()?;
            return Some(asked);
        }
    }
}
