//! Mount options by name: what each one means to the mount API of the kernel. Pure.

use crate::plan::mount_attr::{ATIME, NOATIME, NODEV, NODIRATIME, NOEXEC, NOSUID, NOSYMFOLLOW, RDONLY, STRICTATIME};
use crate::plan::{Attributes, MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, PlanError};

/// What one option does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Attributes of the mount: those to set, those to clear.
    Attribute(u64, u64),
    /// The same for the mounts below it as well.
    Deep(u64, u64),
    Propagation(u64),
    Bind,
    BindAll,
    Remount,
    /// A flag of the filesystem, which the kernel takes by this name.
    Filesystem,
    /// Nothing to do: it is the default, or says how `mount(8)` behaves.
    Nothing,
    Unsupported,
}
use Effect::{Attribute, Bind, BindAll, Deep, Filesystem, Nothing, Propagation, Remount, Unsupported};

/// Every option that is not the filesystem's own, sorted by its name.
const OPTIONS: [(&str, Effect); 66] = [
    ("async", Nothing),
    ("atime", Attribute(0, ATIME)),
    ("bind", Bind),
    ("defaults", Nothing),
    ("dev", Attribute(0, NODEV)),
    ("diratime", Attribute(0, NODIRATIME)),
    ("dirsync", Filesystem),
    ("exec", Attribute(0, NOEXEC)),
    ("idmap", Unsupported),
    ("iversion", Nothing),
    ("lazytime", Filesystem),
    ("loud", Nothing),
    ("mand", Nothing),
    ("noatime", Attribute(NOATIME, ATIME)),
    ("nodev", Attribute(NODEV, 0)),
    ("nodiratime", Attribute(NODIRATIME, 0)),
    ("noexec", Attribute(NOEXEC, 0)),
    ("noiversion", Nothing),
    ("nolazytime", Nothing),
    ("nomand", Nothing),
    ("norelatime", Nothing),
    ("nostrictatime", Attribute(0, ATIME)),
    ("nosuid", Attribute(NOSUID, 0)),
    ("nosymfollow", Attribute(NOSYMFOLLOW, 0)),
    ("private", Propagation(MS_PRIVATE)),
    ("ratime", Deep(0, ATIME)),
    ("rbind", BindAll),
    ("rdev", Deep(0, NODEV)),
    ("rdiratime", Deep(0, NODIRATIME)),
    ("relatime", Attribute(0, ATIME)),
    ("remount", Remount),
    ("rexec", Deep(0, NOEXEC)),
    ("ridmap", Unsupported),
    ("rnoatime", Deep(NOATIME, ATIME)),
    ("rnodev", Deep(NODEV, 0)),
    ("rnodiratime", Deep(NODIRATIME, 0)),
    ("rnoexec", Deep(NOEXEC, 0)),
    ("rnorelatime", Nothing),
    ("rnostrictatime", Deep(0, ATIME)),
    ("rnosuid", Deep(NOSUID, 0)),
    ("rnosymfollow", Deep(NOSYMFOLLOW, 0)),
    ("ro", Attribute(RDONLY, 0)),
    ("rprivate", Propagation(MS_PRIVATE | MS_REC)),
    ("rrelatime", Deep(0, ATIME)),
    ("rro", Deep(RDONLY, 0)),
    ("rrw", Deep(0, RDONLY)),
    ("rshared", Propagation(MS_SHARED | MS_REC)),
    ("rslave", Propagation(MS_SLAVE | MS_REC)),
    ("rstrictatime", Deep(STRICTATIME, ATIME)),
    ("rsuid", Deep(0, NOSUID)),
    ("rsymfollow", Deep(0, NOSYMFOLLOW)),
    ("runbindable", Propagation(MS_UNBINDABLE | MS_REC)),
    ("rw", Attribute(0, RDONLY)),
    ("shared", Propagation(MS_SHARED)),
    ("silent", Nothing),
    ("slave", Propagation(MS_SLAVE)),
    ("strictatime", Attribute(STRICTATIME, ATIME)),
    ("suid", Attribute(0, NOSUID)),
    ("symfollow", Attribute(0, NOSYMFOLLOW)),
    ("sync", Filesystem),
    ("tmpcopyup", Unsupported),
    ("unbindable", Propagation(MS_UNBINDABLE)),
    ("user", Nothing),
    ("nouser", Nothing),
    ("auto", Nothing),
    ("noauto", Nothing),
];

