//! TLS for `mqtts` and `wss`: rustls with ring; roots of the system or of `ca_file`; a client certificate if one is named;
//! no ALPN. Read anew at each connect, so that a renewed certificate needs no restart.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::intake::Tls;

/// The client's side of TLS, or what the owner has to mend, as `key: what`.
pub(crate) fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("tls: {error}"))?;
    let builder = if tls.verify {
        builder.with_root_certificates(roots(tls.ca_file.as_deref())?)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    };
    let config = match (&tls.cert_file, &tls.key_file) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(certificates("tls.cert_file", cert)?, private_key(key)?)
            .map_err(|error| format!("tls: {} and {} do not work together: {error}", cert.display(), key.display()))?,
        (Some(_), None) => return Err("tls.key_file: is missing beside tls.cert_file".to_owned()),
        (None, Some(_)) => return Err("tls.cert_file: is missing beside tls.key_file".to_owned()),
    };
    Ok(Arc::new(config))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in certificates("tls.ca_file", path)? {
                store
                    .add(certificate)
                    .map_err(|error| format!("tls.ca_file: a certificate in {}: {error}", path.display()))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
                return Err(format!(
                    "tls: this system has no root certificates{why}; install ca-certificates or name tls.ca_file"
                ));
            }
        }
    }
    Ok(store)
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let told = |what: &dyn std::fmt::Display| format!("{key}: {}: {what}", path.display());
    let pem = std::fs::read(path).map_err(|error| told(&error))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| told(&error))?;
    if found.is_empty() { Err(told(&"holds no PEM certificate")) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("tls.key_file: {}: {error}", path.display()))?;
    // The error of the parser could show parts of the key.
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        format!("tls.key_file: {} holds no PEM key (PKCS#8, PKCS#1 or SEC1, without pass phrase)", path.display())
    })
}

/// `verify = false`: takes any certificate; signatures are still checked. For trials; [`client_config`]'s caller shouts.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
