//! Names of networks that names of others end with as well: top-level domains.
//!
//! What is not known below a network's name is nobody's, unless the network is called like one of these. Someone who
//! calls a network `dev` or `internal` does not mean to take all of `.dev`, or a cloud's own names, from its tasks.

use std::sync::LazyLock;

/// The generic domains of the internet's root, sorted.
static GENERIC: LazyLock<Vec<&str>> = LazyLock::new(|| include_str!("tlds.txt").split_ascii_whitespace().collect());

/// Domains that the root does not have, and that private networks and clouds use.
const PRIVATE: [&str; 17] = [
    "alt",
    "arpa",
    "consul",
    "corp",
    "example",
    "home",
    "internal",
    "intranet",
    "invalid",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "mail",
    "onion",
    "private",
    "test",
];

/// Whether names of others may end with this label, given in lower case. Two letters are a country, or may become one;
/// `xn--` begins a domain in another script.
pub(super) fn is_one(label: &str) -> bool {
    (label.len() == 2 && label.bytes().all(|byte| byte.is_ascii_lowercase()))
        || label.starts_with("xn--")
        || PRIVATE.contains(&label)
        || GENERIC.binary_search(&label).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_can_be_searched() {
        assert!(GENERIC.is_sorted() && GENERIC.len() > 1000);
    }

    #[test]
    fn domains_of_others_are_known() {
        for shared in ["com", "net", "dev", "app", "de", "io", "internal", "local", "xn--p1ai", "zip"] {
            assert!(is_one(shared), "{shared}");
        }
        for own in ["backend", "one-net", "stack_default", "d1", "ingress", "", "co2"] {
            assert!(!is_one(own), "{own}");
        }
    }
}
