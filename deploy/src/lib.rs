//! What should run where: the pure cluster brain.
