//! What the command line asks about, and what the checks have found so far. Each check leaves here what those after it need.

use std::sync::Arc;

use ssm_forward::{AwsProvider, Node, ServiceEndpoint, ServiceSpec, Session, TargetSpec};

use super::finding::Finding;
use crate::args::DoctorArgs;
use crate::exit_code::{ExitCode, Failure};
use crate::spec::{ForwardRequest, Remote};

/// What the checks share.
pub(super) struct Facts {
    pub(super) asked: Asked,
    /// Set by `region`.
    pub(super) aws: Option<Arc<AwsProvider>>,
    /// The credentials are there, and nothing has shown that they are no good.
    pub(super) signed_in: bool,
    /// The endpoint of ssm can be reached.
    pub(super) reachable: bool,
    /// Set by `service`.
    pub(super) service: Option<ServiceEndpoint>,
    /// Set by `target`: the EC2 instance that is meant, online or not.
    pub(super) instance: Option<String>,
    /// Set by `target`: what Systems Manager knows of it.
    pub(super) node: Option<Node>,
    /// Set by `target`: what StartSession takes.
    pub(super) target: Option<String>,
    /// Set by `session`.
    pub(super) session: Option<Session>,
    /// Set by `port`: it takes connections.
    pub(super) port_answers: bool,
}

/// What the command line asks about.
pub(super) struct Asked {
    pub(super) options: DoctorOptions,
    pub(super) target: Option<TargetSpec>,
    pub(super) service: Option<ServiceSpec>,
    /// The far end of a `-L` that names no service.
    pub(super) remote: Option<Remote>,
}

/// The rest of the command line.
pub(super) struct DoctorOptions {
    pub(super) aws: crate::args::LookupAwsArgs,
    pub(super) no_session: bool,
    pub(super) allow_stream_host: Vec<String>,
    pub(super) stream_endpoint: Option<ssm_forward::StreamEndpoint>,
}

