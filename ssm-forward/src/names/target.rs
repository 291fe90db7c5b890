//! A managed node, given by an id or a name.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::provider::{EcsSpec, ProviderError, ProviderErrorKind};

/// A managed node, as a user names it on the command line.
///
/// | text | meaning |
/// |---|---|
/// | `i-0123456789abcdef0`, `mi-…` | this node |
/// | `tag:Key=Value`, `tag:Key=Value,Key=Value` | a node with these tags; all must match |
/// | `asg:NAME` | a node of this Auto Scaling group |
/// | `ecs:CLUSTER/SERVICE[/CONTAINER]` | a container of a running task |
/// | `10.0.0.5` | the node with this private address |
/// | `name:NAME` | a node with this Name tag, computer name or private DNS name |
/// | any other text with a colon | an id of Session Manager that is passed unchanged, such as `sagemaker-cluster:…` |
/// | any other text | the same as `name:` |
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetSpec {
    /// An id that StartSession accepts unchanged.
    Id(String),
    /// A container of ECS.
    Ecs(EcsSpec),
    /// Tags that must all match, as keys and values.
    Tags(Vec<(String, String)>),
    /// The name of an Auto Scaling group.
    AutoScalingGroup(String),
    /// A private address.
    Address(IpAddr),
    /// A Name tag, computer name or private DNS name.
    Name(String),
}

impl TargetSpec {
    /// Whether API calls are needed to find the node.
    pub fn is_name(&self) -> bool {
        !matches!(self, Self::Id(_) | Self::Ecs(_))
    }

    /// Whether the nodes are interchangeable, so that any of them can be used, as in an Auto Scaling group.
    pub fn means_any(&self) -> bool {
        matches!(self, Self::AutoScalingGroup(_))
    }
}

impl FromStr for TargetSpec {
    type Err = ProviderError;

    fn from_str(text: &str) -> Result<Self, ProviderError> {
        const FORMS: &str = "expected an instance id, a name, tag:Key=Value, asg:NAME or ecs:CLUSTER/SERVICE";
        if text.trim().is_empty() {
            return Err(invalid(format!("the target is empty; {FORMS}")));
        }
        if text.trim() != text {
            return Err(invalid(format!("{text:?} begins or ends with white space; {FORMS}")));
        }
        if is_node_id(text) {
            return Ok(Self::Id(text.to_owned()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text.split_once(':') {
            Some(("tag", tags)) => parse_tags(text, tags),
            Some(("asg", name)) => named(text, name).map(Self::AutoScalingGroup),
            Some(("name", name)) => named(text, name).map(Self::Name),
            Some(("ecs", _)) => Ok(EcsSpec::of_target(text)?.map_or_else(|| Self::Id(text.to_owned()), Self::Ecs)),
            Some((kind, rest)) if is_kind(kind) && !rest.is_empty() => Ok(Self::Id(text.to_owned())),
            Some(_) => Err(invalid(format!("{text:?} is not a target; {FORMS}"))),
            None => Ok(Self::Name(text.to_owned())),
        }
    }
}

/// Whether the text is `i-` or `mi-` followed by hexadecimal digits.
fn is_node_id(text: &str) -> bool {
    let digits = text.strip_prefix("mi-").or_else(|| text.strip_prefix("i-"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether the text can be the part before the colon of an id that is passed unchanged.
fn is_kind(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn named(text: &str, name: &str) -> Result<String, ProviderError> {
    match name {
        "" => Err(invalid(format!("{text:?} lacks the name after the colon"))),
        name => Ok(name.to_owned()),
    }
}

fn parse_tags(text: &str, tags: &str) -> Result<TargetSpec, ProviderError> {
    let parts = tags.split(',').map(|tag| match tag.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(invalid(format!("{tag:?} in {text:?} is not Key=Value; several tags are tag:Key=Value,Key=Value"))),
    });
    parts.collect::<Result<_, _>>().map(TargetSpec::Tags)
}

fn invalid(message: String) -> ProviderError {
    ProviderError { kind: ProviderErrorKind::Invalid, message }
}

impl fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::Ecs(spec) => spec.fmt(f),
            Self::AutoScalingGroup(name) => write!(f, "asg:{name}"),
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
            Self::Tags(tags) => {
                let tags: Vec<_> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(f, "tag:{}", tags.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_told_apart() {
        let tags = |tags: &[(&str, &str)]| {
            TargetSpec::Tags(tags.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
        };
        for (text, spec) in [
            ("i-0123456789abcdef0", TargetSpec::Id("i-0123456789abcdef0".into())),
            ("mi-0123456789abcdef0", TargetSpec::Id("mi-0123456789abcdef0".into())),
            ("sagemaker-cluster:c_worker-i-1", TargetSpec::Id("sagemaker-cluster:c_worker-i-1".into())),
            ("ecs:cluster_task_runtime", TargetSpec::Id("ecs:cluster_task_runtime".into())),
            ("ecs:prod/web/app", TargetSpec::Ecs("ecs:prod/web/app".parse().unwrap())),
            ("tag:Role=bastion", tags(&[("Role", "bastion")])),
            ("tag:aws:x=1,Env=prod", tags(&[("aws:x", "1"), ("Env", "prod")])),
            ("tag:Empty=", tags(&[("Empty", "")])),
            ("asg:workers", TargetSpec::AutoScalingGroup("workers".into())),
            ("10.0.0.5", TargetSpec::Address([10, 0, 0, 5].into())),
            ("fd00::5", TargetSpec::Address("fd00::5".parse().unwrap())),
            ("i-like-names", TargetSpec::Name("i-like-names".into())),
            ("staging bastion", TargetSpec::Name("staging bastion".into())),
            ("ip-10-0-0-5.ec2.internal", TargetSpec::Name("ip-10-0-0-5.ec2.internal".into())),
            ("name:10.0.0.5", TargetSpec::Name("10.0.0.5".into())),
        ] {
            assert_eq!(text.parse::<TargetSpec>().unwrap(), spec, "{text}");
        }
    }

    #[test]
    fn what_is_no_target_is_refused_in_words() {
        for (text, part) in [
            ("", "is empty"),
            ("  ", "is empty"),
            ("tag:Role", "is not Key=Value"),
            ("tag:=x", "is not Key=Value"),
            ("tag:A=1,,B=2", "is not Key=Value"),
            (":x", "is not a target"),
            ("[::1]", "is not a target"),
            ("x:", "is not a target"),
            ("i-0123 ", "white space"),
            ("asg:", "lacks the name"),
            ("name:", "lacks the name"),
            ("ecs:a/b/c/d", "ecs:CLUSTER/SERVICE"),
        ] {
            let error = text.parse::<TargetSpec>().unwrap_err();
            assert_eq!(error.kind, ProviderErrorKind::Invalid);
            assert!(error.message.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn it_is_written_as_it_was_read() {
        for text in ["i-0a", "tag:A=1,B=2", "asg:x", "10.0.0.5", "web", "ecs:prod/web"] {
            assert_eq!(text.parse::<TargetSpec>().unwrap().to_string(), text);
        }
    }
}
