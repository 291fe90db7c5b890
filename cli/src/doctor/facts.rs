//! The subject of the checks, and what they have found so far. Each check stores what later checks need.

use std::sync::Arc;

use ssm_forward::{AwsProvider, Node, ServiceEndpoint, ServiceSpec, Session, TargetSpec};

use super::finding::Finding;
use crate::args::DoctorArgs;
use crate::exit_code::{ExitCode, Failure};
use crate::spec::{ForwardRequest, Remote};

/// The state that the checks share.
pub(super) struct Facts {
    pub(super) query: Query,
    /// The AWS configuration. Set by `region`.
    pub(super) aws: Option<Arc<AwsProvider>>,
    /// Whether there are credentials, and no check has shown that they are invalid.
    pub(super) signed_in: bool,
    /// Whether the endpoint of ssm can be reached.
    pub(super) reachable: bool,
    /// The endpoint of the service. Set by `service`.
    pub(super) service: Option<ServiceEndpoint>,
    /// The id of the target EC2 instance, online or not. Set by `target`.
    pub(super) instance: Option<String>,
    /// The node as Systems Manager describes it. Set by `target`.
    pub(super) node: Option<Node>,
    /// The target for StartSession. Set by `target`.
    pub(super) target: Option<String>,
    /// The trial session. Set by `session`.
    pub(super) session: Option<Session>,
    /// Whether the port accepts connections. Set by `port`.
    pub(super) port_answers: bool,
}

/// The subject of the checks, from the command line.
pub(super) struct Query {
    pub(super) options: DoctorOptions,
    pub(super) target: Option<TargetSpec>,
    pub(super) service: Option<ServiceSpec>,
    /// The destination of a `-L` that is not a service.
    pub(super) remote: Option<Remote>,
}

/// The other options of the command line.
pub(super) struct DoctorOptions {
    pub(super) aws: crate::args::LookupAwsArgs,
    pub(super) no_session: bool,
    pub(super) allow_stream_host: Vec<String>,
    pub(super) stream_endpoint: Option<ssm_forward::StreamEndpoint>,
}

impl Facts {
    /// Creates the state before the first check.
    ///
    /// # Errors
    /// Returns an error if the command line contradicts itself.
    pub(super) fn new(args: &DoctorArgs) -> Result<Self, Failure> {
        Ok(Self {
            query: Query::read(args)?,
            aws: None,
            signed_in: false,
            reachable: false,
            service: None,
            instance: None,
            node: None,
            target: None,
            session: None,
            port_answers: false,
        })
    }

    /// Returns the AWS configuration.
    pub(super) fn aws(&self) -> Result<Arc<AwsProvider>, Finding> {
        self.aws.clone().ok_or_else(|| needs("region"))
    }

    /// Returns the AWS configuration, if calls can be signed.
    pub(super) fn signed_in(&self) -> Result<Arc<AwsProvider>, Finding> {
        let aws = self.aws()?;
        if self.signed_in { Ok(aws) } else { Err(needs("credentials")) }
    }

    /// Returns the AWS configuration, if SSM can be called.
    pub(super) fn ssm(&self) -> Result<Arc<AwsProvider>, Finding> {
        let aws = self.signed_in()?;
        if self.reachable { Ok(aws) } else { Err(needs("api")) }
    }

    /// Returns the service's endpoint.
    pub(super) fn service(&self) -> Result<&ServiceEndpoint, Finding> {
        match &self.query.service {
            None => Err(Finding::skipped("no service is named, such as rds:NAME")),
            Some(_) => self.service.as_ref().ok_or_else(|| needs("service")),
        }
    }

    /// Returns the id of the EC2 instance behind the target.
    pub(super) fn instance(&self) -> Result<&str, Finding> {
        self.check_node_is_named()?;
        match (&self.instance, &self.target) {
            (Some(instance), _) => Ok(instance),
            (None, Some(target)) => Err(Finding::skipped(format!("{target} is not an EC2 instance"))),
            (None, None) => Err(needs("target")),
        }
    }

    /// Returns the target for StartSession.
    pub(super) fn target(&self) -> Result<&str, Finding> {
        self.check_node_is_named()?;
        self.target.as_deref().ok_or_else(|| needs("target"))
    }

    /// Checks that the command line names a managed node or a service.
    fn check_node_is_named(&self) -> Result<(), Finding> {
        let query = &self.query;
        let is_named = query.target.is_some() || query.service.is_some();
        if is_named { Ok(()) } else { Err(Finding::skipped("no managed node is named")) }
    }

