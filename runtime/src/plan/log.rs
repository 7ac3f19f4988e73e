//! The bounds of where a container's output goes.

use super::PlanError;
use crate::config::{LogConfig, LogForward, LogTarget, SyslogAddress};

/// Bytes of all fields together: with a record's 16 KiB they fit into one datagram of the journal's socket.
const MAX_FIELDS: usize = 16 << 10;
/// The longest path of a socket.
const MAX_SOCKET: usize = 107;

pub(super) fn validate(log: &LogConfig) -> Result<(), PlanError> {
    if log.max_size < 4096 || log.max_files == 0 || log.max_files > 1000 {
        return Err(PlanError::invalid("log", "max_size must be at least 4096 bytes and max_files 1 to 1000"));
    }
    log.forward.as_ref().map_or(Ok(()), forward)
}

fn forward(forward: &LogForward) -> Result<(), PlanError> {
    let invalid = |reason: &str| Err(PlanError::invalid("log.forward", reason));
    let socket = match &forward.target {
        LogTarget::Journal(socket) | LogTarget::Syslog { address: SyslogAddress::Unix(socket), .. } => Some(socket),
        LogTarget::Syslog { .. } => None,
    };
    if socket.is_some_and(|path| !path.is_absolute() || path.as_os_str().len() > MAX_SOCKET) {
        return invalid("the socket must be an absolute path of at most 107 bytes");
    }
    if matches!(forward.target, LogTarget::Syslog { facility: 24.., .. }) {
        return invalid("the facility must be 0 to 23");
    }
    if forward.tag.is_empty() || forward.tag.len() > 255 || forward.tag.chars().any(char::is_control) {
        return invalid("the tag must be 1 to 255 bytes without control characters");
    }
    let names = [&forward.container_name, &forward.image_name].into_iter().map(String::len);
    let fields = forward.fields.iter().map(|(key, value)| key.len() + value.len() + 16);
    if names.chain(fields).sum::<usize>() > MAX_FIELDS {
        return invalid("the fields are longer than 16 KiB together");
    }
    if !(4 << 10..=64 << 20).contains(&forward.buffer) {
        return invalid("the buffer must be 4 KiB to 64 MiB");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        let good = LogForward {
            target: LogTarget::Syslog { address: SyslogAddress::Unix("/dev/log".into()), facility: 23 },
            tag: "web".into(),
            container_name: "web.1".into(),
            image_name: "web:1".into(),
            fields: [("K".to_owned(), "v".to_owned())].into(),
            buffer: LogForward::BUFFER,
        };
        #[track_caller]
        fn check(forward: LogForward, reason: &str) {
            let log = LogConfig { forward: Some(forward), ..LogConfig::default() };
            let told = validate(&log).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(told.contains(reason) && told.is_empty() == reason.is_empty(), "{told:?}");
        }
        check(good.clone(), "");
        check(LogForward { tag: "a\nb".into(), ..good.clone() }, "tag");
        check(LogForward { tag: String::new(), ..good.clone() }, "tag");
        check(LogForward { buffer: 1, ..good.clone() }, "buffer");
        check(LogForward { target: LogTarget::Journal("relative".into()), ..good.clone() }, "socket");
        check(LogForward { fields: [("K".to_owned(), "v".repeat(20_000))].into(), ..good.clone() }, "fields");
        let address = SyslogAddress::Udp(([127, 0, 0, 1], 514).into());
        check(LogForward { target: LogTarget::Syslog { address, facility: 24 }, ..good }, "facility");
    }
}
