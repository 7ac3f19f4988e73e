//! Where a task's output goes: a log driver's name and options, understood or refused by name.
//!
//! `control` asks before it accepts a service, and a host again before it prepares a task. The names and values are
//! Docker's.

use core::net::SocketAddr;
use std::collections::{BTreeMap, BTreeSet};

use crate::model::LogDriver;

/// What a task's log driver asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// Kept on the host, where it can be read: the driver itself, or Docker's cache beside one that sends.
    pub files: Option<LogFiles>,
    /// Sent to a log daemon of the host or of the network.
    pub forward: Option<LogForwarding>,
    /// What records are called there; absent means the driver's default.
    pub tag: Option<LogTag>,
    /// Labels of the container that become fields.
    pub labels: BTreeSet<String>,
    /// Variables of its environment that become fields.
    pub env: BTreeSet<String>,
}

/// Rotation of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFiles {
    /// Bytes of one file, at least 4096.
    pub max_size: u64,
    /// Files kept, 1 to 1000.
    pub max_files: u32,
}

/// Sending records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogForwarding {
    /// To whom.
    pub target: LogTarget,
    /// Bytes that may wait for it, 4 KiB to 64 MiB.
    pub buffer: u64,
}

/// Who takes records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// The host's journal.
    Journal,
    /// A syslog receiver.
    Syslog {
        /// Where.
        address: SyslogAddress,
        /// 0 to 23.
        facility: u8,
    },
}

/// Where a syslog receiver listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogAddress {
    /// A socket of the host's.
    Unix(String),
    /// Datagrams.
    Udp(SocketAddr),
    /// A connection.
    Tcp(SocketAddr),
}

/// Why a driver is refused. Nothing changed; another value is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoggingError {
    /// It exists elsewhere, and not here (yet).
    #[error("TaskTemplate.LogDriver {0} is not supported yet")]
    Unsupported(String),
    /// Docker's words for an option that no driver of this name has.
    #[error("unknown log opt '{option}' for {driver} log driver")]
    Unknown {
        /// The driver's name.
        driver: String,
        /// The option's name.
        option: String,
    },
    /// A value that cannot be.
    #[error("invalid value for log opt '{option}': {reason}")]
    Invalid {
        /// The option's name.
        option: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// What Docker keeps of a log that it sends: five files of 20 MB.
const CACHE: LogFiles = LogFiles { max_size: 20 << 20, max_files: 5 };
/// What is kept where nothing is said. Docker's json-file has no bound there, which fills disks.
const FILES: LogFiles = LogFiles { max_size: 10 << 20, max_files: 3 };
/// Docker's `max-buffer-size` where none is given.
const BUFFER: u64 = 1 << 20;
/// `max-size=-1` in Docker: no bound.
const UNBOUNDED: u64 = 1 << 60;
/// Options of other systems and of later releases, refused as such.
const LATER: [&str; 9] = [
    "compress",
    "cache-compress",
    "labels-regex",
    "env-regex",
    "syslog-tls-ca-cert",
    "syslog-tls-cert",
    "syslog-tls-key",
    "syslog-tls-skip-verify",
    "gelf-address",
];

fn of_driver(driver: &str) -> Option<&'static [&'static str]> {
    Some(match driver {
        "" | "json-file" => &["max-size", "max-file", "labels", "env", "mode", "max-buffer-size"],
        "local" => &["max-size", "max-file", "mode", "max-buffer-size"],
        "none" => &[],
        "syslog" => &[
            "syslog-address",
            "syslog-facility",
            "syslog-format",
            "tag",
            "mode",
            "max-buffer-size",
            "cache-disabled",
            "cache-max-size",
            "cache-max-file",
        ],
        "journald" => {
            &["tag", "labels", "env", "mode", "max-buffer-size", "cache-disabled", "cache-max-size", "cache-max-file"]
        }
        _ => return None,
    })
}

