//! Placement constraints: `node.labels.zone==a`, `node.role!=manager`.
//!
//! Control parses them to refuse what nobody could satisfy; the scheduler and the enforcer match them against hosts.
//! Keys and values are compared without case, as Docker does.

use crate::model::{Node, NodeRole, Subnet, parse_ipv4};

/// Longest expression that is accepted.
const MAX_LEN: usize = 512;

/// One expression that a host must satisfy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    key: Key,
    equal: bool,
    value: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Id,
    Hostname,
    Ip,
    Role,
    Os,
    Architecture,
    NodeLabel(String),
    EngineLabel(String),
}

/// Why an expression is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// There is no `==` or `!=`.
    #[error("constraint expected one operator from ==, !=")]
    NoOperator,
    /// The part before the operator is not a key.
    #[error("key '{0}' is invalid")]
    Key(String),
    /// The part after the operator holds something that no value has.
    #[error("value '{0}' is invalid")]
    Value(String),
}

impl Constraint {
    /// Reads an expression.
    pub fn parse(text: &str) -> Result<Self, ConstraintError> {
        let (key, equal, value) = match (text.find("=="), text.find("!=")) {
            (Some(at), None) => (&text[..at], true, &text[at + 2..]),
            (None, Some(at)) => (&text[..at], false, &text[at + 2..]),
            (Some(eq), Some(ne)) if eq < ne => (&text[..eq], true, &text[eq + 2..]),
            (Some(_), Some(ne)) => (&text[..ne], false, &text[ne + 2..]),
            (None, None) => return Err(ConstraintError::NoOperator),
        };
        let (key, value) = (key.trim(), value.trim());
        let valid = |c: char| c.is_ascii_alphanumeric() || ":-_ .*()?+[]\\^$|/".contains(c);
        if value.is_empty() || text.len() > MAX_LEN || !value.chars().all(valid) {
            return Err(ConstraintError::Value(value.to_owned()));
        }
        let key = Key::parse(key).ok_or_else(|| ConstraintError::Key(key.to_owned()))?;
        Ok(Self { key, equal, value: value.to_owned() })
    }

    /// Whether the host satisfies it. A label that a host does not have equals the empty value, which no expression can
    /// name: `==` is then false and `!=` true.
    pub fn matches(&self, node: &Node) -> bool {
        let same = |text: &str| text.eq_ignore_ascii_case(&self.value);
        let label = |labels: &crate::model::Labels, key: &str| labels.get(key).is_some_and(|v| same(v));
        let holds = match &self.key {
            Key::Id => same(node.id.as_str()),
            Key::Hostname => same(&node.description.hostname),
            Key::Ip => self.matches_address(&node.status.addr),
            Key::Role => same(match node.spec.role() {
                NodeRole::Worker => "worker",
                NodeRole::Manager => "manager",
            }),
            Key::Os => same(&node.description.os),
            Key::Architecture => {
                architecture(&node.description.architecture).eq_ignore_ascii_case(architecture(&self.value))
            }
            Key::NodeLabel(key) => label(&node.spec.labels, key),
            Key::EngineLabel(key) => label(&node.description.engine_labels, key),
        };
        holds == self.equal
    }

    fn matches_address(&self, address: &str) -> bool {
        match (Subnet::parse(&self.value), parse_ipv4(address)) {
            (Some(subnet), Some(address)) => subnet.contains(address),
            _ => address.eq_ignore_ascii_case(&self.value),
        }
    }
}

impl Key {
    fn parse(text: &str) -> Option<Self> {
        let valid = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if !text.chars().all(valid) || !text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return None;
        }
        let lower = text.to_ascii_lowercase();
        // The label's own name keeps its case: labels differ by case.
        let label = |prefix: &str| {
            lower.starts_with(prefix).then(|| text[prefix.len()..].to_owned()).filter(|name| !name.is_empty())
        };
        Some(match lower.as_str() {
            "node.id" => Key::Id,
            "node.hostname" => Key::Hostname,
            "node.ip" => Key::Ip,
            "node.role" => Key::Role,
            "node.platform.os" => Key::Os,
            "node.platform.arch" => Key::Architecture,
            _ => match (label("node.labels."), label("engine.labels.")) {
                (Some(name), _) => Key::NodeLabel(name),
                (_, Some(name)) => Key::EngineLabel(name),
                _ => return None,
            },
        })
    }
}

/// One name for each architecture; images say `amd64` where kernels say `x86_64`.
pub(super) fn architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" | "armhf" => "arm",
        "i386" | "i686" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let mut node = Node { id: crate::model::NodeId::new("n1id"), ..Node::default() };
        node.description.hostname = "Alpha".into();
        node.description.os = "linux".into();
        node.description.architecture = "x86_64".into();
        node.description.engine_labels.insert("ssd".into(), "yes".into());
        node.spec.labels.insert("zone".into(), "a".into());
        node.status.addr = "10.1.2.3".into();
        node
    }

    #[track_caller]
    fn check(text: &str, expected: Result<bool, &str>) {
        let found = Constraint::parse(text).map(|c| c.matches(&node())).map_err(|e| e.to_string());
        assert_eq!(found, expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn hosts_are_matched() {
        check("node.hostname == alpha", Ok(true));
        check("node.hostname!=alpha", Ok(false));
        check("node.id==N1ID", Ok(true));
        check("node.role==manager", Ok(false));
        check("node.role==worker", Ok(true));
        check("node.platform.arch==amd64", Ok(true));
        check("node.platform.os!=windows", Ok(true));
        check("node.labels.zone==A", Ok(true));
        check("node.labels.rack==1", Ok(false));
        check("node.labels.rack!=1", Ok(true));
        check("engine.labels.ssd==yes", Ok(true));
        check("node.ip==10.1.2.3", Ok(true));
        check("node.ip==10.1.0.0/16", Ok(true));
        check("node.ip!=10.2.0.0/16", Ok(true));
    }

    #[test]
    fn nonsense_is_refused() {
        check("node.role", Err("constraint expected one operator from ==, !="));
        check("node.color==red", Err("key 'node.color' is invalid"));
        check("node.labels.==red", Err("key 'node.labels.' is invalid"));
        check("==red", Err("key '' is invalid"));
        check("node.role==", Err("value '' is invalid"));
        check("node.role==a;b", Err("value 'a;b' is invalid"));
    }
}
