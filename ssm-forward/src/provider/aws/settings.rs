//! The configuration except credentials: region, endpoints, trusted roots. The environment takes precedence over the profile.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::files::{Files, Profile, config_file};
use super::http::is_loopback;
use super::source::Selected;
use super::{AwsConfig, variable};
use crate::{ProviderError, ProviderErrorKind};

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) region: String,
    pub(super) fips: bool,
    pub(super) dual_stack: bool,
    /// A PEM file of trusted roots.
    pub(super) ca_bundle: Option<CaBundle>,
    pub(super) given_endpoint: Option<String>,
    endpoints: Endpoints,
}

/// A PEM file, and where it was configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CaBundle {
    pub(super) path: PathBuf,
    pub(super) named_by: String,
}

/// Endpoints that replace AWS's own.
#[derive(Clone, Debug, Default)]
struct Endpoints {
    /// Endpoints by service, with the names that profiles use: `ssm`, `route_53`.
    of_services: BTreeMap<String, String>,
    of_profile: Option<String>,
    ignored: bool,
}

impl Settings {
    /// Collects the settings from the configuration, the environment and the profile.
    ///
    /// # Errors
    /// Returns an error if there is no region, or if it is invalid.
    pub(super) fn new(config: &AwsConfig, files: &Files, selected: &Selected) -> Result<Self, ProviderError> {
        let nothing = Profile::default();
        let profile = files.profile(selected.name()).unwrap_or(&nothing);
        Ok(Self {
            region: region(config, profile, selected)?,
            fips: is_on("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint", profile),
            dual_stack: is_on("AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint", profile),
            ca_bundle: ca_bundle(config, profile, selected),
            given_endpoint: config.endpoint_url.as_deref().map(without_login),
            endpoints: Endpoints {
                of_services: files.service_endpoints(profile),
                of_profile: profile.get("endpoint_url").map(str::to_owned),
                ignored: is_on("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "ignore_configured_endpoint_urls", profile),
            },
        })
    }

    /// Returns SSM's endpoint from the argument, the environment or the profile. `None`: AWS's own. A configured endpoint takes
    /// precedence over FIPS and dual-stack settings.
    pub(super) fn ssm_endpoint(&self) -> Option<String> {
        self.endpoint("SSM", self.given_endpoint.clone())
    }

    /// Returns the endpoint of another service, by its id. The argument is meant for SSM. If it is on this machine, where one port
    /// serves every API, it is also used for the service, unless the service has its own variable.
    pub(super) fn other_endpoint(&self, service: &str) -> Option<String> {
        let local = self.given_endpoint.clone().filter(|url| is_loopback(url) && own_variable(service).is_none());
        self.endpoint(service, local)
    }

    /// Returns `given`, or the endpoint from the environment and the profile.
    fn endpoint(&self, service: &str, given: Option<String>) -> Option<String> {
        if given.is_some() || self.endpoints.ignored {
            return given;
        }
        let configured = own_variable(service)
            .or_else(|| variable("AWS_ENDPOINT_URL"))
            .or_else(|| self.endpoints.of_services.get(&key(service)).cloned())
            .or_else(|| self.endpoints.of_profile.clone());
        configured.as_deref().map(without_login)
    }

    /// Returns the replacement for the host of stream URLs. It must be configured for this service alone, because that host has no
    /// other API.
    pub(super) fn stream_endpoint(&self) -> Option<String> {
        const SERVICE: &str = "ssmmessages";
        if self.endpoints.ignored {
            return None;
        }
        own_variable(SERVICE).or_else(|| self.endpoints.of_services.get(SERVICE).cloned())
    }
}

/// Removes the user name and the password from a URL, which may be invalid. Signed requests do not need them, and endpoints are
/// printed.
fn without_login(url: &str) -> String {
    let begin = url.find("//").map_or(0, |at| at + 2);
    let (scheme, rest) = url.split_at_checked(begin).unwrap_or((url, ""));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let login = rest.get(..end).and_then(|authority| authority.rfind('@')).map_or(0, |at| at + 1);
    format!("{scheme}{}", rest.get(login..).unwrap_or_default())
}

fn own_variable(service: &str) -> Option<String> {
    variable(&format!("AWS_ENDPOINT_URL_{}", key(service).to_ascii_uppercase()))
}

/// Returns a service's id as a key of the files.
fn key(service: &str) -> String {
    service.to_ascii_lowercase().replace(' ', "_")
}

fn is_on(name: &str, key: &str, profile: &Profile) -> bool {
    variable(name)
        .or_else(|| profile.get(key).map(str::to_owned))
        .is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

fn ca_bundle(config: &AwsConfig, profile: &Profile, selected: &Selected) -> Option<CaBundle> {
    let given = config.ca_bundle.clone().map(|path| CaBundle { path, named_by: "--ca-bundle".to_owned() });
    let of_environment = variable(CA_BUNDLE).map(|path| CaBundle { path: path.into(), named_by: CA_BUNDLE.to_owned() });
    given.or(of_environment).or_else(|| {
        let named_by = format!("ca_bundle of the profile {:?} in {}", selected.name(), config_file().display());
        profile.get("ca_bundle").map(|path| CaBundle { path: path.into(), named_by })
    })
}

const CA_BUNDLE: &str = "AWS_CA_BUNDLE";

/// Returns the region. Does not query the metadata service of an instance: on a laptop that would be a useless wait.
fn region(config: &AwsConfig, profile: &Profile, selected: &Selected) -> Result<String, ProviderError> {
    let error = |message| ProviderError { kind: ProviderErrorKind::Region, message };
    let given = config.region.clone().filter(|region| !region.is_empty());
    let region = given
        .or_else(|| variable("AWS_REGION"))
        .or_else(|| variable("AWS_DEFAULT_REGION"))
        .or_else(|| profile.get("region").map(str::to_owned));
    let region = region.ok_or_else(|| {
        error(format!(
            "no AWS region: pass --region, set AWS_REGION, or put a region into the profile {:?} in {}",
            selected.name(),
            config_file().display()
        ))
    })?;
    if !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(error(format!("{region:?} is not the name of an AWS region, such as eu-central-1")));
    }
    Ok(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_no_login() {
        for (given, expected) in [
            ("https://user:hush@ssm.example/a@b?c@d", "https://ssm.example/a@b?c@d"),
            ("http://user:hu@sh@[", "http://["),
            ("https://ssm.example", "https://ssm.example"),
            ("user:hush@ssm.example", "ssm.example"),
            ("https://hush@", "https://"),
            ("", ""),
        ] {
            assert_eq!(without_login(given), expected);
        }
    }
}
