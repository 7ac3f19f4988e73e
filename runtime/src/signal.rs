//! Signals by name and number, as Docker spells them.

use std::fmt;

/// A signal that can be sent to a container: 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// The text or number is not a signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid signal: {0}")]
pub struct InvalidSignal(pub String);

const NAMES: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The kernel's first real-time signal that the C library leaves to programs, and the last.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

impl Signal {
    /// SIGTERM, the default of a stop.
    pub const TERM: Signal = Signal(15);
    /// SIGKILL.
    pub const KILL: Signal = Signal(9);
    /// SIGINT.
    pub const INT: Signal = Signal(2);
    /// SIGQUIT.
    pub const QUIT: Signal = Signal(3);
    /// SIGHUP.
    pub const HUP: Signal = Signal(1);

    /// The signal with this number, when it is one.
    pub fn from_number(number: i32) -> Result<Signal, InvalidSignal> {
        if (1..=RTMAX).contains(&number) { Ok(Signal(number)) } else { Err(InvalidSignal(number.to_string())) }
    }

    /// The kernel's number.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl std::str::FromStr for Signal {
    type Err = InvalidSignal;

    /// `15`, `TERM`, `SIGTERM`, `sigterm`, `RTMIN+3`, `SIGRTMAX-1`.
    fn from_str(text: &str) -> Result<Signal, InvalidSignal> {
        let invalid = || InvalidSignal(text.chars().take(32).collect());
        if let Ok(number) = text.parse::<i32>() {
            return Signal::from_number(number).map_err(|_| invalid());
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(Signal(*number));
        }
        let offset = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i32>().ok() };
        let number = if let Some(rest) = name.strip_prefix("RTMIN") {
            offset(rest).map(|n| RTMIN.saturating_add(n))
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            offset(rest).map(|n| RTMAX.saturating_add(n))
        } else {
            None
        };
        match number {
            Some(number) if (RTMIN..=RTMAX).contains(&number) => Ok(Signal(number)),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None if self.0 >= RTMIN => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
            None => write!(f, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<i32>) {
        assert_eq!(text.parse::<Signal>().ok().map(Signal::number), expected, "{text}");
    }

    #[test]
    fn parses_what_docker_parses() {
        check("15", Some(15));
        check("TERM", Some(15));
        check("sigkill", Some(9));
        check("SIGRTMIN+3", Some(37));
        check("RTMAX-1", Some(63));
        check("RTMIN", Some(34));
        check("0", None);
        check("65", None);
        check("RTMIN+31", None);
        check("RTMAX+2147483647", None);
        check("", None);
        check("SIG", None);
        assert_eq!("SIGTERM".parse::<Signal>().unwrap().to_string(), "SIGTERM");
    }
}