    /// Returns the tunnel's destination: the service's endpoint, or the one of `-L`.
    pub(super) fn remote(&self) -> Result<Remote, Finding> {
        match (&self.query.remote, &self.query.service) {
            (Some(remote), _) => Ok(remote.clone()),
            (None, Some(_)) => {
                self.service().map(|service| Remote { host: Some(service.host.clone()), port: service.port })
            }
            (None, None) => Err(Finding::skipped("no port is named: name a service, or add -L")),
        }
    }

    /// Terminates the trial session, if there is one.
    pub(super) async fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            session.terminate().await;
        }
    }

    /// Returns ` --profile NAME --region NAME` for command lines of AWS and of this program. The profile is the one that the user
    /// gave. The region is always included, because other tools may look for it in other places.
    pub(super) fn options(&self) -> String {
        let given = &self.query.options.aws;
        let region = self.aws.as_ref().map(|aws| aws.region().to_owned()).or_else(|| given.region.clone());
        let option =
            |(name, value): (&str, Option<String>)| Some(format!(" --{name} {}", shlex::try_quote(&value?).ok()?));
        [("profile", given.profile.clone()), ("region", region)].into_iter().filter_map(option).collect()
    }
}

fn needs(check: &str) -> Finding {
    Finding::skipped(format!("needs {check:?}"))
}

impl Query {
    fn read(args: &DoctorArgs) -> Result<Self, Failure> {
        let usage = |text: String| Failure::new(ExitCode::Usage, "usage", text);
        let parse = |text: &String| text.parse().map_err(|error: ssm_forward::ProviderError| usage(error.message));
        let mut query = Self {
            options: DoctorOptions {
                aws: args.aws.clone(),
                no_session: args.no_session,
                allow_stream_host: args.allow_stream_host.clone(),
                stream_endpoint: args.stream_endpoint.clone(),
            },
            target: args.node.as_ref().map(parse).transpose()?,
            service: None,
            remote: None,
        };
        if let Some(text) = &args.target {
            match ServiceSpec::of_text(text) {
                Some(service) => query.service = Some(service?),
                None if query.target.is_some() => {
                    return Err(usage(
                        "the managed node is named twice, as TARGET and with --target; see --help".into(),
                    ));
                }
                None => query.target = Some(parse(text)?),
            }
        }
        match args.forward.clone() {
            Some(_) if query.service.is_some() => {
                return Err(usage("both a service and -L are named: check one after the other; see --help".into()));
            }
            Some(ForwardRequest::Service(forward)) => query.service = Some(forward.service),
            Some(ForwardRequest::Plain(spec)) if query.target.is_none() => {
                let text = spec.text;
                return Err(usage(format!("-L {text} needs a managed node: name it as <TARGET>; see --help")));
            }
            Some(ForwardRequest::Plain(spec)) => query.remote = Some(spec.remote),
            None => {}
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn read(words: &[&str]) -> Result<Query, Failure> {
        let cli = Cli::try_parse_from(["aws-ssm-forward", "doctor"].iter().chain(words)).unwrap();
        let Command::Doctor(args) = cli.command else { panic!("another command") };
        Query::read(&args)
    }

    #[test]
    fn a_node_a_service_and_a_forward_can_be_asked_about() {
        let nothing = read(&[]).unwrap();
        assert!(nothing.target.is_none() && nothing.service.is_none() && nothing.remote.is_none());
        let both = read(&["rds:db", "-t", "web"]).unwrap();
        assert_eq!(
            (both.service.unwrap().to_string(), both.target.unwrap().to_string()),
            ("rds:db".into(), "web".into())
        );
        assert_eq!(read(&["-L", "3307:rds:db"]).unwrap().service.unwrap().to_string(), "rds:db");
        let plain = read(&["web", "-L", "1:db:3306"]).unwrap();
        assert_eq!(plain.remote, Some(Remote { host: Some("db".into()), port: 3306 }));
        for (words, part) in [
            (&["web", "-t", "db"][..], "named twice"),
            (&["rds:db", "-L", "1:2"], "one after the other"),
            (&["-L", "1:db:3306"], "needs a managed node"),
        ] {
            let failure = read(words).err().unwrap();
            assert!(failure.message.contains(part), "{failure}");
        }
    }
}
