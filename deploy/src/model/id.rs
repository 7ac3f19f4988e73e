//! Identities as newtypes. Each prints as Docker's 25 characters of `[0-9a-z]`.

use std::fmt;

/// Digits of an id, in order of value.
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Length of a printed id.
pub const ID_LEN: usize = 25;

/// Prints 128 random bits the way Docker prints an object id: base 36, most significant digit first, 25 characters.
pub fn format_id(mut bits: u128) -> String {
    let mut text = [b'0'; ID_LEN];
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(bits % 36) as usize];
        bits /= 36;
    }
    text.iter().map(|&b| char::from(b)).collect()
}

/// Whether `text` could be an object id.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
        #[prost(skip_debug)]
        pub struct $name(#[prost(string, tag = "1")] String);

        impl $name {
            /// The id with this text. The text is not checked: ids that come from outside are looked up, not trusted.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The id as it is printed.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether this is the id of nothing (a field that was never set).
            pub fn is_none(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl From<u128> for $name {
            fn from(bits: u128) -> Self {
                Self(format_id(bits))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

ids! {
    /// A host's membership; a new one after `leave`.
    NodeId,
    /// A service.
    ServiceId,
    /// A task; never used twice.
    TaskId,
    /// A cluster-wide network.
    NetworkId,
    /// A secret.
    SecretId,
    /// A config.
    ConfigId,
    /// Credentials for a registry: its name, as names of images begin with it.
    RegistryId,
    /// The cluster itself.
    ClusterId,
}
