//! Resolves the destinations of a forward before it listens. Names are looked up once for all `-L`.

use std::sync::Arc;

use ssm_forward::{
    AwsProvider, Destination, NamedProvider, NodeSource, ServiceEndpoint, ServiceKind, ServiceSpec, SessionProvider,
    TargetSpec,
};

use crate::args::TunnelArgs;
use crate::exit_code::{ExitCode, Failure};
use crate::local;
use crate::spec::{ForwardRequest, ForwardSpec, ServiceForward};
use crate::targets;

/// One `-L` after its names were looked up.
pub(crate) struct Planned {
    /// The `-L`, with the actual host and port.
    pub(crate) spec: ForwardSpec,
    /// The target of the first session.
    pub(crate) target: String,
    /// Starts the sessions. Looks up names again for each session.
    pub(crate) provider: Arc<dyn SessionProvider>,
    /// The destination service, if the `-L` names one.
    pub(crate) service: Option<ServiceEndpoint>,
    /// The result of the look-ups as a text; `None` if there were no look-ups.
    pub(crate) found: Option<String>,
}

/// Looks up all names on the command line.
///
/// # Errors
/// Returns an error if a name does not exist, or if the user is not allowed to look it up.
pub(crate) async fn plan(
    args: &TunnelArgs,
    Requests { target, forwards }: Requests,
    aws: &Arc<AwsProvider>,
) -> Result<Vec<Planned>, Failure> {
    let source = match &target {
        Some(target) => {
            targets::await_online(aws, target, args.session.wait_connected.unwrap_or_default()).await?;
            targets::source(aws, target, args.session.any).await?
        }
        None => NodeSource::InVpcOfService,
    };
    let mut planned = Vec::new();
    for request in forwards {
        planned.push(plan_one(aws, source.clone(), request).await?);
    }
    Ok(planned)
}

/// The forwards that the command line requests.
#[derive(Debug)]
pub(crate) struct Requests {
    /// The node, if one is named.
    target: Option<TargetSpec>,
    forwards: Vec<ForwardRequest>,
}

/// Interprets the command line. A service in the place of the node is a destination. Does not look up any names.
///
/// # Errors
/// Returns an error if an argument is missing, if arguments contradict each other, or if AWS would refuse them.
pub(crate) fn requests(args: &TunnelArgs) -> Result<Requests, Failure> {
    let usage = |text: &str| Failure::new(ExitCode::Usage, "usage", text);
    let mut requests = args.forwards.clone();
    let target = match args.target() {
        Some(text) => match ServiceSpec::of_text(text) {
            Some(service) => {
                let forward = ServiceForward { listen: None, service: service?, text: text.to_owned() };
                requests.insert(0, ForwardRequest::Service(forward));
                args.via().map(str::parse).transpose()?
            }
            None if args.via().is_some() => {
                return Err(usage("the managed node is named twice, as TARGET and with --target; see --help"));
            }
            None => Some(text.parse()?),
        },
        None if args.aws.local => Some(local::DEFAULT_TARGET.parse()?),
        None => None,
    };
    if requests.is_empty() {
        return Err(usage(
            "what to forward is missing: give -L port:host:hostport, or a service such as rds:NAME; see --help",
        ));
    }
    for request in &requests {
        let ForwardRequest::Plain(spec) = request else { continue };
        if target.is_none() {
            let text =
                format!("-L {} needs a managed node: name it as <TARGET> or with --target; see --help", spec.text);
            return Err(usage(&text));
        }
        // A custom document may accept host names that AWS's document rejects.
        if args.session.document_name.is_none() {
            spec.remote.check().map_err(|why| usage(&format!("-L '{}': {why}", spec.text)))?;
        }
    }
    let leads_to = |kind| {
        requests
            .iter()
            .any(|request| matches!(request, ForwardRequest::Service(forward) if forward.service.kind == kind))
    };
    if args.iam_auth.is_some() && !leads_to(ServiceKind::Rds) {
        return Err(usage("--iam-auth needs a database to log in to, such as rds:NAME; see --help"));
    }
    if args.kubeconfig.is_some() && !leads_to(ServiceKind::Eks) {
        return Err(usage("--kubeconfig needs a cluster, eks:NAME; see --help"));
    }
    Ok(Requests { target, forwards: requests })
}

