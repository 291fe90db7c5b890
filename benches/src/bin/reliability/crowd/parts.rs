//! The processes of the load test.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ssm_local::Local;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::report::say;
use crate::service::Service;
use crate::tunnel::SetupError;
use crate::usage::Usage;

const PATIENCE: Duration = Duration::from_secs(60);

/// The processes of a load, except the current one.
pub(super) struct Parts {
    far: Part,
    manager: Part,
    client: Part,
    /// The address to which programs connect.
    pub(super) entrance: SocketAddr,
    most: Arc<Mutex<Usage>>,
    watch: Option<JoinHandle<()>>,
}

/// A process that receives commands and sends answers, one line each.
struct Part {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Part {
    fn start(args: &[&str]) -> Result<Self, SetupError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let (orders, stdout) = (process.stdin.take().ok_or("no stdin")?, process.stdout.take().ok_or("no stdout")?);
        Ok(Self { process, orders, answers: BufReader::new(stdout).lines() })
    }

    async fn answer(&mut self) -> Result<String, SetupError> {
        let line = timeout(PATIENCE, self.answers.next_line()).await.map_err(|_| "a process does not answer")??;
        line.ok_or_else(|| "a process ended".into())
    }

    async fn ask(&mut self, order: &str) -> Result<String, SetupError> {
        self.orders.write_all(format!("{order}\n").as_bytes()).await?;
        self.answer().await
    }

    fn id(&self) -> Result<u32, SetupError> {
        Ok(self.process.id().ok_or("a process ended")?)
    }
}

impl Parts {
    pub(super) async fn start(sessions: u16) -> Result<Self, SetupError> {
        let mut far = Part::start(&["far"])?;
        let service = far.answer().await?;
        let mut manager = Part::start(&["manager"])?;
        let endpoint = manager.answer().await?;
        let sessions = sessions.to_string();
        let mut client =
            Part::start(&["client", "--endpoint-url", &endpoint, "--to", &service, "--sessions", &sessions])?;
        let entrance = client.answer().await?.parse()?;
        Ok(Self { far, manager, client, entrance, most: Arc::default(), watch: None })
    }

    /// The client's current use of resources.
    pub(super) fn usage(&self) -> Result<Usage, SetupError> {
        Usage::of(self.client.id()?)
    }

    /// Starts a task that samples the client's use of resources periodically. Replaces an earlier task.
    pub(super) fn watch(&mut self) {
        let Ok(id) = self.client.id() else { return };
        *self.most.lock().unwrap_or_else(PoisonError::into_inner) = Usage::default();
        let most = self.most.clone();
        let watch = tokio::spawn(async move {
            while let Ok(usage) = Usage::of(id) {
                {
                    let mut most = most.lock().unwrap_or_else(PoisonError::into_inner);
                    // The kernel's peak since the process began may come from an earlier load.
                    most.peak = most.peak.max(usage.memory);
                    most.descriptors = most.descriptors.max(usage.descriptors);
                }
                sleep(Duration::from_millis(200)).await;
            }
        });
        if let Some(earlier) = self.watch.replace(watch) {
            earlier.abort();
        }
    }

    /// The maximum use since the last call of [`watch`](Self::watch).
    pub(super) fn most(&self) -> Usage {
        *self.most.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn strike(&mut self, fault: &str) -> Result<(), SetupError> {
        self.manager.ask(fault).await.map(drop)
    }

    /// Number of connections whose bytes were exact at the service, since the last call.
    pub(super) async fn served(&mut self) -> Result<u64, SetupError> {
        Ok(self.far.ask("served").await?.parse()?)
    }

    pub(super) async fn stop(mut self) {
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
        for part in [&mut self.client, &mut self.manager, &mut self.far] {
            let _ = part.process.kill().await;
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct FarArgs {}

/// The process with the service. Prints its address; then, for each command, the number of exact connections.
///
/// # Errors
/// Returns the error that ends the process.
pub(crate) async fn far(_: FarArgs) -> Result<(), SetupError> {
    let service = Service::start().await?;
    say(&service.address.to_string());
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while orders.next_line().await?.is_some() {
        // The programs have finished; the last connections end soon.
        let settled = async {
            while service.open_connections() > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = timeout(Duration::from_secs(20), settled).await;
        say(&service.take_exact().to_string());
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(crate) struct ManagerArgs {}

/// The process with the Session Manager. Prints its URL; then injects the fault of each command.
///
/// # Errors
/// Returns the error that ends the process.
pub(crate) async fn manager(_: ManagerArgs) -> Result<(), SetupError> {
    let local = Local::builder().any_credentials().ports_only().start().await?;
    say(&local.endpoint_url());
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(fault) = orders.next_line().await? {
        local.strike(fault.parse()?).await?;
        say("done");
    }
    Ok(())
}
