//! The ETags of payloads: the MD5 in hex of a body sent at once; for one sent in `n` parts the MD5 of the
//! parts' binary MD5s, a dash, and `n`. The official client compares both with its own.

use crate::content_hash::from_hex;
use md5::{Digest, Md5};
use std::{fmt, str::FromStr};

/// The MD5 of a body or of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyMd5(pub [u8; 16]);

/// What the client sends instead of an MD5 for files that it does not want to read twice.
const PLACEHOLDER: [u8; 16] =
    [0xba, 0xad, 0xba, 0xad, 0xba, 0xad, 0xba, 0xad, 0xba, 0xad, 0xba, 0xad, 0xba, 0xad, 0xba, 0xad];

impl BodyMd5 {
    /// Whether this only stands for "not computed" and must not be compared.
    pub fn is_placeholder(&self) -> bool {
        self.0 == PLACEHOLDER
    }

    /// 32 lower-case hex digits: the ETag of this body or part, without quotes.
    pub fn to_hex(self) -> String {
        evoke_core::hex(&self.0)
    }
}

impl FromStr for BodyMd5 {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        from_hex(text).map(Self).ok_or(())
    }
}

impl fmt::Display for BodyMd5 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// The ETag of a body made of `parts`, without quotes.
pub fn multipart_etag(parts: &[BodyMd5]) -> String {
    let mut hasher = Md5::new();
    for part in parts {
        hasher.update(part.0);
    }
    format!("{}-{}", evoke_core::hex(&hasher.finalize()), parts.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_those_of_s3() {
        let part = BodyMd5(Md5::digest(b"hello").into());
        assert_eq!(part.to_string(), "5d41402abc4b2a76b9719d911017c592");
        // md5(md5(b"hello").digest() * 2).hexdigest() + "-2" in Python.
        assert_eq!(multipart_etag(&[part, part]), "616b22817b80eed9f65c3aa38cd29054-2");
        assert!("baadbaadbaadbaadbaadbaadbaadbaad".parse::<BodyMd5>().unwrap().is_placeholder());
    }
}
