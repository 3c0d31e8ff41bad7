//! The token that every client must show: made at first start, kept in the data folder.

use anyhow::{Context, Result};
use evoke_core::Entropy;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Letters of either part after its prefix: 22 of 62 are 131 bits.
const PART_LETTERS: usize = 22;
/// Bytes of a key.
const KEY_BYTES: usize = 32;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A token of the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// Public part, `ak-…`.
    pub token_id: String,
    /// Secret part, `as-…`.
    pub token_secret: String,
}

impl Token {
    /// A new random token.
    pub(crate) fn random(entropy: &mut dyn Entropy) -> Self {
        Self {
            token_id: format!("ak-{}", letters(entropy)),
            token_secret: format!("as-{}", letters(entropy)),
        }
    }

    /// The token in `file`; made there if the file does not exist.
    pub(crate) fn load_or_make(file: &Path, entropy: &mut dyn Entropy) -> Result<Self> {
        match std::fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{} does not hold a token; remove it to get a new one", file.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let token = Self::random(entropy);
                write_private(file, &serde_json::to_vec_pretty(&token)?)
                    .with_context(|| format!("writing {}", file.display()))?;
                Ok(token)
            }
            Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
        }
    }
}

/// A secret key in `file`; made there if the file does not exist.
pub(crate) fn load_or_make_key(file: &Path, entropy: &mut dyn Entropy) -> Result<[u8; KEY_BYTES]> {
    match std::fs::read(file) {
        Ok(bytes) => <[u8; KEY_BYTES]>::try_from(bytes).ok().with_context(|| {
            format!("{} does not hold a key of {KEY_BYTES} bytes; remove it to get a new one", file.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut key = [0u8; KEY_BYTES];
            for part in key.chunks_mut(8) {
                part.copy_from_slice(&entropy.next_u64().to_le_bytes()[..part.len()]);
            }
            write_private(file, &key).with_context(|| format!("writing {}", file.display()))?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

/// Written beside the file and moved over it, so that no reader ever sees half of it.
fn write_private(file: &Path, bytes: &[u8]) -> Result<()> {
    let beside = file.with_extension("new");
    let mut out =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    std::fs::rename(&beside, file)?;
    Ok(())
}

/// Random letters without bias: values that do not fill the alphabet evenly are drawn again.
fn letters(entropy: &mut dyn Entropy) -> String {
    const EVEN: u8 = (256 / ALPHABET.len() * ALPHABET.len() - 1) as u8;
    let mut text = String::with_capacity(PART_LETTERS);
    while text.len() < PART_LETTERS {
        for byte in entropy.next_u64().to_le_bytes() {
            if byte <= EVEN && text.len() < PART_LETTERS {
                text.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::SeededEntropy;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token.json");
        let made = Token::load_or_make(&file, &mut SeededEntropy::new(1)).unwrap();
        let again = Token::load_or_make(&file, &mut SeededEntropy::new(2)).unwrap();
        assert_eq!(made, again);
        assert!(made.token_id.starts_with("ak-") && made.token_id.len() == 25, "{}", made.token_id);
        assert!(made.token_secret.starts_with("as-") && made.token_secret.len() == 25);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_a_new_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token.json");
        std::fs::write(&file, "{").unwrap();
        assert!(Token::load_or_make(&file, &mut SeededEntropy::new(1)).is_err());
    }
}