impl Logging {
    /// The fields of a container with these labels and this environment (`NAME=value`, the last one counts).
    pub fn fields<'a>(
        &self,
        labels: impl IntoIterator<Item = (&'a String, &'a String)>,
        env: impl IntoIterator<Item = &'a String>,
    ) -> BTreeMap<String, String> {
        let labels = labels.into_iter().filter(|(name, _)| self.labels.contains(*name));
        let env = env.into_iter().filter_map(|variable| variable.split_once('='));
        let env = env.filter(|(name, _)| self.env.contains(*name));
        let labels = labels.map(|(name, value)| (name.as_str(), value.as_str()));
        labels.chain(env).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Understands a driver; `None` is the host's default, files.
    pub fn of(driver: Option<&LogDriver>) -> Result<Logging, LoggingError> {
        let unset = LogDriver::default();
        let driver = driver.unwrap_or(&unset);
        let Some(known) = of_driver(&driver.name) else { return Err(LoggingError::Unsupported(quoted(&driver.name))) };
        for option in driver.options.keys() {
            if LATER.contains(&option.as_str()) {
                return Err(LoggingError::Unsupported(format!("option {}", quoted(option))));
            }
            if !known.contains(&option.as_str()) {
                let driver = if driver.name.is_empty() { "json-file" } else { &driver.name };
                if (driver, option.as_str()) == ("json-file", "tag") {
                    return Err(LoggingError::Unsupported("option \"tag\" for json-file".to_owned()));
                }
                return Err(LoggingError::Unknown { driver: driver.to_owned(), option: shortened(option) });
            }
        }
        let options = Options(driver);
        let forward = match driver.name.as_str() {
            "syslog" => Some(LogTarget::Syslog { address: options.address()?, facility: options.facility()? }),
            "journald" => Some(LogTarget::Journal),
            _ => None,
        };
        let buffer = options.buffer()?;
        let files = match driver.name.as_str() {
            "none" => None,
            "syslog" | "journald" if options.flag("cache-disabled")? => None,
            "syslog" | "journald" => Some(options.files("cache-max-size", "cache-max-file", CACHE)?),
            _ => Some(options.files("max-size", "max-file", FILES)?),
        };
        Ok(Logging {
            files,
            forward: forward.map(|target| LogForwarding { target, buffer }),
            tag: options.get("tag").map(LogTag::parse).transpose()?,
            labels: options.names("labels"),
            env: options.names("env"),
        })
    }
}

fn invalid(option: &'static str, reason: impl Into<String>) -> LoggingError {
    LoggingError::Invalid { option, reason: reason.into() }
}

/// What a user wrote, in an error: bounded.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

struct Options<'a>(&'a LogDriver);