impl Facts {
    /// Nothing is known yet.
    ///
    /// # Errors
    /// The command line contradicts itself.
    pub(super) fn new(args: &DoctorArgs) -> Result<Self, Failure> {
        Ok(Self {
            asked: Asked::read(args)?,
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

    /// The configuration.
    pub(super) fn aws(&self) -> Result<Arc<AwsProvider>, Finding> {
        self.aws.clone().ok_or_else(|| needs("region"))
    }

    /// The configuration, if calls can be signed.
    pub(super) fn signed_in(&self) -> Result<Arc<AwsProvider>, Finding> {
        let aws = self.aws()?;
        if self.signed_in { Ok(aws) } else { Err(needs("credentials")) }
    }

    /// The configuration, if SSM can be called.
    pub(super) fn ssm(&self) -> Result<Arc<AwsProvider>, Finding> {
        let aws = self.signed_in()?;
        if self.reachable { Ok(aws) } else { Err(needs("api")) }
    }

    /// The service's endpoint.
    pub(super) fn service(&self) -> Result<&ServiceEndpoint, Finding> {
        match &self.asked.service {
            None => Err(Finding::skipped("no service is named, such as rds:NAME")),
            Some(_) => self.service.as_ref().ok_or_else(|| needs("service")),
        }
    }

    /// The EC2 instance behind the target.
    pub(super) fn instance(&self) -> Result<&str, Finding> {
        self.named()?;
        match (&self.instance, &self.target) {
            (Some(instance), _) => Ok(instance),
            (None, Some(target)) => Err(Finding::skipped(format!("{target} is not an EC2 instance"))),
            (None, None) => Err(needs("target")),
        }
    }

    /// What StartSession takes.
    pub(super) fn target(&self) -> Result<&str, Finding> {
        self.named()?;
        self.target.as_deref().ok_or_else(|| needs("target"))
    }

    fn named(&self) -> Result<(), Finding> {
        let asked = &self.asked;
        let is_named = asked.target.is_some() || asked.service.is_some();
        if is_named { Ok(()) } else { Err(Finding::skipped("no managed node is named")) }
    }

    /// Where the tunnel leads: the service's endpoint, or what `-L` says.
    pub(super) fn remote(&self) -> Result<Remote, Finding> {
        match (&self.asked.remote, &self.asked.service) {
            (Some(remote), _) => Ok(remote.clone()),
            (None, Some(_)) => {
                self.service().map(|service| Remote { host: Some(service.host.clone()), port: service.port })
            }
            (None, None) => Err(Finding::skipped("no port is named: name a service, or add -L")),
        }
    }

    /// Ends the trial session, if there is one.
    pub(super) async fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            session.terminate().await;
        }
    }

    /// ` --profile NAME --region NAME`, for command lines of AWS's and of this program: the profile as the person gave it, and
    /// the region in any case, because not every tool looks for it in the same places.
    pub(super) fn options(&self) -> String {
        let given = &self.asked.options.aws;
        let region = self.aws.as_ref().map(|aws| aws.region().to_owned()).or_else(|| given.region.clone());
        let option =
            |(name, value): (&str, Option<String>)| Some(format!(" --{name} {}", shlex::try_quote(&value?).ok()?));
        [("profile", given.profile.clone()), ("region", region)].into_iter().filter_map(option).collect()
    }
}

fn needs(check: &str) -> Finding {
    Finding::skipped(format!("needs {check:?}"))
}

impl Asked {
    fn read(args: &DoctorArgs) -> Result<Self, Failure> {
        let usage = |text: String| Failure::new(ExitCode::Usage, "usage", text);
        let parse = |text: &String| text.parse().map_err(|error: ssm_forward::ProviderError| usage(error.message));
        let mut asked = Self {
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
                Some(service) => asked.service = Some(service?),
                None if asked.target.is_some() => {
                    return Err(usage(
                        "the managed node is named twice, as TARGET and with --target; see --help".into(),
                    ));
                }
                None => asked.target = Some(parse(text)?),
            }
        }
        match args.forward.clone() {
            Some(_) if asked.service.is_some() => {
                return Err(usage("both a service and -L are named: check one after the other; see --help".into()));
            }
            Some(ForwardRequest::Service(forward)) => asked.service = Some(forward.service),
            Some(ForwardRequest::Plain(spec)) if asked.target.is_none() => {
                let text = spec.text;
                return Err(usage(format!("-L {text} needs a managed node: name it as <TARGET>; see --help")));
            }
            Some(ForwardRequest::Plain(spec)) => asked.remote = Some(spec.remote),
            None => {}
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn asked(words: &[&str]) -> Result<Asked, Failure> {
        let cli = Cli::try_parse_from(["aws-ssm-forward", "doctor"].iter().chain(words)).unwrap();
        let Command::Doctor(args) = cli.command else { panic!("another command") };
        Asked::read(&args)
    }

    #[test]
    fn a_node_a_service_and_a_forward_can_be_asked_about() {
        let nothing = asked(&[]).unwrap();
        assert!(nothing.target.is_none() && nothing.service.is_none() && nothing.remote.is_none());
        let both = asked(&["rds:db", "-t", "web"]).unwrap();
        assert_eq!(
            (both.service.unwrap().to_string(), both.target.unwrap().to_string()),
            ("rds:db".into(), "web".into())
        );
        assert_eq!(asked(&["-L", "3307:rds:db"]).unwrap().service.unwrap().to_string(), "rds:db");
        let plain = asked(&["web", "-L", "1:db:3306"]).unwrap();
        assert_eq!(plain.remote, Some(Remote { host: Some("db".into()), port: 3306 }));
        for (words, part) in [
            (&["web", "-t", "db"][..], "named twice"),
            (&["rds:db", "-L", "1:2"], "one after the other"),
            (&["-L", "1:db:3306"], "needs a managed node"),
        ] {
            let failure = asked(words).err().unwrap();
            assert!(failure.message.contains(part), "{failure}");
        }
    }
}
