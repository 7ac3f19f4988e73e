//! `--userns-remap`: which ids of this host the users of all containers are, as Docker's setting of that name has it.
//!
//! `/etc/subuid` and `/etc/subgid` say which subordinate ids a user and a group have; their ranges, in the order of their
//! lines, are the container's ids from 0 on.

use std::path::Path;

use runtime::{IdMappings, IdRange};

/// Docker's name for the user that it makes for this; here it must be in the two files.
const DEFAULT: &str = "dockremap";
/// What the kernel takes in one map.
const MAX_RANGES: usize = 340;
const SUBUID: &str = "/etc/subuid";
const SUBGID: &str = "/etc/subgid";

/// Why the setting cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemapError {
    /// A file of the host's.
    #[error("userns remap: cannot read {path}: {reason}")]
    Read {
        /// Which.
        path: &'static str,
        /// Why.
        reason: String,
    },
    /// The user, or group, has no subordinate ids.
    #[error("userns remap: there is no range for the {kind} {name} in {path}; a line is name:first:count")]
    NoRange {
        /// `user` or `group`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Where it was looked for.
        path: &'static str,
    },
    /// A line of the user's or group's that is none.
    #[error("userns remap: {path} has the line {line:?}, which is not name:first:count, or has ids that are none")]
    BadLine {
        /// The file.
        path: &'static str,
        /// The line.
        line: String,
    },
}

/// Reads the files that the setting is about. `None`: there is no setting.
///
/// # Errors
/// See [`RemapError`].
pub fn read(setting: &str) -> Result<Option<IdMappings>, RemapError> {
    if setting.is_empty() {
        return Ok(None);
    }
    let file = |path: &'static str| {
        std::fs::read_to_string(Path::new(path)).map_err(|error| RemapError::Read { path, reason: error.to_string() })
    };
    // Hosts that know their users from elsewhere may lack these two.
    let names = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let files = Files {
        subuid: file(SUBUID)?,
        subgid: file(SUBGID)?,
        passwd: names("/etc/passwd"),
        group: names("/etc/group"),
    };
    mappings(setting, &files).map(Some)
}

/// The host's files, as text.
#[derive(Debug, Default)]
struct Files {
    subuid: String,
    subgid: String,
    passwd: String,
    group: String,
}

fn mappings(setting: &str, files: &Files) -> Result<IdMappings, RemapError> {
    let (user, group) = match setting {
        "default" => (DEFAULT, None),
        other => other.split_once(':').map_or((other, None), |(user, group)| (user, Some(group))),
    };
    // Without a group it is the one of the user's name.
    let group = group.map_or_else(|| own_name(user, &files.passwd), str::to_owned);
    Ok(IdMappings {
        uids: ranges("user", user, &files.passwd, SUBUID, &files.subuid)?,
        gids: ranges("group", &group, &files.group, SUBGID, &files.subgid)?,
    })
}

/// Name and number are the first and the third field in both files.
fn fields(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.split(':');
    Some((fields.next()?, fields.nth(1)?))
}

/// The name of a user that may be given as a number.
fn own_name(user: &str, passwd: &str) -> String {
    let known = passwd.lines().filter_map(fields).find(|(_, number)| *number == user);
    known.map_or(user, |(name, _)| name).to_owned()
}

/// All ranges of one name or number, one after the other.
fn ranges(
    kind: &'static str,
    name: &str,
    known: &str,
    path: &'static str,
    text: &str,
) -> Result<Vec<IdRange>, RemapError> {
    let entry = known.lines().filter_map(fields).find(|(own, number)| *own == name || *number == name);
    let is_wanted = |owner: &str| owner == name || entry.is_some_and(|(own, number)| owner == own || owner == number);
    let mut found: Vec<IdRange> = Vec::new();
    let mut inside = 0u32;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut parts = line.split(':');
        if !parts.next().is_some_and(is_wanted) {
            continue;
        }
        let bad = || RemapError::BadLine { path, line: line.to_owned() };
        let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
        let (Some(outside), Some(count)) = (number(), number()) else { return Err(bad()) };
        let next = inside.checked_add(count).filter(|_| count > 0 && outside.checked_add(count).is_some());
        if parts.next().is_some() || found.len() == MAX_RANGES {
            return Err(bad());
        }
        found.push(IdRange { inside, outside, count });
        inside = next.ok_or_else(bad)?;
    }
    if found.is_empty() {
        return Err(RemapError::NoRange { kind, name: name.to_owned(), path });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        Files {
            subuid: "# a comment\nother:1:5\ndockremap:100000:65536\n1001:300000:10\nweb:400000:20\n".into(),
            subgid: "dockremap:200000:65536\nweb:500000:5\nlogs:600000:7\n".into(),
            passwd: "root:x:0:0:::\nweb:x:1001:1002::/:\n".into(),
            group: "logs:x:2000:\n".into(),
        }
    }

    #[track_caller]
    fn check(setting: &str, expected: Result<(&str, &str), &str>) {
        let text = |list: &[IdRange]| {
            list.iter().map(|r| format!("{} {} {}", r.inside, r.outside, r.count)).collect::<Vec<_>>().join(", ")
        };
        let found = mappings(setting, &files());
        match (found, expected) {
            (Ok(maps), Ok((uids, gids))) => {
                assert_eq!((text(&maps.uids), text(&maps.gids)), (uids.to_owned(), gids.to_owned()), "{setting}");
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{setting}: {error}"),
            (found, _) => panic!("{setting}: {found:?}"),
        }
    }

    #[test]
    fn users_and_groups_by_name_and_number() {
        check("default", Ok(("0 100000 65536", "0 200000 65536")));
        // Both forms of the user's lines count.
        check("web", Ok(("0 300000 10, 10 400000 20", "0 500000 5")));
        check("1001", Ok(("0 300000 10, 10 400000 20", "0 500000 5")));
        check("web:logs", Ok(("0 300000 10, 10 400000 20", "0 600000 7")));
        check("1001:2000", Ok(("0 300000 10, 10 400000 20", "0 600000 7")));
        check("nobody", Err("no range for the user nobody in /etc/subuid"));
        check("other", Err("no range for the group other in /etc/subgid"));
        check("web:nobody", Err("no range for the group nobody in /etc/subgid"));
    }

    #[test]
    fn lines_that_are_none() {
        for line in
            ["web:", "web:1", "web:x:1", "web:1:0", "web:1:2:3", "web:4294967295:1", "web:-1:5", "web:1:4294967295"]
        {
            let files = Files { subuid: format!("web:5:5\n{line}\n"), subgid: "web:1:1\n".into(), ..Files::default() };
            let error = mappings("web", &files).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
        let many = "web:5:1\n".repeat(341);
        let files = Files { subuid: many, ..Files::default() };
        assert!(mappings("web", &files).is_err());
        assert_eq!(read(""), Ok(None));
    }
}
