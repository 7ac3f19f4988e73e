//! The symmetric node: joins the five leaf crates.