impl<'a> Options<'a> {
    /// An empty value counts as none, as with Docker.
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.options.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn names(&self, name: &str) -> BTreeSet<String> {
        let names = self.get(name).unwrap_or_default().split(',').map(str::trim);
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    fn flag(&self, name: &'static str) -> Result<bool, LoggingError> {
        match self.get(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => Err(invalid(name, format!("{} is neither true nor false", quoted(other)))),
        }
    }

    fn files(&self, size: &'static str, count: &'static str, usual: LogFiles) -> Result<LogFiles, LoggingError> {
        let max_size = match self.get(size) {
            None => usual.max_size,
            Some("-1") => UNBOUNDED,
            Some(text) => match bytes(text) {
                Some(bytes) if bytes >= 4096 => bytes.min(UNBOUNDED),
                Some(_) => return Err(invalid(size, "4096 bytes are the least")),
                None => return Err(invalid(size, format!("{} is no size", quoted(text)))),
            },
        };
        let max_files = match self.get(count) {
            None => usual.max_files,
            Some(text) => match text.parse::<u32>() {
                Ok(files) if (1..=1000).contains(&files) => files,
                _ => return Err(invalid(count, "between 1 and 1000")),
            },
        };
        Ok(LogFiles { max_size, max_files })
    }

    /// Both modes are one here: a container never waits for a log daemon.
    fn buffer(&self) -> Result<u64, LoggingError> {
        let non_blocking = match self.get("mode") {
            None | Some("blocking") => false,
            Some("non-blocking") => true,
            Some(other) => {
                return Err(invalid("mode", format!("{} is neither blocking nor non-blocking", quoted(other))));
            }
        };
        let Some(text) = self.get("max-buffer-size") else { return Ok(BUFFER) };
        if !non_blocking {
            return Err(invalid("max-buffer-size", "is only supported with 'mode=non-blocking'"));
        }
        match bytes(text) {
            Some(bytes) if (4 << 10..=64 << 20).contains(&bytes) => Ok(bytes),
            _ => Err(invalid("max-buffer-size", format!("{} is not between 4k and 64m", quoted(text)))),
        }
    }

    fn address(&self) -> Result<SyslogAddress, LoggingError> {
        let option = "syslog-address";
        match self.get("syslog-format") {
            None | Some("rfc5424" | "rfc5424micro") => {}
            Some(other) => return Err(LoggingError::Unsupported(format!("option syslog-format={}", quoted(other)))),
        }
        let text = self.get(option).unwrap_or("unix:///dev/log");
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(invalid(option, format!("{} has no udp://, tcp:// or unix://", quoted(text))));
        };
        match scheme {
            "unix" | "unixgram" if rest.starts_with('/') && rest.len() <= 107 => {
                Ok(SyslogAddress::Unix(rest.to_owned()))
            }
            "unix" | "unixgram" => Err(invalid(option, "the socket must be an absolute path of at most 107 bytes")),
            "udp" => socket_address(rest).map(SyslogAddress::Udp),
            "tcp" => socket_address(rest).map(SyslogAddress::Tcp),
            other => Err(LoggingError::Unsupported(format!("option syslog-address={}://", shortened(other)))),
        }
    }

    fn facility(&self) -> Result<u8, LoggingError> {
        const NAMES: [&str; 24] = [
            "kern",
            "user",
            "mail",
            "daemon",
            "auth",
            "syslog",
            "lpr",
            "news",
            "uucp",
            "cron",
            "authpriv",
            "ftp",
            "ntp",
            "security",
            "console",
            "solaris-cron",
            "local0",
            "local1",
            "local2",
            "local3",
            "local4",
            "local5",
            "local6",
            "local7",
        ];
        let Some(text) = self.get("syslog-facility") else { return Ok(3) };
        let number = NAMES.iter().position(|name| *name == text).or_else(|| text.parse().ok());
        let number = number.and_then(|number| u8::try_from(number).ok()).filter(|number| *number < 24);
        number.ok_or_else(|| invalid("syslog-facility", format!("{} is none", quoted(text))))
    }
}

/// An address, with a port or with the usual one. Names are not looked up: a shim, which sends, outlives whatever they
/// stood for, and has no resolver.
fn socket_address(text: &str) -> Result<SocketAddr, LoggingError> {
    const PORT: u16 = 514;
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    text.parse()
        .ok()
        .or_else(|| bare.parse().ok().map(|ip| SocketAddr::new(ip, PORT)))
        .ok_or_else(|| invalid("syslog-address", format!("{} is no IP address, with or without a port", quoted(text))))
}

/// Docker's sizes: a number with `k`, `m` or `g`, powers of 1024, with or without a `b` behind it.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, factor) = match digits.chars().last()? {
        'k' => (&digits[..digits.len() - 1], 1 << 10),
        'm' => (&digits[..digits.len() - 1], 1 << 20),
        'g' => (&digits[..digits.len() - 1], 1 << 30),
        _ => (digits, 1),
    };
    let plain = number.len() <= 16 && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| plain)?.checked_mul(factor)
}

/// What records are called, with places for what is known only of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTag(Vec<TagPart>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum TagPart {
    Text(String),
    Of(TagField),
}

/// What a place in a tag stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagField {
    /// The first 12 characters of the container's id.
    Id,
    /// All of them.
    FullId,
    /// The container's name.
    Name,
    /// The image as the service names it.
    ImageName,
    /// The first 12 characters of its id.
    ImageId,
    /// All of them.
    ImageFullId,
    /// What the program calls itself.
    DaemonName,
}

