//! TLS as the AWS tools do it: the system's trusted roots, and those of `AWS_CA_BUNDLE`.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Reading them takes milliseconds, and a tunnel reconnects every hour.
static NATIVE_ROOTS: LazyLock<RootCertStore> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "trusted root not read");
    }
    roots.add_parsable_certificates(found.certs);
    roots
});

/// Reads a PEM file with additional trusted roots.
///
/// # Errors
/// One line that names the file, unless every certificate in it can be used and there is at least one.
pub(crate) fn read_ca_bundle(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |cause: String| format!("{}: {cause}", path.display());
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(format!("not PEM: {error}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| failed(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(failed("no certificate in it".into()));
    }
    Ok(certificates)
}

/// Whether the system trusts anybody: minimal containers do not.
pub(crate) fn has_native_roots() -> bool {
    !NATIVE_ROOTS.is_empty()
}

/// A client's configuration that trusts the system's roots and those in `ca_bundle`.
pub(super) fn client_config(ca_bundle: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = NATIVE_ROOTS.clone();
    if let Some(path) = ca_bundle {
        let certificates = read_ca_bundle(path).map_err(|cause| format!("the CA bundle {cause}"))?;
        roots.add_parsable_certificates(certificates);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
