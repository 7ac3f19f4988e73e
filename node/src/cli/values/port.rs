//! `--publish`, short (`8080:80/udp`, `8080-8081:80-81`) and long (`published=8080,target=80,mode=host`).

use super::fields;
use crate::docker_api::wire::PortConfig;

/// Reads one `--publish`; a range gives several ports.
pub(in crate::cli) fn parse_ports(text: &str) -> Result<Vec<PortConfig>, String> {
    if text.contains('=') { long(text).map(|port| vec![port]) } else { short(text) }
}

fn port(target: u16, published: Option<u16>, protocol: &str, mode: &str) -> PortConfig {
    PortConfig {
        name: None,
        protocol: Some(protocol.to_owned()),
        target_port: Some(target.into()),
        published_port: published.map(u32::from),
        publish_mode: Some(mode.to_owned()),
    }
}

fn short(text: &str) -> Result<Vec<PortConfig>, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = known_protocol(protocol)?;
    let parts: Vec<&str> = ports.split(':').collect();
    let (published, target) = match parts[..] {
        [target] => (None, range(target)?),
        [published, target] => (Some(range(published)?), range(target)?),
        _ => return Err("a service is published on all addresses of a host: leave the address out".to_owned()),
    };
    let Some(published) = published else {
        return Ok(target.map(|t| port(t, None, protocol, "ingress")).collect());
    };
    if published.clone().count() != target.clone().count() {
        return Err("both ranges must be of the same length".to_owned());
    }
    Ok(published.zip(target).map(|(p, t)| port(t, Some(p), protocol, "ingress")).collect())
}

fn range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let range = number(from)?..=number(to)?;
    if range.is_empty() { Err(format!("the range {text} ends before it begins")) } else { Ok(range) }
}

fn number(text: &str) -> Result<u16, String> {
    // `parse` alone would take "+80".
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| *n != 0 && digits).ok_or_else(|| format!("{text:?} is no port (1 to 65535)"))
}

fn known_protocol(text: &str) -> Result<&str, String> {
    match text {
        "tcp" | "udp" | "sctp" => Ok(text),
        _ => Err(format!("unknown protocol {text:?}: there are tcp and udp")),
    }
}

fn long(text: &str) -> Result<PortConfig, String> {
    let (mut target, mut published, mut protocol, mut mode) = (None, None, "tcp".to_owned(), "ingress".to_owned());
    for (key, value) in fields(text)? {
        match key.as_str() {
            "target" => target = Some(number(&value)?),
            "published" => published = Some(number(&value)?),
            "protocol" => protocol = known_protocol(&value)?.to_owned(),
            "mode" if matches!(value.as_str(), "ingress" | "host") => mode = value,
            "mode" => return Err(format!("unknown mode {value:?}: there are ingress and host")),
            _ => return Err(format!("unknown key {key:?}: there are target, published, protocol and mode")),
        }
    }
    let target = target.ok_or("target= is missing")?;
    Ok(port(target, published, &protocol, &mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `published->target/protocol mode`, one a port.
    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let ports = parse_ports(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let shown: Vec<String> = ports
            .iter()
            .map(|p| {
                format!(
                    "{}->{}/{} {}",
                    p.published_port.unwrap_or_default(),
                    p.target_port.unwrap(),
                    p.protocol.as_deref().unwrap(),
                    p.publish_mode.as_deref().unwrap()
                )
            })
            .collect();
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn short_and_long() {
        check("8080:80", &["8080->80/tcp ingress"]);
        check("80", &["0->80/tcp ingress"]);
        check("53:5353/udp", &["53->5353/udp ingress"]);
        check("8080-8081:80-81", &["8080->80/tcp ingress", "8081->81/tcp ingress"]);
        check("published=8080,target=80", &["8080->80/tcp ingress"]);
        check("mode=host,protocol=udp,target=80", &["0->80/udp host"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (bad, word) in [
            ("", "no port"),
            ("x:80", "\"x\""),
            ("0:80", "\"0\""),
            ("70000:80", "70000"),
            ("+80:80", "+80"),
            ("80:80/icmp", "icmp"),
            ("1.2.3.4:80:80", "address"),
            ("80-82:80-81", "length"),
            ("82-80:80", "ends before"),
            ("published=80", "target="),
            ("target=80,mode=hots", "hots"),
            ("targt=80", "targt"),
        ] {
            let error = parse_ports(bad).unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