impl LogTag {
    /// Docker's tag where none is given: `{{.ID}}`.
    pub fn usual() -> LogTag {
        LogTag(vec![TagPart::Of(TagField::Id)])
    }

    fn parse(text: &str) -> Result<LogTag, LoggingError> {
        let mut parts = Vec::new();
        let mut rest = text;
        if text.len() > 255 || text.chars().any(char::is_control) {
            return Err(invalid("tag", "at most 255 bytes without control characters"));
        }
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((field, behind)) = after.split_once("}}") else {
                return Err(invalid("tag", format!("{} has no }}}}", quoted(text))));
            };
            parts.push(TagPart::Text(before.to_owned()));
            parts.push(TagPart::Of(match field.trim() {
                ".ID" => TagField::Id,
                ".FullID" => TagField::FullId,
                ".Name" => TagField::Name,
                ".ImageName" => TagField::ImageName,
                ".ImageID" => TagField::ImageId,
                ".ImageFullID" => TagField::ImageFullId,
                ".DaemonName" => TagField::DaemonName,
                other => {
                    return Err(LoggingError::Unsupported(format!("option tag with {{{{{}}}}}", shortened(other))));
                }
            }));
            rest = behind;
        }
        parts.push(TagPart::Text(rest.to_owned()));
        Ok(LogTag(parts))
    }

    /// The tag of one container, 255 bytes of it at the most.
    pub fn expand(&self, mut field: impl FnMut(TagField) -> String) -> String {
        let mut tag = String::new();
        for part in &self.0 {
            match part {
                TagPart::Text(text) => tag.push_str(text),
                TagPart::Of(of) => tag.push_str(&field(*of)),
            }
        }
        let end = (0..=tag.len().min(255)).rev().find(|end| tag.is_char_boundary(*end)).unwrap_or(0);
        tag.truncate(end);
        tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(name: &str, options: &[(&str, &str)]) -> LogDriver {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        LogDriver { name: name.to_owned(), options }
    }

    #[track_caller]
    fn refused(name: &str, options: &[(&str, &str)], words: &str) {
        let error = Logging::of(Some(&driver(name, options))).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} has no {words:?}");
    }

    #[track_caller]
    fn accepted(name: &str, options: &[(&str, &str)]) -> Logging {
        Logging::of(Some(&driver(name, options))).unwrap()
    }

    #[test]
    fn drivers() {
        assert_eq!(Logging::of(None).unwrap().files, Some(FILES));
        for name in ["", "json-file", "local"] {
            let logging = accepted(name, &[("max-size", "10m"), ("max-file", "7")]);
            assert_eq!(logging.files, Some(LogFiles { max_size: 10 << 20, max_files: 7 }));
            assert_eq!(logging.forward, None);
        }
        let none = accepted("none", &[]);
        assert_eq!((none.files, none.forward), (None, None));
        let journal = accepted("journald", &[("tag", "{{.Name}}/x"), ("labels", "a, b"), ("env", "C")]);
        assert_eq!(journal.files, Some(CACHE));
        assert_eq!(journal.forward, Some(LogForwarding { target: LogTarget::Journal, buffer: BUFFER }));
        let labels = [("a", "1"), ("c", "2")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let labels: BTreeMap<String, String> = labels;
        let fields = journal.fields(&labels, &["C=3".to_owned(), "C=4=5".to_owned(), "D=6".to_owned()]);
        assert_eq!(format!("{fields:?}"), r#"{"C": "4=5", "a": "1"}"#);
        assert_eq!(journal.tag.unwrap().expand(|field| format!("{field:?}")), "Name/x");
        let options = [("cache-disabled", "true"), ("mode", "non-blocking"), ("max-buffer-size", "4m")];
        let journal = accepted("journald", &options);
        assert_eq!((journal.files, journal.forward.unwrap().buffer), (None, 4 << 20));
        refused("gelf", &[], "LogDriver \"gelf\" is not supported yet");
        refused("json-file", &[("nosuch", "1")], "unknown log opt 'nosuch' for json-file log driver");
        refused("", &[("syslog-address", "x")], "unknown log opt 'syslog-address' for json-file log driver");
        refused("local", &[("tag", "x")], "unknown log opt 'tag' for local log driver");
        refused("none", &[("max-size", "1m")], "unknown log opt 'max-size' for none log driver");
        refused("json-file", &[("compress", "true")], "option \"compress\" is not supported yet");
    }

    #[test]
    fn values() {
        let unbounded = accepted("json-file", &[("max-size", "-1")]).files.unwrap();
        assert_eq!(unbounded.max_size, UNBOUNDED);
        refused("json-file", &[("max-size", "lots")], "max-size");
        refused("json-file", &[("max-size", "1k")], "4096");
        refused("json-file", &[("max-size", "99999999999999999g")], "no size");
        refused("json-file", &[("max-file", "0")], "max-file");
        refused("json-file", &[("mode", "maybe")], "mode");
        refused("json-file", &[("max-buffer-size", "1m")], "only supported with 'mode=non-blocking'");
        refused("json-file", &[("mode", "non-blocking"), ("max-buffer-size", "1g")], "between 4k and 64m");
        refused("journald", &[("cache-disabled", "perhaps")], "cache-disabled");
        refused("json-file", &[("tag", "x")], "option \"tag\" for json-file is not supported");
        refused("journald", &[("tag", "{{.Name")], "tag");
        refused("journald", &[("tag", "{{.ExtraAttributes nil}}")], "tag with {{.ExtraAttributes nil}}");
        refused("syslog", &[("tag", "a\nb")], "tag");
        for (text, expected) in
            [("10m", Some(10 << 20)), ("4096", Some(4096)), ("1gb", Some(1 << 30)), ("2KB", Some(2048)), ("x", None)]
        {
            assert_eq!(bytes(text), expected, "{text}");
        }
        for bad in ["", "m", "b", "-5", "+5", "1.5m", "5bb"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn tags_are_bounded() {
        let tag = LogTag::parse(&format!("{}{{{{.Name}}}}", "x".repeat(200))).unwrap();
        assert_eq!(tag.expand(|_| "é".repeat(100)).len(), 254);
        assert_eq!(LogTag::usual().expand(|_| "id".to_owned()), "id");
    }

    #[test]
    fn syslog_addresses() {
        let target = |options: &[(&str, &str)]| accepted("syslog", options).forward.unwrap().target;
        let syslog = |address, facility| LogTarget::Syslog { address, facility };
        assert_eq!(target(&[]), syslog(SyslogAddress::Unix("/dev/log".into()), 3));
        let udp = SyslogAddress::Udp(([10, 0, 0, 1], 514).into());
        assert_eq!(target(&[("syslog-address", "udp://10.0.0.1"), ("syslog-facility", "local7")]), syslog(udp, 23));
        let tcp = SyslogAddress::Tcp("[::1]:6514".parse().unwrap());
        assert_eq!(target(&[("syslog-address", "tcp://[::1]:6514"), ("syslog-facility", "16")]), syslog(tcp, 16));
        let bare = SyslogAddress::Tcp("[::1]:514".parse().unwrap());
        assert_eq!(target(&[("syslog-address", "tcp://[::1]"), ("syslog-format", "rfc5424")]), syslog(bare, 3));
        refused("syslog", &[("syslog-address", "udp://logs.example:514")], "no IP address");
        refused(
            "syslog",
            &[("syslog-address", "tcp+tls://10.0.0.1:6514")],
            "syslog-address=tcp+tls:// is not supported",
        );
        refused("syslog", &[("syslog-address", "10.0.0.1")], "has no udp://");
        refused("syslog", &[("syslog-address", "unix://dev/log")], "absolute path");
        refused("syslog", &[("syslog-format", "rfc3164")], "syslog-format=\"rfc3164\" is not supported");
        refused("syslog", &[("syslog-facility", "24")], "syslog-facility");
        refused("syslog", &[("syslog-tls-cert", "/x")], "\"syslog-tls-cert\" is not supported");
        refused("syslog", &[("labels", "a")], "unknown log opt 'labels' for syslog log driver");
    }
}
