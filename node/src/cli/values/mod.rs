//! Reads what users type: sizes, durations, numbers of CPUs, `key=value`, ports, mounts. Pure, in Docker's syntax.

mod mount;
mod payload;
mod port;

use std::net::IpAddr;
use std::str::FromStr;

pub(super) use mount::parse_mount;
pub(super) use payload::{PayloadFlag, parse_payload};
pub(super) use port::parse_ports;

use crate::docker_api::wire;

/// `key=value`, or `key` alone with an empty value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyValue {
    pub(super) key: String,
    pub(super) value: String,
}

impl FromStr for KeyValue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            return Err("it must look like key=value".to_owned());
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

/// A name or id: anything but nothing.
pub(super) fn name(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("it must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// A number of things.
pub(super) fn count(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it must be a whole number, 0 or more".to_owned())
}

/// An environment variable: `KEY=VALUE`, or `KEY`, which takes the value that it has here.
pub(super) fn env(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the name of the variable is missing".to_owned()),
        None if text.is_empty() => Err("the name of the variable is missing".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

/// Takes the values of variables without one from the client's environment; those that are not set there vanish.
pub(super) fn fill_env(given: &[String], lookup: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let filled = given.iter().filter_map(|entry| match entry.contains('=') {
        true => Some(entry.clone()),
        false => lookup(entry).map(|value| format!("{entry}={value}")),
    });
    // The last one of a name wins, at the place of the first.
    let mut result: Vec<String> = Vec::new();
    for entry in filled {
        let key = env_key(&entry).to_owned();
        match result.iter_mut().find(|e| env_key(e) == key) {
            Some(slot) => *slot = entry,
            None => result.push(entry),
        }
    }
    result
}

/// The variable's name.
pub(super) fn env_key(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(key, _)| key)
}

/// Nanoseconds of a duration as Docker writes it: `1h30m`, `10s`, `1.5s`, `500ms`, `0`.
pub(super) fn duration(text: &str) -> Result<i64, String> {
    const SHAPE: &str = "it must look like 10s, 1m30s, 500ms";
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(SHAPE)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(SHAPE.to_owned()),
        };
        total += decimal(number, unit).ok_or(SHAPE)?;
        rest = next;
    }
    if text.is_empty() {
        return Err(SHAPE.to_owned());
    }
    i64::try_from(total).map_err(|_| "it is longer than 292 years".to_owned())
}

/// `number * unit`, exactly, with what is below one unit of the result cut off.
fn decimal(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    if whole.len() > 18 || fraction.len() > 18 {
        return None;
    }
    let value = |s: &str| if s.is_empty() { Some(0) } else { s.parse::<i128>().ok() };
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some(value(whole)?.checked_mul(unit)? + value(fraction)?.checked_mul(unit)? / scale)
}

/// Bytes: `64M`, `512k`, `1.5g`, `100b`, `1GiB`; the units are powers of 1024, as in Docker.
pub(super) fn memory(text: &str) -> Result<i64, String> {
    const SHAPE: &str = "it must look like 512k, 64M or 1.5g";
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(SHAPE.to_owned()),
    };
    let bytes = decimal(number, 1 << shift).ok_or(SHAPE)?;
    i64::try_from(bytes).map_err(|_| "it is more than 8 EiB".to_owned())
}

/// Billionths of a CPU: `0.5`, `2`.
pub(super) fn cpus(text: &str) -> Result<i64, String> {
    let nanos = decimal(text, 1_000_000_000).ok_or("it must look like 0.5 or 2")?;
    i64::try_from(nanos).map_err(|_| "it is too many".to_owned())
}

/// A share: `0` to `1`.
pub(super) fn ratio(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|r| (0.0..=1.0).contains(r)).ok_or_else(|| "it must be between 0 and 1".to_owned())
}

/// `IP name`, as Docker keeps them, out of `name:IP`.
pub(super) fn hosts_entry(text: &str) -> Result<String, String> {
    let (name, ip) = text.split_once([':', '=']).ok_or("it must look like name:ip")?;
    let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err("the name is missing".to_owned());
    }
    let ip: IpAddr = ip.parse().map_err(|_| format!("{ip:?} is no IP address"))?;
    Ok(format!("{ip} {name}"))
}

/// `nofile=100:200`, or one number for both.
pub(super) fn ulimit(text: &str) -> Result<wire::Ulimit, String> {
    const SHAPE: &str = "it must look like nofile=1024:2048";
    let (name, limits) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(SHAPE)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |s: &str| s.parse::<i64>().ok().filter(|n| *n >= -1).ok_or(SHAPE);
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(format!("the soft limit {soft} is above the hard limit {hard}"));
    }
    Ok(wire::Ulimit { name: Some(name.to_owned()), soft: Some(soft), hard: Some(hard) })
}

/// A network to attach to: its name, or `name=NAME,alias=ALIAS`.
pub(super) fn network(text: &str) -> Result<wire::NetworkAttachmentConfig, String> {
    let mut attachment = wire::NetworkAttachmentConfig::default();
    if !text.contains('=') {
        attachment.target = Some(name(text)?);
        return Ok(attachment);
    }
    for (key, value) in fields(text)? {
        match key.as_str() {
            "name" => attachment.target = Some(value),
            "alias" => attachment.aliases.get_or_insert_default().push(value),
            _ => return Err(format!("unknown key {key:?}: there are name and alias")),
        }
    }
    if attachment.target.as_deref().unwrap_or_default().is_empty() {
        return Err("name= is missing".to_owned());
    }
    Ok(attachment)
}

/// A capability as the API has it: `CAP_NET_ADMIN` for `net_admin`.
pub(super) fn capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    if upper.is_empty() || !upper.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err("it must look like NET_ADMIN".to_owned());
    }
    Ok(if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") })
}

/// Splits an entry point as a shell would: words, quotes, backslashes; nothing is expanded.
pub(super) fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\\', Some('"') | None) => {
                let next = chars.next().ok_or("there is nothing behind the last backslash")?;
                word.get_or_insert_default().push(next);
            }
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

/// The fields of `key=value,key,"key=a,b"`; a key alone has an empty value. Keys are in lower case.
fn fields(text: &str) -> Result<Vec<(String, String)>, String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            // A doubled quote inside of quotes is a quote.
            '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    fields.push(field);
    fields
        .into_iter()
        .map(|field| match field.split_once('=').unwrap_or((&field, "")) {
            ("", _) => Err(format!("a field of {text:?} is empty")),
            (key, value) => Ok((key.to_ascii_lowercase(), value.to_owned())),
        })
        .collect()
}

/// A size for people: `1.5MiB`.
pub(super) fn bytes(n: u64) -> String {
    bytesize::ByteSize::b(n).display().iec().to_string().replace(' ', "")
}

/// Nanoseconds for people: `1m30s`.
pub(super) fn human_duration(nanos: i64) -> String {
    let duration = std::time::Duration::from_nanos(u64::try_from(nanos).unwrap_or_default());
    humantime::format_duration(duration).to_string().replace(' ', "")
}

#[cfg(test)]
mod tests;
