//! The brain against fake agents on a virtual clock: text scenarios, and random operations.

mod properties;
mod scenarios;
mod sim;
