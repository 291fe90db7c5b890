//! `socks`: a proxy on one local port, through which programs reach every host that the node reaches, by name.

mod access;
mod destinations;
mod greeting;
mod http;
mod refusal;
mod route;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ssm_forward::{ForwardConfig, NamedProvider, TargetSpec};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::args::{SocksArgs, Verbosity};
use crate::exit_code::{ExitCode, Failure};
use crate::local::{self, LocalManager};
use crate::shutdown::Shutdown;
use crate::terminal::AtTerminal;
use crate::{connect, console, relay, targets, untrusted};
use access::Access;
use destinations::{Destinations, Plan};
use refusal::{Refusal, RefusalKind};
use route::{Relayed, Route};

pub(crate) use access::Pattern;

/// Time limit for ending the sessions.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after the system failed to accept a connection, for example because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs the command until a signal ends it.
///
/// # Errors
/// Returns an error if the port cannot be opened, the node does not exist or is not online, or there are no credentials.
pub(crate) async fn run(args: &SocksArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    // The port is opened before any look-up, because a port that is already in use is the most common mistake.
    let listener = listen(args.listen)?;
    let target = args.target.as_deref().unwrap_or(local::DEFAULT_TARGET);
    let options = || connect::local_options_for_ports(target, relay::config(&args.relay).is_some());
    let manager = LocalManager::start_if(args.aws.local, options).await?;
    let served = tokio::select! {
        plan = plan(args, target, manager.as_ref()) => match plan {
            Ok(plan) => serve(args, listener, plan, &shutdown, verbosity).await,
            Err(failure) => Err(failure),
        },
        cause = shutdown.requested() => Ok(cause.exit_code()),
    };
    connect::stop(manager).await;
    served
}

fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let failed =
        |source: io::Error| ssm_forward::ForwardError::Listen { address: address.to_string(), source: source.into() };
    ssm_forward::bind_tcp(address).map_err(|error| failed(error).into())
}

/// Looks up the node and returns the settings of the sessions.
async fn plan(args: &SocksArgs, target: &str, manager: Option<&LocalManager>) -> Result<Plan, Failure> {
    let aws = connect::aws_or_local(&args.aws, manager, Arc::new(AtTerminal::new(false))).await?;
    let spec: TargetSpec = target.parse()?;
    let patience = args.session.wait_connected.unwrap_or_default();
    targets::await_online(&aws, &spec, patience).await?;
    let source = targets::source(&aws, &spec, args.session.any).await?;
    let provider = NamedProvider::new(aws.clone(), source, None);
    let node = provider.find().await?.node;
    let mut config = ForwardConfig::default();
    // The proxy replies to a client only after the destination has accepted or refused a connection.
    config.wait_ready = true;
    config.connect_timeout = args.connect_timeout;
    config.wait_connected = patience;
    config.session = connect::session_config(&aws, &args.aws.allow_stream_host, args.aws.stream_endpoint.clone())?;
    config.session.pacing = args.pool.message_rate;
    config.pool.size = args.pool.sessions;
    let max = usize::from(args.max_destinations);
    Ok(Plan { provider: Arc::new(provider), target: node, session: args.session.clone(), config, idle: args.idle, max })
}

/// Serves clients until a stop is requested or the relay fails.
async fn serve(
    args: &SocksArgs,
    listener: TcpListener,
    plan: Plan,
    shutdown: &Shutdown,
    verbosity: Verbosity,
) -> Result<ExitCode, Failure> {
    let address = listener.local_addr().map_err(Failure::internal)?;
    let node = plan.target.clone();
    let route = route(args, plan, shutdown, verbosity).await;
    if let Some(cause) = shutdown.cause() {
        end(&route, verbosity).await;
        return Ok(cause.exit_code());
    }
    announce(args, &node, &route, address, verbosity);
    let proxy = Arc::new(Proxy {
        access: Access { allow: args.allow.clone(), deny: args.deny.clone() },
        pac: (!args.pac.is_empty()).then(|| http::pac(&args.pac, &reached_at(address).to_string())),
        route,
    });
    let mut clients = JoinSet::new();
    let outcome = loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
            _ = shutdown.requested() => break Ok(ExitCode::Ok),
            failure = proxy.route.failure() => break Err(failure),
        };
        match accepted {
            Ok((stream, peer)) => {
                let proxy = proxy.clone();
                clients.spawn(async move {
                    if let Err(error) = proxy.client(stream).await {
                        tracing::info!(%peer, %error, "a client was not served");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    };
    // Clients that still wait for a reply are disconnected without one.
    clients.shutdown().await;
    end(&proxy.route, verbosity).await;
    outcome
}

/// Waits until the sessions have ended, for a limited time.
async fn end(route: &Route, verbosity: Verbosity) {
    if timeout(GRACE, route.ended()).await.is_err() && !verbosity.quiet {
        console::note("warning: some sessions did not end in time; Session Manager ends them after its idle timeout");
    }
}

/// Starts the relay, if one is requested. Without a relay, or if it cannot be started, each destination gets its own sessions.
async fn route(args: &SocksArgs, plan: Plan, shutdown: &Shutdown, verbosity: Verbosity) -> Route {
    if let Some(config) = relay::config(&args.relay) {
        match Relayed::start(&plan, config, shutdown.clone()).await {
            Ok(relayed) => return Route::Relay(relayed),
            Err(why) if !verbosity.quiet => console::note(&untrusted::line(&format!(
                "warning: no relay on {}: {why}; each destination gets sessions of its own",
                plan.target
            ))),
            Err(_) => {}
        }
    }
    Route::Sessions(Destinations::new(plan, shutdown.clone()))
}

/// Prints the address of the proxy, and warnings.
fn announce(args: &SocksArgs, node: &str, route: &Route, address: SocketAddr, verbosity: Verbosity) {
    if verbosity.quiet {
        return;
    }
    let relay = if matches!(route, Route::Relay(_)) { ", with a relay" } else { "" };
    console::say(untrusted::line(&format!("SOCKS5, SOCKS4a and HTTP proxy on {address} through {node}{relay}")) + "\n");
    if !args.pac.is_empty() {
        console::say(format!("PAC file for browsers: http://{}/proxy.pac\n", reached_at(address)));
    }
    if !address.ip().is_loopback() {
        console::note(&format!(
            "warning: -D {address} accepts connections from other machines, without authentication: they can reach \
             everything that the node reaches"
        ));
    }
}

/// Returns the address at which programs on this machine reach the proxy.
fn reached_at(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    address
}

/// The state that all clients share.
struct Proxy {
    access: Access,
    /// The PAC file, if there is one.
    pac: Option<String>,
    route: Route,
}

impl Proxy {
    /// Serves a client until its connection is passed to a forwarder or refused.
    async fn client(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let Some(request) = greeting::read(stream, self.pac.as_deref()).await? else { return Ok(()) };
        let destination = request.destination.clone();
        if !self.access.permits(&destination) {
            tracing::warn!(%destination, "not allowed");
            let refusal = Refusal::new(RefusalKind::NotAllowed, format!("{destination} is not allowed"));
            return request.refuse(&refusal).await;
        }
        match self.route.open(&destination).await {
            Ok(opened) => {
                opened.serve(request.grant().await?).await.map_err(|error| io::Error::other(error.to_string()))
            }
            Err(refusal) => request.refuse(&refusal).await,
        }
    }
}
