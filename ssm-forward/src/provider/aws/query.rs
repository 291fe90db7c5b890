//! Services with AWS's Query protocol: form parameters and XML answers.

use std::fmt::Debug;

use ::http::Request;
use ::http::header::CONTENT_TYPE;
use aws_sdk_ssm::error::ErrorMetadata;
use aws_smithy_runtime_api::client::orchestrator::{HttpResponse, OrchestratorError};
use quick_xml::de::from_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::form_urlencoded;

use super::signed::{Service, malformed, not_built};
use super::{AwsProvider, ProviderError};

/// A service that uses this protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueryService {
    pub(super) service: Service,
    /// The version of the service's API. It is a date, and a parameter of each call.
    version: &'static str,
}

macro_rules! services {
    ($($constant:ident: $id:literal, $name:literal, $version:literal;)*) => {
        $(pub(super) const $constant: QueryService =
            QueryService { service: Service { id: $id, name: $name }, version: $version };)*
    };
}

services! {
    EC2: "EC2", "ec2", "2016-11-15";
    ELASTICACHE: "ElastiCache", "elasticache", "2015-02-02";
    RDS: "RDS", "rds", "2014-10-31";
    STS: "STS", "sts", "2011-06-15";
}

impl AwsProvider {
    /// Makes the call `name` with the parameters. The members of lists are numbered (`Filter.1.Value.1`).
    ///
    /// # Errors
    /// Returns the same errors as [`super::signed::SignedApi::send`].
    pub(super) async fn query<O>(
        &self,
        service: QueryService,
        name: &'static str,
        parameters: &[(&str, &str)],
    ) -> Result<O, ProviderError>
    where
        O: DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api = self.apis.signed(service.service).await?;
        let request = request(service, name, parameters)?;
        self.renewing(|credentials| api.send(name, request.clone(), credentials, self.credentials.remedy(), read)).await
    }
}

pub(super) fn request(
    service: QueryService,
    name: &str,
    parameters: &[(&str, &str)],
) -> Result<Request<String>, ProviderError> {
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", name)
        .append_pair("Version", service.version)
        .extend_pairs(parameters)
        .finish();
    Request::post("/")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
        .body(body)
        .map_err(|error| not_built(name, &error))
}

pub(super) fn read<O: DeserializeOwned>(response: &HttpResponse) -> Result<O, OrchestratorError<ErrorMetadata>> {
    let body = std::str::from_utf8(response.body().bytes().unwrap_or_default()).map_err(|_| malformed("not UTF-8"))?;
    if !response.status().is_success() {
        return Err(OrchestratorError::operation(refusal(body)));
    }
    from_str(body).map_err(|_| malformed("not the XML that was expected"))
}

/// Parses an error: `<ErrorResponse><Error>…`, or EC2's `<Response><Errors><Error>…`.
fn refusal(body: &str) -> ErrorMetadata {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Answer {
        error: Option<Refusal>,
        errors: Option<Errors>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Errors {
        error: Option<Refusal>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Refusal {
        code: Option<String>,
        message: Option<String>,
    }
    let answer: Answer = from_str(body).unwrap_or_default();
    let found = answer.error.or_else(|| answer.errors?.error).unwrap_or_default();
    let mut refusal = ErrorMetadata::builder();
    if let Some(code) = found.code.filter(|code| !code.is_empty()) {
        refusal = refusal.code(code);
    }
    if let Some(message) = found.message {
        refusal = refusal.message(message);
    }
    refusal.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_refusal_is_found_in_both_forms() {
        for body in [
            "<?xml version=\"1.0\"?><ErrorResponse xmlns=\"http://rds.amazonaws.com/doc/2014-10-31/\"><Error><Type>Sender\
             </Type><Code>DBInstanceNotFound</Code><Message>DBInstance x not found.</Message></Error><RequestId>1\
             </RequestId></ErrorResponse>",
            "<Response><Errors><Error><Code>DBInstanceNotFound</Code><Message>DBInstance x not found.</Message></Error>\
             </Errors><RequestID>1</RequestID></Response>",
        ] {
            let refusal = refusal(body);
            let found = (refusal.code(), refusal.message());
            assert_eq!(found, (Some("DBInstanceNotFound"), Some("DBInstance x not found.")), "{body}");
        }
        assert_eq!(refusal("<html>no</html>").code(), None);
        assert_eq!(refusal("{}").code(), None);
    }
}
