//! Encryption of secrets at rest: XChaCha20-Poly1305 under a key that is made at the first start and kept
//! in a file of its own, with a fresh random nonce for each sealing. What is sealed is bound to the object
//! that it belongs to, so that one object's bytes do not open as another's.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
/// Bytes of the key's digest that name it.
const KEY_ID_BYTES: usize = 8;

/// Why a vault could not be opened or something in it could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The key file could not be read or made.
    #[error("cannot use the key file {path}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key file does not hold a key.
    #[error("the key file {0} does not hold a key of 32 bytes; restore it from a backup")]
    NotAKey(PathBuf),
    /// The key file can be read by others.
    #[error("the key file {path} is open to others (mode {mode:o}); run: chmod 600 {path}")]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It was sealed under another key.
    #[error("a secret was encrypted with key {wanted}, and this data folder has key {have}")]
    OtherKey {
        /// The key that it needs.
        wanted: String,
        /// The key that is here.
        have: String,
    },
    /// The sealed bytes were changed, or belong to another object.
    #[error("a stored secret does not verify")]
    NotGenuine,
    /// The kernel gave no randomness.
    #[error("no randomness for a key or nonce")]
    Randomness,
}

impl From<VaultError> for evoke_core::Error {
    fn from(error: VaultError) -> Self {
        let code = match &error {
            VaultError::NotGenuine | VaultError::OtherKey { .. } => evoke_core::ErrorCode::DataLoss,
            VaultError::OpenToOthers { .. } | VaultError::NotAKey(_) => {
                evoke_core::ErrorCode::FailedPrecondition
            }
            VaultError::KeyFile { .. } | VaultError::Randomness => evoke_core::ErrorCode::Internal,
        };
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        evoke_core::Error::new(code, format!("{error}{cause}"))
    }
}

/// Something encrypted, as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Names the key.
    pub key_id: String,
    /// Used once, for this sealing.
    pub nonce: Vec<u8>,
    /// The encrypted bytes with their authentication tag.
    pub ciphertext: Vec<u8>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes, key {})", self.ciphertext.len(), self.key_id)
    }
}

/// A secret's variables in the clear. Prints their names only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// These variables.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(variables.into_iter().collect())
    }
    /// Their names, in order.
    pub fn keys(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
    /// Names and values, in order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
    /// Sets one.
    pub fn set(&mut self, key: String, value: String) {
        self.0.insert(key, value);
    }
    /// Removes one.
    pub fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The key and what is done with it.
#[derive(Clone)]
pub struct Vault {
    cipher: XChaCha20Poly1305,
    key_id: String,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault(key {})", self.key_id)
    }
}

impl Vault {
    /// Opens the vault whose key is in the file at `path`; makes the key if there is no file.
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        match File::open(path) {
            Ok(file) => read_key(path, file).map(|key| Self::with_key(&key)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_key(path).map(|key| Self::with_key(&key))
            }
            Err(source) => Err(VaultError::KeyFile { path: path.to_owned(), source }),
        }
    }

    /// A vault with this key.
    pub fn with_key(key: &[u8; KEY_BYTES]) -> Self {
        let digest = Sha256::new().chain_update(b"evoke key id").chain_update(key).finalize();
        let key_id = evoke_core::hex(&digest[..KEY_ID_BYTES]);
        Self { cipher: XChaCha20Poly1305::new(key.into()), key_id }
    }

    /// Names the key without telling it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Encrypts `plain`, bound to `owner` (the id of the object that holds it).
    pub fn seal(&self, owner: &str, plain: &[u8]) -> Result<Sealed, VaultError> {
        let mut nonce = [0u8; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| VaultError::Randomness)?;
        let payload = Payload { msg: plain, aad: owner.as_bytes() };
        let ciphertext =
            self.cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| VaultError::NotGenuine)?;
        Ok(Sealed { key_id: self.key_id.clone(), nonce: nonce.to_vec(), ciphertext })
    }

    /// Decrypts what [`Vault::seal`] made for the same `owner`.
    pub fn unseal(&self, owner: &str, sealed: &Sealed) -> Result<Vec<u8>, VaultError> {
        if sealed.key_id != self.key_id {
            return Err(VaultError::OtherKey { wanted: sealed.key_id.clone(), have: self.key_id.clone() });
        }
        if sealed.nonce.len() != NONCE_BYTES {
            return Err(VaultError::NotGenuine);
        }
        let payload = Payload { msg: sealed.ciphertext.as_slice(), aad: owner.as_bytes() };
        self.cipher.decrypt(XNonce::from_slice(&sealed.nonce), payload).map_err(|_| VaultError::NotGenuine)
    }

    /// Encrypts a secret's variables.
    pub fn seal_env(&self, owner: &str, env: &Env) -> Result<Sealed, VaultError> {
        // A map of strings always has a JSON form.
        let plain = serde_json::to_vec(&env.0).map_err(|_| VaultError::NotGenuine)?;
        self.seal(owner, &plain)
    }

    /// Decrypts a secret's variables.
    pub fn unseal_env(&self, owner: &str, sealed: &Sealed) -> Result<Env, VaultError> {
        let plain = self.unseal(owner, sealed)?;
        serde_json::from_slice(&plain).map(Env).map_err(|_| VaultError::NotGenuine)
    }
}

