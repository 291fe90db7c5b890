//! Where each service is: the argument's URL, the environment's, the profile's, or AWS's own.

use aws_config::SdkConfig;
use aws_sdk_ssm::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_types::service_config::ServiceConfigKey;
use url::Url;

use super::errors::invalid;
use super::http::is_loopback;
use super::signed::Service;
use super::{AwsConfig, ProviderError};

/// Refuses a `--endpoint-url` that is none.
pub(super) fn check(endpoint: &str) -> Result<(), ProviderError> {
    parse(endpoint).map(drop).map_err(|error| invalid(format!("--endpoint-url {endpoint:?}: {error}")))
}

/// An endpoint's URL; the error is half a sentence.
pub(super) fn parse(endpoint: &str) -> Result<Url, String> {
    let url = Url::parse(endpoint).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("it must begin with http:// or https://".to_owned()),
    }
}

/// The URL that the SDK will call.
pub(super) async fn of_ssm(config: &AwsConfig, shared: &SdkConfig) -> Result<String, ProviderError> {
    match config.endpoint_url.clone().or_else(|| configured("SSM", shared)) {
        Some(endpoint) => Ok(endpoint),
        None => own(shared).await,
    }
}

/// The URL of another service. The configuration's endpoint is SSM's; on this machine, where one port serves every API, it
/// is the service's too unless the service has one of its own.
pub(super) async fn of(service: Service, config: &AwsConfig, shared: &SdkConfig) -> Result<String, ProviderError> {
    let variable = format!("AWS_ENDPOINT_URL_{}", service.id.to_ascii_uppercase().replace(' ', "_"));
    let has_own = std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    let local = config.endpoint_url.clone().filter(|url| !has_own && is_loopback(url));
    match local.or_else(|| configured(service.id, shared)) {
        Some(endpoint) => Ok(endpoint),
        None => beside(&own(shared).await?, service.name, shared),
    }
}

/// What the environment and the profile say.
fn configured(id: &str, shared: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(id).env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let of_service = shared.service_config().zip(key.ok()).and_then(|(services, key)| services.load_config(key));
    of_service.or_else(|| shared.endpoint_url().map(str::to_owned))
}

/// AWS's own SSM endpoint.
async fn own(shared: &SdkConfig) -> Result<String, ProviderError> {
    let params = Params::builder()
        .set_region(shared.region().map(ToString::to_string))
        .set_use_fips(shared.use_fips())
        .set_use_dual_stack(shared.use_dual_stack())
        .build()
        .map_err(|error| invalid(error.to_string()))?;
    let resolver = DefaultResolver::new();
    let endpoint = resolver.resolve_endpoint(&params).await.map_err(|error| invalid(error.to_string()))?;
    Ok(endpoint.url().to_owned())
}

/// AWS's endpoint of `name`, in the partition of its SSM endpoint: `https://ssm.REGION.SUFFIX` is `https://kms.REGION.SUFFIX`.
fn beside(ssm: &str, name: &str, shared: &SdkConfig) -> Result<String, ProviderError> {
    let region = shared.region().map_or("", AsRef::as_ref);
    let (_, suffix) = ssm
        .split_once(&format!(".{region}."))
        .ok_or_else(|| invalid(format!("no endpoint of {name} is known in the region {region}")))?;
    let fips = if shared.use_fips() == Some(true) { "-fips" } else { "" };
    Ok(format!("https://{name}{fips}.{region}.{suffix}"))
}

#[cfg(test)]
mod tests {
    use aws_config::Region;

    use super::*;

    async fn aws_own(name: &'static str, region: &str, fips: bool, dual_stack: bool) -> String {
        let shared = SdkConfig::builder()
            .region(Region::new(region.to_owned()))
            .use_fips(fips)
            .use_dual_stack(dual_stack)
            .build();
        of(Service { id: "Any", name }, &AwsConfig::default(), &shared).await.unwrap()
    }

    /// The expectations are those of AWS's endpoint rules for KMS and ECS.
    #[tokio::test]
    async fn each_partition_has_its_suffix() {
        for (name, region, fips, dual_stack, url) in [
            ("kms", "eu-west-1", false, false, "https://kms.eu-west-1.amazonaws.com"),
            ("ecs", "us-east-1", false, true, "https://ecs.us-east-1.api.aws"),
            ("kms", "us-east-1", true, false, "https://kms-fips.us-east-1.amazonaws.com"),
            ("ecs", "us-gov-west-1", true, false, "https://ecs-fips.us-gov-west-1.amazonaws.com"),
            ("ecs", "cn-north-1", false, false, "https://ecs.cn-north-1.amazonaws.com.cn"),
            ("kms", "cn-north-1", false, true, "https://kms.cn-north-1.api.amazonwebservices.com.cn"),
            ("kms", "eusc-de-east-1", false, false, "https://kms.eusc-de-east-1.amazonaws.eu"),
        ] {
            assert_eq!(aws_own(name, region, fips, dual_stack).await, url);
        }
    }
}
