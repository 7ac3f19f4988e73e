//! Breaks Shoal on purpose.