fn read_key(path: &Path, mut file: File) -> Result<[u8; KEY_BYTES], VaultError> {
    let failed = |source| VaultError::KeyFile { path: path.to_owned(), source };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(VaultError::OpenToOthers { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::with_capacity(KEY_BYTES + 1);
    Read::by_ref(&mut file).take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    bytes.try_into().map_err(|_| VaultError::NotAKey(path.to_owned()))
}

/// Makes a key and its file. The file appears under its name only when it is whole and on the disk: what
/// is sealed under a key that is lost is lost too.
fn make_key(path: &Path) -> Result<[u8; KEY_BYTES], VaultError> {
    let failed = |source| VaultError::KeyFile { path: path.to_owned(), source };
    let mut key = [0u8; KEY_BYTES];
    getrandom::fill(&mut key).map_err(|_| VaultError::Randomness)?;
    let draft = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(failed)?;
    file.write_all(&key).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    // A link, not a rename: where two starts race, the second must not replace the first one's key.
    std::fs::hard_link(&draft, path).map_err(failed)?;
    std::fs::remove_file(&draft).map_err(failed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        Env::new([("B".to_owned(), "hunter2".to_owned()), ("A".to_owned(), "x".to_owned())])
    }

    #[test]
    fn opens_again_with_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let sealed = Vault::open(&path).unwrap().seal_env("st-1", &env()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(Vault::open(&path).unwrap().unseal_env("st-1", &sealed).unwrap(), env());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_changed_moved_and_foreign_bytes() {
        let vault = Vault::with_key(&[1; 32]);
        let sealed = vault.seal("st-1", b"value").unwrap();
        assert!(matches!(vault.unseal("st-2", &sealed), Err(VaultError::NotGenuine)));
        let mut changed = sealed.clone();
        changed.ciphertext[0] ^= 1;
        assert!(matches!(vault.unseal("st-1", &changed), Err(VaultError::NotGenuine)));
        let mut cut = sealed.clone();
        cut.nonce.pop();
        assert!(matches!(vault.unseal("st-1", &cut), Err(VaultError::NotGenuine)));
        let other = Vault::with_key(&[2; 32]);
        assert!(matches!(other.unseal("st-1", &sealed), Err(VaultError::OtherKey { .. })));
    }

    #[test]
    fn never_seals_the_same_way_twice_and_never_prints_values() {
        let vault = Vault::with_key(&[1; 32]);
        let (one, two) = (vault.seal_env("a", &env()).unwrap(), vault.seal_env("a", &env()).unwrap());
        assert_ne!(one.nonce, two.nonce);
        assert_ne!(one.ciphertext, two.ciphertext);
        let printed = format!("{:?} {vault:?} {one:?}", env());
        assert!(printed.contains("\"A\"") && !printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn refuses_a_bad_key_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, [0; 32]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Vault::open(&path), Err(VaultError::OpenToOthers { .. })));
        std::fs::write(&path, [0; 31]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Vault::open(&path), Err(VaultError::NotAKey(_))));
    }
}
