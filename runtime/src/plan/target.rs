//! A place inside of the container's root, taken apart so that it can be resolved and made step by step.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::{PlanError, c_string};

/// A normalised path below the root: `etc/hosts` as prefixes `etc`, `etc/hosts` and names `etc`, `hosts`.
///
/// The child resolves it inside of the root and makes what is missing there, so a link in the image can lead nowhere but
/// back into the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    prefixes: Vec<CString>,
    names: Vec<CString>,
}

impl Target {
    /// Takes an absolute path apart. `..` is refused: what it means depends on links that are not known yet.
    pub(crate) fn new(field: &'static str, path: impl AsRef<Path>) -> Result<Target, PlanError> {
        let path = path.as_ref();
        if path.as_os_str().len() > 4000 {
            return Err(PlanError::invalid(field, "path is too long"));
        }
        let mut target = Target { prefixes: Vec::new(), names: Vec::new() };
        let mut walked: Vec<u8> = Vec::new();
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => {
                    if !walked.is_empty() {
                        walked.push(b'/');
                    }
                    walked.extend_from_slice(name.as_bytes());
                    target.prefixes.push(c_string(field, walked.clone())?);
                    target.names.push(c_string(field, name.as_bytes())?);
                }
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(PlanError::invalid(field, format!("{} contains \"..\"", path.display())));
                }
            }
        }
        if !path.is_absolute() {
            return Err(PlanError::invalid(field, format!("{} is not absolute", path.display())));
        }
        Ok(target)
    }

    /// A path of the runtime's own tables.
    pub(super) fn fixed(path: &'static str) -> Result<Target, PlanError> {
        Target::new("path", path)
    }

    /// Whether it is the root itself.
    pub(crate) fn is_root(&self) -> bool {
        self.names.is_empty()
    }

    /// The whole path, relative to the root; `.` for the root itself.
    pub(crate) fn path(&self) -> &CStr {
        self.prefixes.last().map_or(c".", |path| path.as_c_str())
    }

    /// The path of the directory that holds it; `.` for the root.
    pub(crate) fn parent(&self) -> &CStr {
        match self.prefixes.len() {
            0 | 1 => c".",
            n => self.prefixes.get(n - 2).map_or(c".", |path| path.as_c_str()),
        }
    }

    /// Its last name; `.` for the root.
    pub(crate) fn name(&self) -> &CStr {
        self.names.last().map_or(c".", |name| name.as_c_str())
    }
}
