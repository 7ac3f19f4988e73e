//! The stored form of where a container's output goes. Tags are never used again.

use std::collections::BTreeMap;

use super::messages::{path_from, path_into};
use crate::config::{LogForward, LogTarget, SyslogAddress};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StoredForward {
    #[prost(oneof = "StoredTarget", tags = "1, 2, 3, 4")]
    target: Option<StoredTarget>,
    /// Of a syslog target.
    #[prost(uint32, tag = "5")]
    facility: u32,
    #[prost(string, tag = "6")]
    tag: String,
    #[prost(string, tag = "7")]
    container_name: String,
    #[prost(string, tag = "8")]
    image_name: String,
    #[prost(btree_map = "string, string", tag = "9")]
    fields: BTreeMap<String, String>,
    #[prost(uint64, tag = "10")]
    buffer: u64,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum StoredTarget {
    #[prost(bytes = "vec", tag = "1")]
    Journal(Vec<u8>),
    #[prost(bytes = "vec", tag = "2")]
    SyslogUnix(Vec<u8>),
    #[prost(string, tag = "3")]
    SyslogUdp(String),
    #[prost(string, tag = "4")]
    SyslogTcp(String),
}

pub(super) fn forward_into(forward: &LogForward) -> StoredForward {
    let (target, facility) = match &forward.target {
        LogTarget::Journal(socket) => (StoredTarget::Journal(path_into(socket)), 0),
        LogTarget::Syslog { address, facility } => {
            let target = match address {
                SyslogAddress::Unix(socket) => StoredTarget::SyslogUnix(path_into(socket)),
                SyslogAddress::Udp(address) => StoredTarget::SyslogUdp(address.to_string()),
                SyslogAddress::Tcp(address) => StoredTarget::SyslogTcp(address.to_string()),
            };
            (target, *facility)
        }
    };
    StoredForward {
        target: Some(target),
        facility: facility.into(),
        tag: forward.tag.clone(),
        container_name: forward.container_name.clone(),
        image_name: forward.image_name.clone(),
        fields: forward.fields.clone(),
        buffer: forward.buffer,
    }
}

pub(super) fn forward_from(stored: StoredForward) -> Result<LogForward, String> {
    let address = |text: &str| text.parse().map_err(|_| format!("{text:?} is no address"));
    let target = match stored.target.ok_or("a log target of a later release")? {
        StoredTarget::Journal(socket) => LogTarget::Journal(path_from(socket)),
        syslog => LogTarget::Syslog {
            address: match syslog {
                StoredTarget::SyslogUdp(text) => SyslogAddress::Udp(address(&text)?),
                StoredTarget::SyslogTcp(text) => SyslogAddress::Tcp(address(&text)?),
                StoredTarget::SyslogUnix(socket) | StoredTarget::Journal(socket) => {
                    SyslogAddress::Unix(path_from(socket))
                }
            },
            facility: u8::try_from(stored.facility).map_err(|_| "a facility beyond all bounds")?,
        },
    };
    Ok(LogForward {
        target,
        tag: stored.tag,
        container_name: stored.container_name,
        image_name: stored.image_name,
        fields: stored.fields,
        buffer: stored.buffer,
    })
}
