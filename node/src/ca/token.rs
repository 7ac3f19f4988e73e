//! Join tokens: `SWMTKN-1-<digest of the root certificate>-<secret>`, Docker's form.
//!
//! The digest lets the one who joins recognise the cluster before it trusts it; the secret lets the cluster recognise
//! who may join, and as what.

use sha2::{Digest, Sha256};

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// 256 bits in base 36.
const DIGEST_LEN: usize = 50;
/// 128 random bits in base 36.
const SECRET_LEN: usize = 25;

/// A parsed token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Digest of the root certificate, base 36.
    pub root_digest: String,
    /// What proves the right to join.
    pub secret: String,
}

/// Why a token is none. The text of the token is never part of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not of the form `SWMTKN-1-…-…`.
    #[error("invalid join token: it must look like SWMTKN-1-<50 characters>-<25 characters>")]
    Malformed,
}

impl JoinToken {
    /// Reads a token as a user pasted it.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('-');
        let (Some("SWMTKN"), Some("1"), Some(digest), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let base36 = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if digest.len() != DIGEST_LEN || secret.len() != SECRET_LEN || !base36(digest) || !base36(secret) {
            return Err(TokenError::Malformed);
        }
        Ok(Self { root_digest: digest.into(), secret: secret.into() })
    }

    /// The token that lets nodes join the cluster with this root certificate by this secret.
    pub fn print(root_der: &[u8], secret: &str) -> String {
        format!("SWMTKN-1-{}-{secret}", root_digest(root_der))
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinToken({})", self.root_digest)
    }
}

/// SHA-256 of a root certificate in base 36, 50 characters.
pub fn root_digest(root_der: &[u8]) -> String {
    let mut number: [u8; 32] = Sha256::digest(root_der).into();
    let mut text = [b'0'; DIGEST_LEN];
    for digit in text.iter_mut().rev() {
        // Long division of the 256-bit number by 36.
        let mut rest = 0u16;
        for byte in &mut number {
            let value = rest << 8 | u16::from(*byte);
            *byte = (value / 36) as u8;
            rest = value % 36;
        }
        *digit = DIGITS[usize::from(rest)];
    }
    text.iter().map(|&b| char::from(b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_token_is_parsed() {
        let secret = "abcdefghijklmnopqrstuvwxy";
        let token = JoinToken::print(b"root", secret);
        let parsed = JoinToken::parse(&format!(" {token}\n")).unwrap();
        assert_eq!(parsed.secret, secret);
        assert_eq!(parsed.root_digest, root_digest(b"root"));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "SWMTKN-1", "SWMTKN-2-a-b", "SWMTKN-1-short-secret", &"-".repeat(100), "SWMTKN-1-é-é"] {
            assert_eq!(JoinToken::parse(text), Err(TokenError::Malformed), "{text:?}");
        }
        let long = format!("{}-x", JoinToken::print(b"root", "abcdefghijklmnopqrstuvwxy"));
        assert_eq!(JoinToken::parse(&long), Err(TokenError::Malformed));
    }
}
