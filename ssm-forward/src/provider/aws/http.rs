//! The HTTP client under AWS's SDK: one TLS stack, the environment's proxies, the system's roots and `AWS_CA_BUNDLE`.

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use url::{Host, Url};

use super::bounded::bounded;
use super::errors::{chain, invalid};
use super::settings::CaBundle;
use crate::ProviderError;
use crate::transport::tls::{has_native_roots, read_ca_bundle};

/// A client for hosts out there.
pub(super) fn client(ca_bundle: Option<&CaBundle>) -> Result<SharedHttpClient, ProviderError> {
    build(ProxyConfig::from_env(), ca_bundle)
}

/// A client for `endpoint`: this machine is never behind a proxy.
pub(super) fn client_for(
    endpoint: &str,
    ca_bundle: Option<&CaBundle>,
    outside: SharedHttpClient,
) -> Result<SharedHttpClient, ProviderError> {
    if is_loopback(endpoint) { build(ProxyConfig::disabled(), ca_bundle) } else { Ok(outside) }
}

/// Whether `endpoint` is on this machine.
pub(super) fn is_loopback(endpoint: &str) -> bool {
    let url = Url::parse(endpoint).ok();
    match url.as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn build(proxy: ProxyConfig, ca_bundle: Option<&CaBundle>) -> Result<SharedHttpClient, ProviderError> {
    let context = TlsContext::builder()
        .with_trust_store(trust_store(ca_bundle)?)
        .build()
        .map_err(|error| invalid(format!("TLS: {}", chain(&error))))?;
    Ok(bounded(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut builder = Connector::builder()
            .proxy_config(proxy.clone())
            .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
            .tls_context(context.clone());
        builder.set_connector_settings(settings.cloned());
        builder.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        builder.build()
    })))
}

/// The SDK panics on a bundle that it can't read and, in debug builds, on a system without roots: both are looked at first.
fn trust_store(ca_bundle: Option<&CaBundle>) -> Result<TrustStore, ProviderError> {
    let roots = TrustStore::default().with_native_roots(has_native_roots());
    let Some(CaBundle { path, named_by }) = ca_bundle else { return Ok(roots) };
    read_ca_bundle(path).map_err(|cause| invalid(format!("{named_by}: {cause}")))?;
    let pem = std::fs::read(path).map_err(|error| invalid(format!("{named_by}: {error}")))?;
    Ok(roots.with_pem_certificate(pem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_name_and_address() {
        for (endpoint, loopback) in [
            ("http://127.0.0.1:4566", true),
            ("http://localhost:1", true),
            ("https://[::1]/", true),
            ("https://ssm.eu-west-1.amazonaws.com", false),
            ("http://localhost.example", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_loopback(endpoint), loopback, "{endpoint}");
        }
    }
}
