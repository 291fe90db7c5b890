//! Converts errors of the AWS SDK and the API to one line each.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::http::transport_error;
use super::source::Source;
use crate::text::{bounded, one_line};
use crate::transport::{Place, TransportError};
use crate::{ProviderError, ProviderErrorKind};

/// A call of the API, for error messages.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    /// The service's name in permissions, such as `ssm`.
    pub(super) service: &'a str,
    /// The name of the call.
    pub(super) name: &'a str,
    pub(super) endpoint: &'a str,
    /// What to do if the credentials are not accepted.
    pub(super) remedy: &'a str,
}

impl Call<'_> {
    /// The error for an answer without `field`.
    pub(super) fn answered_without(&self, field: &str) -> ProviderError {
        ProviderError {
            kind: ProviderErrorKind::Service,
            message: format!("{} answered {} without {field}", self.endpoint, self.name),
        }
    }
}

/// Describes why the call failed.
pub(super) fn api_error<E>(call: &Call<'_>, error: &SdkError<E, HttpResponse>) -> ProviderError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let Call { name, endpoint, .. } = call;
    let unreachable = |message| ProviderError { kind: ProviderErrorKind::Unreachable, message };
    match error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            match service.err().code() {
                Some(code) => service_error(call, code, service.err().message(), status),
                None => no_answer(call, status, service.err()),
            }
        }
        SdkError::ResponseError(response) => no_answer(call, response.raw().status().as_u16(), error),
        SdkError::TimeoutError(_) => unreachable(format!(
            "{endpoint} did not answer {name} in time: check the network, the proxy, the VPC endpoint"
        )),
        SdkError::DispatchFailure(_) => not_reached(call, error),
        other => invalid(format!("{name} could not be called: {}", chain(other))),
    }
}

/// The error for a connection that could not be opened, or failed.
fn not_reached(call: &Call<'_>, error: &(dyn Error + 'static)) -> ProviderError {
    let Call { name, endpoint, .. } = call;
    let (kind, cause) = match transport_error(error) {
        Some(error @ TransportError::Configuration(_)) => (ProviderErrorKind::Configuration, error.to_string()),
        // The endpoint is already in the message.
        Some(TransportError::Unreachable { host, cause }) if is_at(endpoint, host) => {
            (ProviderErrorKind::Unreachable, cause.clone())
        }
        Some(error) => (ProviderErrorKind::Unreachable, error.to_string()),
        None => (ProviderErrorKind::Unreachable, root(error)),
    };
    ProviderError { kind, message: format!("cannot reach {endpoint} for {name}: {}", one_line(&cause)) }
}

fn is_at(endpoint: &str, place: &str) -> bool {
    endpoint.parse().is_ok_and(|uri| Place::of(&uri).to_string() == place)
}

/// The error for an answer that is not in the API's form.
fn no_answer(call: &Call<'_>, status: u16, error: &dyn Error) -> ProviderError {
    let Call { service, name, endpoint, .. } = call;
    let message = match status {
        500.. => format!("{endpoint} failed at {name} with HTTP {status}; try again later"),
        300.. => {
            let api = service.to_ascii_uppercase();
            format!(
                "{endpoint} refused {name} with HTTP {status}, but not in the form of the {api} API: is the endpoint right?"
            )
        }
        _ => format!("{endpoint} gave a malformed answer to {name}: {}", root(error)),
    };
    ProviderError { kind: ProviderErrorKind::Service, message }
}

fn service_error(call: &Call<'_>, code: &str, message: Option<&str>, status: u16) -> ProviderError {
    use ProviderErrorKind as Kind;
    let Call { service, name, remedy, .. } = *call;
    let text = one_line(message.unwrap_or_default());
    let (kind, hint) = match code {
        "TargetNotConnected" => (
            Kind::NotConnected,
            "check the target and the region, that its SSM agent runs, and that its role allows Session Manager"
                .to_owned(),
        ),
        "ExpiredTokenException" | "ExpiredToken" | "RequestExpired" => (Kind::ExpiredCredentials, remedy.to_owned()),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException" => {
            (Kind::Credentials, format!("check the credentials and this machine's clock, or {remedy}"))
        }
        "AccessDeniedException" | "AccessDenied" if text.contains(name) => (Kind::AccessDenied, String::new()),
        "AccessDeniedException" | "AccessDenied" => {
            (Kind::AccessDenied, format!("the credentials need the permission {service}:{name}"))
        }
        "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "RequestLimitExceeded" => {
            (Kind::Throttled, "too many calls at once: try again later".to_owned())
        }
        "DoesNotExistException" => (Kind::SessionGone, String::new()),
        "DBInstanceNotFound"
        | "DBInstanceNotFoundFault"
        | "DBClusterNotFoundFault"
        | "DBSubnetGroupNotFoundFault"
        | "ReplicationGroupNotFoundFault"
        | "CacheClusterNotFound"
        | "CacheClusterNotFoundFault"
        | "ServerlessCacheNotFoundFault"
        | "CacheSubnetGroupNotFoundFault"
        | "ResourceNotFoundException" => (Kind::NotFound, "check the name and the region".to_owned()),
        "UnauthorizedOperation" => {
            (Kind::AccessDenied, format!("the credentials need the permission {service}:{name}"))
        }
        "AuthFailure" => (Kind::Credentials, format!("check the credentials and this machine's clock, or {remedy}")),
        "NotFoundException" | "DisabledException" | "KMSInvalidStateException" | "InvalidKeyUsageException" => (
            Kind::Invalid,
            "the KMS key in Session Manager's preferences must exist in the session's region and be enabled".to_owned(),
        ),
        "ClusterNotFoundException" => {
            (Kind::Invalid, "check the name and the region: aws ecs list-clusters".to_owned())
        }
        "ServiceNotFoundException" | "ServiceNotActiveException" => {
            (Kind::Invalid, "check the name: aws ecs list-services --cluster CLUSTER".to_owned())
        }
        _ if status >= 500 => (Kind::Service, "the service failed: try again later".to_owned()),
        _ => (Kind::Invalid, String::new()),
    };
    let parts = [format!("{name}: {code}"), text, hint];
    let parts: Vec<&str> =
        parts.iter().map(|part| part.trim_end_matches(['.', ';'])).filter(|part| !part.is_empty()).collect();
    ProviderError { kind, message: bounded(parts.join("; ").replacen("; ", ": ", 1)) }
}

/// Describes why the credentials could not be obtained.
pub(super) fn credentials_error(error: &CredentialsError, source: &Source) -> ProviderError {
    let text = chain(error);
    let expired = text.to_ascii_lowercase().contains("expired");
    let kind = if expired { ProviderErrorKind::ExpiredCredentials } else { ProviderErrorKind::Credentials };
    let message = format!("AWS credentials cannot be obtained from {}: {text}; {}", source.describe(), source.remedy());
    ProviderError { kind, message }
}

/// An error that concerns the credentials.
pub(super) fn credentials(message: String) -> ProviderError {
    ProviderError { kind: ProviderErrorKind::Credentials, message }
}

/// An error that concerns the request.
pub(super) fn invalid(message: String) -> ProviderError {
    ProviderError { kind: ProviderErrorKind::Invalid, message }
}

/// Returns an error and its sources, in one line, without repetitions.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&error| error.source()) {
        let next = cause.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
    }
    one_line(&text)
}

/// Returns the innermost source of an error.
fn root(error: &dyn Error) -> String {
    let last = std::iter::successors(Some(error), |&error| error.source()).last();
    one_line(&last.unwrap_or(error).to_string())
}
