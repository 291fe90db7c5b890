//! Checks of the paths to AWS's endpoints: name, TCP, proxy, TLS.

use ssm_forward::{NetworkPath, PathProblem, PathStep, TransportOptions, Url, look_along};

use super::facts::Facts;
use super::finding::{Finding, Outcome};
use crate::exit_code::ExitCode;

/// Checks the path to the endpoint of the API.
pub(super) async fn api(facts: &mut Facts) -> Outcome {
    let aws = facts.aws()?;
    let endpoint = aws.origin().await.endpoint;
    let url =
        Url::parse(&endpoint).map_err(|error| Finding::failed(ExitCode::Config, format!("{endpoint}: {error}")))?;
    let finding = look(&url, facts, ExitCode::Api, "ssm").await?;
    facts.reachable = true;
    Ok(finding)
}

/// Checks the path to the endpoint of the data channel.
pub(super) async fn data_channel(facts: &mut Facts) -> Outcome {
    let aws = facts.aws()?;
    let given = facts.query.options.stream_endpoint.as_ref();
    match aws.channel_url(given).await.map_err(|error| Finding::broken(error, ""))? {
        Some(url) => look(&url, facts, ExitCode::Channel, "ssmmessages").await,
        None => Err(Finding::skipped(
            "the endpoint of the API is on this machine; each session's stream URL contains its endpoint",
        )),
    }
}

async fn look(url: &Url, facts: &Facts, code: ExitCode, service: &str) -> Outcome {
    let aws = facts.aws()?;
    let mut options = TransportOptions::default();
    options.ca_bundle = aws.ca_bundle().map(Into::into);
    let path = look_along(url, &options).await.map_err(|error| Finding::failed(code, error.to_string()))?;
    match &path.problem {
        None => Ok(Finding::fine(describe(&path))),
        Some(problem) => Err(refused(&path, problem, code, service, aws.region())),
    }
}

fn describe(path: &NetworkPath) -> String {
    let NetworkPath { authority, proxy, addresses, tls, .. } = path;
    let tls = if *tls { ", TLS verified" } else { ", without TLS" };
    match (proxy, addresses.as_slice()) {
        (Some(proxy), _) => format!("{authority} through the proxy {proxy}{tls}"),
        (None, [only]) => format!("{authority} at {only}{tls}"),
        (None, all) => {
            let first = all.first().map(ToString::to_string).unwrap_or_default();
            format!("{authority} at {first} and {} more{tls}", all.len().saturating_sub(1))
        }
    }
}

fn refused(path: &NetworkPath, problem: &PathProblem, code: ExitCode, service: &str, region: &str) -> Finding {
    let authority = &path.authority;
    let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
    let finding = |what: &str| Finding::failed(code, format!("{authority}: {what}: {}", problem.cause));
    match problem.step {
        PathStep::Name => finding("the name has no address")
            .remedy(format!("check the name server and the VPN: nslookup {host}"))
            .remedy(format!(
                "in a VPC without internet access: create the interface endpoint com.amazonaws.{region}.{service}"
            )),
        PathStep::Connect => finding("no TCP connection").remedy(format!(
            "allow connections to {authority} in the firewall, or set HTTPS_PROXY if there is a proxy"
        )),
        PathStep::Proxy => finding("no connection through the proxy")
            .remedy("check HTTPS_PROXY and NO_PROXY, and whether the proxy allows this host"),
        PathStep::Tls => finding("no TLS connection")
            .remedy(format!("show the server's certificate: openssl s_client -connect {authority} -servername {host}"))
            .remedy("if a proxy intercepts TLS: add --ca-bundle FILE, or export AWS_CA_BUNDLE=FILE, where FILE is its CA certificate in PEM"),
    }
}
