//! Who is alive: sealed SWIM membership.
