//! How tasks reach each other.
