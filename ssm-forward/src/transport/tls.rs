//! TLS with the same trusted roots as the AWS tools: the system's roots, and the ones in a CA bundle.

mod witness;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::socket::Socket;
use super::steps::{self, Deadline};
use witness::Witness;

/// The system's roots are read once, because reading takes milliseconds and a tunnel reconnects every hour.
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
/// Returns one line that names the file, unless the file contains at least one certificate and all of them can be used.
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

/// Encrypts the connection to `host`. Its certificate must be trusted by the system's roots or by the ones in `ca_bundle`.
///
/// # Errors
/// Returns only the cause, for a message that names the host.
pub(super) async fn connect(
    socket: Socket,
    host: &str,
    ca_bundle: Option<&Path>,
    deadline: Deadline,
) -> Result<TlsStream<Socket>, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let witness = Arc::new(Witness::new(verifier(ca_bundle)?));
    let connecting = TlsConnector::from(client_config(witness.clone())?).connect(name, socket);
    let connected = deadline.step(steps::TLS, connecting).await;
    let connected = connected.map_err(|late| format!("TLS: the handshake was not answered within {late}"))?;
    connected.map_err(|error| witness.explain(&error))
}

fn verifier(ca_bundle: Option<&Path>) -> Result<Arc<WebPkiServerVerifier>, String> {
    let mut roots = NATIVE_ROOTS.clone();
    if let Some(path) = ca_bundle {
        let certificates = read_ca_bundle(path).map_err(|cause| format!("the CA bundle {cause}"))?;
        roots.add_parsable_certificates(certificates);
    }
    if roots.is_empty() {
        return Err("TLS: this system trusts no certificate authority: install its CA certificates \
                    (ca-certificates), or name a file of them with AWS_CA_BUNDLE"
            .into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(|error| error.to_string())
}

fn client_config(witness: Arc<Witness>) -> Result<Arc<ClientConfig>, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(witness)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
