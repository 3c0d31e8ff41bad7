//! Certificates of our own: an authority that is made once and kept, and what it signs for the names by which this
//! machine is reached. Who verifies has to be given the authority's certificate.

use evoke_core::{Error, UnixMs};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

/// The file with the authority's certificate, for clients.
const CERTIFICATE: &str = "authority.pem";
/// The file with its key.
const KEY: &str = "authority.key";
/// How long the authority is good.
const AUTHORITY_DAYS: i64 = 3650;
/// How long what it signs is good; signed anew with each start of the server.
const SIGNED_DAYS: i64 = 730;

/// Signs certificates for this machine.
pub struct LocalAuthority {
    issuer: Issuer<'static, KeyPair>,
}

impl LocalAuthority {
    /// The authority that is kept in `folder`; made there if there is none.
    pub fn load_or_make(folder: &Path, now: UnixMs) -> Result<Self, Error> {
        let file = folder.join(KEY);
        let failed = |what: &str, why: &dyn std::fmt::Display| {
            Error::internal(format!("{what} {}: {why}", folder.display()))
        };
        let key = match std::fs::read_to_string(&file) {
            Ok(text) => KeyPair::from_pem(&text).map_err(|error| {
                failed("the key in", &error).with_hint("remove the folder to get a new one")
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(|error| failed("making a key for", &error))?;
                let made =
                    authority(now)?.self_signed(&key).map_err(|error| failed("signing for", &error))?;
                std::fs::create_dir_all(folder).map_err(|error| failed("making", &error))?;
                // The key comes last: what is there with it is whole.
                write(&folder.join(CERTIFICATE), made.pem().as_bytes(), 0o644)
                    .and_then(|()| write(&file, key.serialize_pem().as_bytes(), 0o600))
                    .map_err(|error| failed("writing into", &error))?;
                key
            }
            Err(error) => return Err(failed("reading", &error)),
        };
        Ok(Self { issuer: Issuer::new(authority(now)?, key) })
    }

    /// How servers of this machine speak TLS under `names`, hosts and addresses; `protocols` are offered to clients
    /// that ask which one to speak.
    pub fn server(
        &self,
        names: &[String],
        protocols: &[&[u8]],
        now: UnixMs,
    ) -> Result<Arc<ServerConfig>, Error> {
        let failed = |why: String| Error::internal(format!("a certificate for {names:?}: {why}"));
        let key = KeyPair::generate().map_err(|error| failed(error.to_string()))?;
        let mut params = CertificateParams::new(names).map_err(|error| failed(error.to_string()))?;
        params.distinguished_name = named(names.first().map_or("evoke", String::as_str));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = span(now, SIGNED_DAYS)?;
        let signed = params.signed_by(&key, &self.issuer).map_err(|error| failed(error.to_string()))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        server_config(vec![signed.der().clone()], key, protocols).map_err(|error| failed(error.to_string()))
    }
}

/// How a server speaks TLS with this certificate.
fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    protocols: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

fn authority(now: UnixMs) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Evoke local authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = span(now, AUTHORITY_DAYS)?;
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// From yesterday, for clients whose clock is behind.
fn span(now: UnixMs, days: i64) -> Result<(OffsetDateTime, OffsetDateTime), Error> {
    let seconds = i64::try_from(now.0 / 1000).unwrap_or(i64::MAX);
    let now = OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|error| Error::internal(format!("the clock is wrong: {error}")))?;
    Ok((now - Duration::days(1), now + Duration::days(days)))
}

/// Written beside the file and moved over it, so that no reader ever sees half of it.
fn write(file: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    let mut out =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_authority_is_made_once_and_only_its_owner_reads_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("tls");
        LocalAuthority::load_or_make(&folder, UnixMs(1_700_000_000_000)).unwrap();
        let certificate = std::fs::read_to_string(folder.join(CERTIFICATE)).unwrap();
        LocalAuthority::load_or_make(&folder, UnixMs(1_800_000_000_000)).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join(CERTIFICATE)).unwrap(), certificate);
        assert_eq!(std::fs::metadata(folder.join(KEY)).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(folder.join(KEY), "nonsense").unwrap();
        let error = LocalAuthority::load_or_make(&folder, UnixMs(0)).err().unwrap();
        assert!(error.hint.unwrap().contains("remove the folder"));
    }
}
