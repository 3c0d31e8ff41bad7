//! Digests over structured values: every field is prefixed with its length, so that no two values share
//! one encoding.

use sha2::{Digest as _, Sha256};

/// Collects fields into a SHA-256.
pub(crate) struct Hasher(Sha256);

impl Hasher {
    /// A digest of the kind `domain`; another domain never gives the same digest.
    pub(crate) fn new(domain: &str) -> Self {
        let mut hasher = Self(Sha256::new());
        hasher.text(domain);
        hasher
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        self.0.update(number.to_le_bytes());
        self
    }

    pub(crate) fn texts<'a>(&mut self, texts: impl IntoIterator<Item = &'a String>) -> &mut Self {
        let texts: Vec<_> = texts.into_iter().collect();
        self.number(texts.len() as u64);
        for text in texts {
            self.text(text);
        }
        self
    }

    pub(crate) fn pairs<'a>(
        &mut self,
        pairs: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> &mut Self {
        let pairs: Vec<_> = pairs.into_iter().collect();
        self.number(pairs.len() as u64);
        for (key, value) in pairs {
            self.text(key).text(value);
        }
        self
    }

    pub(crate) fn finish(&mut self) -> String {
        evoke_core::hex(&self.0.clone().finalize())
    }
}

/// Hex SHA-256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    evoke_core::hex(&Sha256::digest(bytes))
}