/// The names that `features` lists.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let known = OPTIONS.iter().filter(|(name, effect)| {
        *effect != Unsupported && !matches!(*name, "user" | "nouser" | "auto" | "noauto" | "defaults")
    });
    known.map(|(name, _)| *name)
}

/// The options of one mount, sorted out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Parsed {
    pub(super) attributes: Attributes,
    /// `MS_*`; 0 when none is asked for.
    pub(super) propagation: u64,
    /// `Some(true)`: with the mounts below it.
    pub(super) bind: Option<bool>,
    pub(super) remount: bool,
    /// The filesystem's own, with their values.
    pub(super) data: Vec<(String, Option<String>)>,
}

/// At most so many options, and so many bytes in one.
const MAX_OPTIONS: usize = 256;
const MAX_OPTION: usize = 4096;

/// Sorts a list of options out. A later one wins over an earlier one.
pub(super) fn parse(options: &[String]) -> Result<Parsed, PlanError> {
    let invalid = |reason: String| PlanError::invalid("mounts.options", reason);
    if options.len() > MAX_OPTIONS || options.iter().any(|option| option.len() > MAX_OPTION) {
        return Err(invalid("too many or too long".to_owned()));
    }
    let mut parsed = Parsed::default();
    // One string may hold several, as in `mount -o`.
    for option in options.iter().flat_map(|option| option.split(',')).filter(|option| !option.is_empty()) {
        let known = OPTIONS.iter().find(|(name, _)| *name == option).map(|(_, effect)| *effect);
        match known {
            Some(Attribute(set, clear)) => {
                let to = &mut parsed.attributes;
                (to.set, to.clear) = merged((to.set, to.clear), (set, clear));
            }
            Some(Deep(set, clear)) => {
                let to = &mut parsed.attributes;
                (to.deep_set, to.deep_clear) = merged((to.deep_set, to.deep_clear), (set, clear));
            }
            Some(Propagation(kind)) => parsed.propagation = kind,
            Some(Bind) => parsed.bind = Some(parsed.bind.unwrap_or(false)),
            Some(BindAll) => parsed.bind = Some(true),
            Some(Remount) => parsed.remount = true,
            Some(Nothing) => {}
            Some(Unsupported) => return Err(invalid(format!("{option:?} is not supported"))),
            Some(Filesystem) => parsed.data.push((option.to_owned(), None)),
            // Marks for programs, of which the kernel knows nothing.
            None if option.starts_with("x-") || option.starts_with("X-") => {}
            None => match option.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    parsed.data.push((key.to_owned(), Some(value.to_owned())));
                }
                Some(_) => return Err(invalid(format!("{option:?} has no name"))),
                None => parsed.data.push((option.to_owned(), None)),
            },
        }
    }
    Ok(parsed)
}

/// What is set last is not cleared, and the other way round. The kernel wants all bits of the access times cleared
/// when one is set, so those stay among the cleared ones.
fn merged((set, clear): (u64, u64), (new_set, new_clear): (u64, u64)) -> (u64, u64) {
    ((set & !new_clear) | new_set, (clear & !new_set) | new_clear)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &[&str]) -> Parsed {
        parse(&list.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn later_options_win() {
        let attributes = |list: &[&str]| (of(list).attributes.set, of(list).attributes.clear);
        assert_eq!(attributes(&["ro", "nosuid"]), (RDONLY | NOSUID, 0));
        assert_eq!(attributes(&["ro", "rw"]), (0, RDONLY));
        assert_eq!(attributes(&["rw", "ro"]), (RDONLY, 0));
        assert_eq!(attributes(&["noatime", "strictatime"]), (STRICTATIME, ATIME));
        assert_eq!(attributes(&["strictatime", "relatime"]), (0, ATIME));
        let deep = of(&["rbind", "rro", "bind", "rslave", "private"]);
        assert_eq!((deep.attributes.deep_set, deep.bind, deep.propagation), (RDONLY, Some(true), MS_PRIVATE));
    }

    #[test]
    fn the_filesystems_own_are_passed_on() {
        let parsed = of(&["mode=755", "sync", "size=64k,nosuid", "newinstance", "x-mount.mkdir", "defaults"]);
        let data: Vec<String> =
            parsed.data.iter().map(|(k, v)| v.as_ref().map_or(k.clone(), |v| format!("{k}={v}"))).collect();
        assert_eq!(data, ["mode=755", "sync", "size=64k", "newinstance"]);
        assert_eq!(parsed.attributes.set, NOSUID);
        for bad in ["tmpcopyup", "idmap", "=x"] {
            assert!(parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
