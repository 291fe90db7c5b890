//! A service behind a managed node, named as in the AWS console.

use std::fmt;
use std::str::FromStr;

use crate::provider::{ProviderError, ProviderErrorKind};

/// The kind of service that a [`ServiceSpec`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServiceKind {
    /// A DB instance or cluster of RDS, including Aurora.
    Rds,
    /// A cache of ElastiCache.
    ElastiCache,
    /// A domain of OpenSearch Service.
    OpenSearch,
    /// The API server of a Kubernetes cluster of EKS.
    Eks,
}

impl ServiceKind {
    const ALL: [Self; 4] = [Self::Rds, Self::ElastiCache, Self::OpenSearch, Self::Eks];

    /// Returns the prefix of this kind's names.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Rds => "rds",
            Self::ElastiCache => "elasticache",
            Self::OpenSearch => "opensearch",
            Self::Eks => "eks",
        }
    }
}

/// The name of a service: `rds:IDENTIFIER`, `rds:IDENTIFIER:reader`, `elasticache:NAME[:reader]`, `opensearch:DOMAIN`,
/// `eks:CLUSTER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// The kind of the service.
    pub kind: ServiceKind,
    /// The identifier of the service.
    pub name: String,
    /// Whether to use the reader endpoint instead of the writer endpoint.
    pub reader: bool,
}

impl ServiceSpec {
    /// Parses a service's name. Returns `None` if the text does not have a service's prefix.
    ///
    /// # Errors
    /// Returns an error if the text has a service's prefix but is malformed.
    pub fn of_text(text: &str) -> Option<Result<Self, ProviderError>> {
        let (prefix, rest) = text.split_once(':')?;
        let kind = ServiceKind::ALL.into_iter().find(|kind| kind.prefix() == prefix)?;
        Some(Self::parse(kind, text, rest))
    }

    fn parse(kind: ServiceKind, text: &str, rest: &str) -> Result<Self, ProviderError> {
        let invalid = |message| ProviderError { kind: ProviderErrorKind::Invalid, message };
        let prefix = kind.prefix();
        let has_readers = matches!(kind, ServiceKind::Rds | ServiceKind::ElastiCache);
        let (name, role) = rest.split_once(':').map_or((rest, None), |(name, role)| (name, Some(role)));
        if name.is_empty() || name.contains(['/', ' ']) || name == "arn" {
            return Err(invalid(format!(
                "{text:?} lacks a name: {prefix}:NAME needs the plain name, not an ARN or a URL"
            )));
        }
        let reader = match role {
            None => false,
            Some("reader") if has_readers => true,
            Some(role) if has_readers => {
                return Err(invalid(format!(
                    "{role:?} in {text:?} is unknown; {prefix}:NAME:reader is the readers' endpoint"
                )));
            }
            Some(role) => {
                return Err(invalid(format!("{role:?} in {text:?} is not allowed: the form is {prefix}:NAME")));
            }
        };
        Ok(Self { kind, name: name.to_owned(), reader })
    }
}

impl FromStr for ServiceSpec {
    type Err = ProviderError;

    fn from_str(text: &str) -> Result<Self, ProviderError> {
        Self::of_text(text).unwrap_or_else(|| {
            let message = format!(
                "{text:?} is not the name of a service: rds:NAME, elasticache:NAME, opensearch:NAME or eks:NAME"
            );
            Err(ProviderError { kind: ProviderErrorKind::Invalid, message })
        })
    }
}

impl fmt::Display for ServiceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.reader { ":reader" } else { "" };
        write!(f, "{}:{}{role}", self.kind.prefix(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written() {
        for text in ["rds:db", "rds:db:reader", "elasticache:c", "elasticache:c:reader", "opensearch:logs", "eks:prod"]
        {
            assert_eq!(text.parse::<ServiceSpec>().unwrap().to_string(), text);
        }
        assert_eq!(ServiceSpec::of_text("i-0123"), None);
        assert_eq!(ServiceSpec::of_text("ecs:a/b"), None);
        assert_eq!(ServiceSpec::of_text("3306:db:3306"), None);
    }

    #[test]
    fn malformed_names_are_refused_in_words() {
        for (text, part) in [
            ("rds:", "lacks a name"),
            ("rds:arn:aws:rds:eu-west-1:1:db:x", "not an ARN"),
            ("rds:db:writer", "rds:NAME:reader"),
            ("eks:prod:reader", "not allowed"),
            ("rds:a/b", "lacks a name"),
            ("db", "is not the name of a service"),
        ] {
            let error = text.parse::<ServiceSpec>().unwrap_err();
            assert!(error.message.contains(part), "{text}: {error}");
        }
    }
}
