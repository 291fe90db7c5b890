//! Records the issuer of a certificate that was not trusted, for the error message.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::text::{bounded, one_line};

/// A verifier that decides exactly as rustls does, and keeps the issuer of an untrusted certificate.
#[derive(Debug)]
pub(super) struct Witness {
    verifier: Arc<WebPkiServerVerifier>,
    untrusted_issuer: OnceLock<String>,
}

impl Witness {
    pub(super) fn new(verifier: Arc<WebPkiServerVerifier>) -> Self {
        Self { verifier, untrusted_issuer: OnceLock::new() }
    }

    /// Returns in one line why a handshake failed, and what to do.
    pub(super) fn explain(&self, error: &io::Error) -> String {
        match self.untrusted_issuer.get() {
            Some(issuer) => format!(
                "TLS: the certificate is signed by {issuer:?}, which is not trusted here; probably a proxy on the way \
                 intercepts TLS: get its CA certificate as a PEM file, and name the file with --ca-bundle, \
                 AWS_CA_BUNDLE or ca_bundle in the AWS profile"
            ),
            None => format!("TLS: {error}"),
        }
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if let Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) = &verified {
            let last = intermediates.last().unwrap_or(end_entity);
            self.untrusted_issuer.get_or_init(|| issuer(last));
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Returns the name of the issuer in the notation of RFC 4514, such as `CN=Corporate Root,O=Example`.
fn issuer(certificate: &CertificateDer<'_>) -> String {
    match Certificate::from_der(certificate) {
        Ok(certificate) => bounded(one_line(&certificate.tbs_certificate().issuer().to_string())),
        Err(_) => "a name that cannot be read".to_owned(),
    }
}