/// Looks up the names of one forward.
async fn plan_one(aws: &Arc<AwsProvider>, source: NodeSource, request: ForwardRequest) -> Result<Planned, Failure> {
    let service = match &request {
        ForwardRequest::Plain(_) => None,
        ForwardRequest::Service(forward) => Some(forward.service.clone()),
    };
    let provider = NamedProvider::new(aws.clone(), source, service);
    let destination = provider.find().await?;
    let spec = match (request, &destination.service) {
        (ForwardRequest::Plain(spec), _) => spec,
        (ForwardRequest::Service(forward), Some(service)) => forward.at(service),
        (ForwardRequest::Service(forward), None) => {
            return Err(Failure::internal(format!("{} was not looked up", forward.service)));
        }
    };
    let found = describe(&destination);
    let Destination { node, service, .. } = destination;
    Ok(Planned { spec, target: node, provider: Arc::new(provider), service, found })
}

/// Describes the result of the look-ups in one line. Returns `None` if there were no look-ups.
fn describe(destination: &Destination) -> Option<String> {
    let service = destination
        .service
        .as_ref()
        .map(|service| format!("{} is {}:{} ({})", service.spec, service.host, service.port, service.engine));
    let node = destination.details.as_ref().map(|node| format!("the managed node is {node}"));
    let parts: Vec<_> = service.into_iter().chain(node).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    /// Returns the node and the text of each forward.
    fn read(words: &[&str]) -> Result<(Option<String>, Vec<String>), String> {
        let cli = Cli::try_parse_from(["aws-ssm-forward", "forward"].iter().chain(words))
            .map_err(|error| error.to_string())?;
        let Command::Forward(args) = cli.command else { panic!("another command") };
        let Requests { target, forwards } = requests(&args.tunnel).map_err(|failure| failure.message)?;
        let text = |request: &ForwardRequest| match request {
            ForwardRequest::Plain(spec) => spec.text.clone(),
            ForwardRequest::Service(forward) => forward.text.clone(),
        };
        let texts = forwards.iter().map(text).collect();
        Ok((target.map(|target| target.to_string()), texts))
    }

    #[test]
    fn a_service_may_stand_in_the_place_of_the_node() {
        let some = |target: &str, forwards: &[&str]| {
            Ok((Some(target.to_owned()), forwards.iter().map(|&text| text.to_owned()).collect()))
        };
        assert_eq!(read(&["i-1", "-L", "1:2"]), some("i-1", &["1:2"]));
        assert_eq!(read(&["-t", "web", "-L", "rds:db"]), some("web", &["rds:db"]));
        assert_eq!(read(&["rds:db", "-t", "web", "-L", "1:2"]), some("web", &["rds:db", "1:2"]));
        assert_eq!(read(&["rds:db", "-L", "rds:other"]), Ok((None, vec!["rds:db".into(), "rds:other".into()])));
        assert_eq!(read(&["-L", "rds:db"]), Ok((None, vec!["rds:db".into()])));
        assert_eq!(read(&["--local", "-L", "1:2"]), some(local::DEFAULT_TARGET, &["1:2"]));
    }

    #[test]
    fn what_is_missing_is_told() {
        for (words, part) in [
            (&["i-1"][..], "what to forward is missing"),
            (&["-L", "1:2"], "needs a managed node"),
            (&["rds:db", "-L", "1:2"], "needs a managed node"),
            (&["i-1", "-t", "i-2", "-L", "1:2"], "named twice"),
            (&["i-1", "-L", "1:2", "--iam-auth", "app"], "--iam-auth needs a database"),
            (&["rds:db", "--kubeconfig", "file"], "--kubeconfig needs a cluster"),
            (&["--local", "--region", "eu-central-1", "-L", "1:2"], "--region"),
        ] {
            let error = read(words).unwrap_err();
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }
}
