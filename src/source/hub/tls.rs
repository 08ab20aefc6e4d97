//! Which certificates a server's must be signed by, where the environment names them. Otherwise it is Mozilla's list, which
//! `ureq` brings along.

use crate::{Error, Result};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Connections that trust the certificates of a PEM file, or of the files of a folder, and no others.
///
/// Errors: `Io`; `BadInput` where there is no certificate.
pub(super) fn trusting(path: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for file in files(path)? {
        let pem = crate::input::read(&file)?;
        let found: Vec<CertificateDer> = CertificateDer::pem_slice_iter(&pem).filter_map(|c| c.ok()).collect();
        // Bundles of operating systems hold some that no current library reads.
        roots.add_parsable_certificates(found);
    }
    if roots.is_empty() {
        return Err(Error::bad_file(path, "holds no certificate in PEM form")
            .hint("REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, SSL_CERT_FILE and SSL_CERT_DIR name certificates to trust"));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| Error::Internal(format!("TLS: {e}")))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_file()).collect();
    files.sort();
    Ok(files)
}

/// Whether a transport error is about the server's certificate: trying again is of no use.
pub(super) fn is_refusal(why: &str) -> bool {
    why.contains("invalid peer certificate")
}

pub(super) fn refused(id: &str, why: &str) -> Error {
    Error::storage(format!("{id}: the server's certificate is not trusted: {why}")).hint(
        "for a proxy or mirror with a certificate authority of its own, set SSL_CERT_FILE to its certificate (PEM)",
    )
}
