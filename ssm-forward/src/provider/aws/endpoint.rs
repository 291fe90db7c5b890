//! The endpoint of each service: the configured one, or the default of AWS.

use aws_sdk_ssm::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use url::Url;

use super::ProviderError;
use super::errors::invalid;
use super::settings::Settings;
use super::signed::Service;

/// Rejects an invalid endpoint. `named` describes where it was configured.
pub(super) fn check(named: &str, endpoint: &str) -> Result<(), ProviderError> {
    parse(endpoint).map(drop).map_err(|error| invalid(format!("{named} {endpoint:?}: {error}")))
}

/// Parses the URL of an endpoint. The error is a part of a sentence.
pub(super) fn parse(endpoint: &str) -> Result<Url, String> {
    let url = Url::parse(endpoint).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("it must begin with http:// or https://".to_owned()),
    }
}

/// Returns the URL of SSM that the SDK will call.
pub(super) async fn of_ssm(settings: &Settings) -> Result<String, ProviderError> {
    match settings.ssm_endpoint() {
        Some(endpoint) => Ok(endpoint),
        None => own(settings).await,
    }
}

/// Returns the URL of another service.
pub(super) async fn of(service: Service, settings: &Settings) -> Result<String, ProviderError> {
    match settings.other_endpoint(service.id) {
        Some(endpoint) => Ok(endpoint),
        None => sibling(&own(settings).await?, service.name, settings),
    }
}

/// Returns AWS's default URL of the data channels.
pub(super) async fn of_channel(settings: &Settings) -> Result<String, ProviderError> {
    sibling(&own(settings).await?, "ssmmessages", settings)
}

/// Returns AWS's default endpoint of SSM.
async fn own(settings: &Settings) -> Result<String, ProviderError> {
    let params = Params::builder()
        .region(settings.region.clone())
        .use_fips(settings.fips)
        .use_dual_stack(settings.dual_stack)
        .build()
        .map_err(|error| invalid(error.to_string()))?;
    let resolver = DefaultResolver::new();
    let endpoint = resolver.resolve_endpoint(&params).await.map_err(|error| invalid(error.to_string()))?;
    Ok(endpoint.url().to_owned())
}

/// Returns AWS's default endpoint of `name`, in the partition of its SSM endpoint: `https://ssm.REGION.SUFFIX` becomes
/// `https://kms.REGION.SUFFIX`.
fn sibling(ssm: &str, name: &str, settings: &Settings) -> Result<String, ProviderError> {
    let region = &settings.region;
    let (_, suffix) = ssm
        .split_once(&format!(".{region}."))
        .ok_or_else(|| invalid(format!("no endpoint of {name} is known in the region {region}")))?;
    Ok(format!("https://{}.{region}.{suffix}", label(name, settings)))
}

/// Returns the label before the region: the name of the service, with `-fips` if FIPS is requested, and with AWS's exceptions.
/// `tests/real/endpoints.py` compares the labels with botocore's rules.
fn label(name: &str, settings: &Settings) -> String {
    let Settings { fips, dual_stack, .. } = *settings;
    let region = settings.region.as_str();
    let is_gov = region.starts_with("us-gov-");
    let is_china = region.starts_with("cn-");
    let is_isolated = ["us-iso", "eu-iso"].iter().any(|start| region.starts_with(start));
    let is_public = !is_gov && !is_china && !is_isolated && !region.starts_with("eusc-");
    match (name, fips, dual_stack) {
        ("es", false, true) if is_public || is_gov || is_china => "aos".to_owned(),
        ("eks", true, false) if is_public => "fips.eks".to_owned(),
        // All endpoints of these services in this partition are FIPS endpoints.
        ("ec2" | "eks" | "elasticache" | "rds" | "sts", true, false) if is_gov => name.to_owned(),
        (_, true, _) => format!("{name}-fips"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::AwsConfig;
    use super::super::files::Files;
    use super::super::source::Selected;
    use super::*;

    async fn aws_own(name: &'static str, region: &str, fips: bool, dual_stack: bool) -> String {
        let config = AwsConfig { region: Some(region.to_owned()), ..AwsConfig::default() };
        let mut settings = Settings::new(&config, &Files::default(), &Selected::new(None)).unwrap();
        (settings.fips, settings.dual_stack) = (fips, dual_stack);
        of(Service { id: "Any", name }, &settings).await.unwrap()
    }

    /// The expected values are the ones of AWS's endpoint rules for KMS and ECS.
    #[tokio::test]
    async fn each_partition_has_its_suffix() {
        for (name, region, fips, dual_stack, url) in [
            ("kms", "eu-west-1", false, false, "https://kms.eu-west-1.amazonaws.com"),
            ("ecs", "us-east-1", false, true, "https://ecs.us-east-1.api.aws"),
            ("kms", "us-east-1", true, false, "https://kms-fips.us-east-1.amazonaws.com"),
            ("ecs", "us-gov-west-1", true, false, "https://ecs-fips.us-gov-west-1.amazonaws.com"),
            ("ecs", "cn-north-1", false, false, "https://ecs.cn-north-1.amazonaws.com.cn"),
            ("kms", "cn-north-1", false, true, "https://kms.cn-north-1.api.amazonwebservices.com.cn"),
            ("eks", "us-east-1", true, false, "https://fips.eks.us-east-1.amazonaws.com"),
            ("eks", "us-gov-east-1", true, false, "https://eks.us-gov-east-1.amazonaws.com"),
            ("eks", "cn-north-1", true, false, "https://eks-fips.cn-north-1.amazonaws.com.cn"),
            ("sts", "us-gov-west-1", true, false, "https://sts.us-gov-west-1.amazonaws.com"),
            ("rds", "us-gov-west-1", true, false, "https://rds.us-gov-west-1.amazonaws.com"),
            ("es", "eu-west-1", false, true, "https://aos.eu-west-1.api.aws"),
            ("es", "eu-west-1", true, true, "https://es-fips.eu-west-1.api.aws"),
            ("kms", "eusc-de-east-1", false, false, "https://kms.eusc-de-east-1.amazonaws.eu"),
        ] {
            assert_eq!(aws_own(name, region, fips, dual_stack).await, url);
        }
    }
}
