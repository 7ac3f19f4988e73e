//! Who the command runs as: the lookup in the container's own passwd and group files, and the change of identity.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, OFlags};
use rustix::process::{Gid, Uid};

use super::mounts::resolve;
use super::{AtStep, Failure, Outcome, Prepared, Step};
use crate::plan::{UserSpec, Who};
use crate::sys;

/// More groups than this are passed over; the kernel allows 65 536, images with 30 are rare.
const MAX_GROUPS: usize = 64;

/// The answer of a lookup, without a single allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    groups: [u32; MAX_GROUPS],
    count: usize,
    /// As the passwd file has it; `/` for users that it does not know.
    pub(crate) home: &'a [u8],
}

impl Identity<'_> {
    /// The supplementary groups.
    pub(crate) fn groups(&self) -> &[u32] {
        self.groups.get(..self.count).unwrap_or_default()
    }

    fn add_group(&mut self, gid: u32) {
        if !self.groups().contains(&gid)
            && let Some(slot) = self.groups.get_mut(self.count)
        {
            *slot = gid;
            self.count += 1;
        }
    }
}

/// The two files, as they were read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a> {
    pub(crate) passwd: &'a [u8],
    pub(crate) group: &'a [u8],
}

fn number(text: &[u8]) -> Option<u32> {
    // −1 means "leave as it is" to the kernel and is nobody's id.
    std::str::from_utf8(text).ok()?.parse().ok().filter(|id| *id != u32::MAX)
}

/// The colon-separated fields of the line for which `matches` holds.
fn entry<'a, const N: usize>(file: &'a [u8], matches: impl Fn(&[&'a [u8]; N]) -> bool) -> Option<[&'a [u8]; N]> {
    file.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = [&line[..0]; N];
        let mut parts = line.split(|byte| *byte == b':');
        for field in &mut fields {
            *field = parts.next()?;
        }
        matches(&fields).then_some(fields)
    })
}

/// Docker's rules: a name must be known, a number need not be; a group that is named replaces the user's own groups.
pub(crate) fn parse_identity<'a>(spec: &UserSpec, more: &[CString], names: Names<'a>) -> Result<Identity<'a>, Step> {
    let wanted: &[u8] = if spec.user.is_empty() { b"0" } else { &spec.user };
    let by_name = entry::<6>(names.passwd, |fields| fields[0] == wanted);
    let by_number = || number(wanted).and_then(|uid| entry::<6>(names.passwd, |fields| number(fields[2]) == Some(uid)));
    let mut identity = Identity { uid: 0, gid: 0, groups: [0; MAX_GROUPS], count: 0, home: b"/" };
    let mut login: &[u8] = b"";
    match by_name.or_else(by_number) {
        Some([name, _, uid, gid, _, home]) => {
            identity.uid = number(uid).ok_or(Step::UnknownUser)?;
            identity.gid = number(gid).ok_or(Step::UnknownUser)?;
            identity.home = if home.is_empty() { b"/" } else { home };
            login = name;
        }
        None => identity.uid = number(wanted).ok_or(Step::UnknownUser)?,
    }
    if let Some(group) = &spec.group {
        identity.gid = group_id(group, names.group)?;
    } else if !login.is_empty() {
        for line in names.group.split(|byte| *byte == b'\n') {
            let mut fields = line.split(|byte| *byte == b':');
            let (gid, members) = (fields.nth(2).and_then(number), fields.next().unwrap_or_default());
            if let Some(gid) = gid
                && members.split(|byte| *byte == b',').any(|member| member == login)
            {
                identity.add_group(gid);
            }
        }
    }
    for name in more {
        identity.add_group(group_id(name.to_bytes(), names.group)?);
    }
    Ok(identity)
}

fn group_id(wanted: &[u8], groups: &[u8]) -> Result<u32, Step> {
    let known = entry::<3>(groups, |fields| fields[0] == wanted).and_then(|fields| number(fields[2]));
    known.or_else(|| number(wanted)).ok_or(Step::UnknownGroup)
}

/// Reads one of the two files into its buffer. A file that is not there is an empty one.
fn read(root: BorrowedFd<'_>, path: &std::ffi::CStr, buffer: &mut Vec<u8>) -> Result<(), rustix::io::Errno> {
    buffer.clear();
    // NONBLOCK: an image may have put a fifo here.
    let file = match resolve(root, path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(rustix::io::Errno::INVAL);
    }
    let capacity = buffer.capacity();
    // Within the capacity, so nothing is allocated.
    buffer.resize(capacity.min(usize::try_from(stat.st_size).unwrap_or(usize::MAX)), 0);
    if u64::try_from(stat.st_size).is_ok_and(|size| size > capacity as u64) {
        return Err(rustix::io::Errno::FBIG);
    }
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(&file, rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    buffer.truncate(filled);
    Ok(())
}

/// Looks the user up before the root is sealed and switched, so that every failure is one of the creation.
pub(super) fn look_up(prepared: &mut Prepared, root: BorrowedFd<'_>) -> Outcome<()> {
    let process = &prepared.plan.process;
    let named = matches!(process.who, Who::Named { .. });
    if named || process.home_from_passwd {
        read(root, c"etc/passwd", &mut prepared.passwd).at(Step::ReadUsers)?;
    }
    if named {
        read(root, c"etc/group", &mut prepared.group).at(Step::ReadUsers)?;
    }
    let names = Names { passwd: &prepared.passwd, group: &prepared.group };
    let identity = identify(&process.who, names).map_err(|step| Failure { step, index: 0, errno: 0 })?;
    if process.home_from_passwd {
        prepared.exec.set_home(identity.home);
    }
    Ok(())
}

fn identify<'a>(who: &Who, names: Names<'a>) -> Result<Identity<'a>, Step> {
    match who {
        Who::Named { user, groups } => parse_identity(user, groups, names),
        Who::Numbers { uid, gid, groups } => {
            let known = entry::<6>(names.passwd, |fields| number(fields[2]) == Some(*uid));
            let home = known.map_or(&b"/"[..], |fields| if fields[5].is_empty() { b"/" } else { fields[5] });
            let mut identity = Identity { uid: *uid, gid: *gid, groups: [0; MAX_GROUPS], count: 0, home };
            groups.iter().for_each(|gid| identity.add_group(*gid));
            Ok(identity)
        }
    }
}

/// `CAP_SYS_ADMIN`, without which a filter can only be loaded where `no_new_privs` is set.
const SYS_ADMIN: u64 = 1 << 21;

/// Becomes the user, with no more capabilities than planned and the labels that its exec takes. Whoever calls this calls
/// [`super::confine::lock`] as well, last of all.
///
/// When a filter is to be loaded without `no_new_privs`, CAP_SYS_ADMIN stays until the exec, where the kernel computes
/// the sets anew: for root out of the bounding set, which does not have it any more, and to nothing for others.
pub(super) fn assume(prepared: &Prepared) -> Outcome<()> {
    let process = &prepared.plan.process;
    let names = Names { passwd: &prepared.passwd, group: &prepared.group };
    let identity = identify(&process.who, names).map_err(|step| Failure { step, index: 0, errno: 0 })?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    own_streams(prepared, uid).at(Step::Stdio)?;
    super::confine::enter(prepared)?;
    let wanted = &process.capabilities;
    sys::limit_bounding_set(wanted.bounding).at(Step::Capabilities)?;
    let mut groups = [Gid::ROOT; MAX_GROUPS];
    for (to, from) in groups.iter_mut().zip(identity.groups()) {
        *to = Gid::from_raw(*from);
    }
    let groups = groups.get(..identity.groups().len()).unwrap_or_default();
    match rustix::thread::set_thread_groups(groups) {
        // A user namespace may forbid it; then there were none to give up either.
        Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
        other => other.at(Step::Credentials)?,
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid).at(Step::Credentials)?;
    let needed = process.confinement.seccomp.is_some() && !process.no_new_privileges;
    let kept = if needed { SYS_ADMIN } else { 0 };
    if !wanted.only_root || kept != 0 {
        sys::keep_capabilities().at(Step::Capabilities)?;
    }
    // Without that, a user who is not root loses all permitted capabilities here, as with Docker.
    rustix::thread::set_thread_res_uid(uid, uid, uid).at(Step::Credentials)?;
    if uid.is_root() || !wanted.only_root {
        // What this process itself does not have cannot be given; the OCI specification does not want it to fail.
        let own = sys::permitted_capabilities().at(Step::Capabilities)?;
        let (permitted, inheritable, kept) = (wanted.permitted & own, wanted.inheritable & own, kept & own);
        sys::set_capabilities(wanted.effective & permitted | kept, permitted | kept, inheritable)
            .at(Step::Capabilities)?;
        sys::raise_ambient(wanted.ambient & permitted & inheritable).at(Step::Capabilities)?;
    } else if kept != 0 {
        sys::set_capabilities(kept, kept, 0).at(Step::Capabilities)?;
    }
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).at(Step::NoNewPrivileges)?;
    }
    Ok(())
}

/// A user who is not root may open /dev/stdout only when what is behind it is theirs.
fn own_streams(prepared: &Prepared, uid: Uid) -> Result<(), rustix::io::Errno> {
    for fd in [&prepared.stdin, &prepared.stdout, &prepared.stderr] {
        let stat = rustix::fs::fstat(fd)?;
        let is_null = stat.st_rdev == rustix::fs::makedev(1, 3);
        if stat.st_uid != uid.as_raw() && !is_null {
            // What cannot be given (a file of a read-only mount, of another user namespace) stays as it is.
            let _ = rustix::fs::fchown(fd, Some(uid), None);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# a comment\nweb:x:100:101::/srv:/bin/false\n7:x:500:500::/seven:\nbad:x:-1:0::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nweb:x:101:\nlogs:x:200:other,web\nmore:x:201:web\nnobody\n";

    #[track_caller]
    fn check(user: &str, more: &[&str], expected: Result<(u32, u32, &[u32], &str), Step>) {
        let (user, group) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g.as_bytes().to_vec())));
        let spec = UserSpec { user: user.as_bytes().to_vec(), group };
        let more: Vec<CString> = more.iter().map(|name| CString::new(*name).unwrap()).collect();
        let found = parse_identity(&spec, &more, Names { passwd: PASSWD, group: GROUP });
        let found =
            found.map(|id| (id.uid, id.gid, id.groups().to_vec(), String::from_utf8_lossy(id.home).into_owned()));
        assert_eq!(found, expected.map(|(u, g, list, home)| (u, g, list.to_vec(), home.to_owned())), "{spec:?}");
    }

    #[test]
    fn looks_up_like_docker() {
        check("", &[], Ok((0, 0, &[], "/root")));
        check("root", &[], Ok((0, 0, &[], "/root")));
        check("web", &[], Ok((100, 101, &[200, 201], "/srv")));
        check("100", &[], Ok((100, 101, &[200, 201], "/srv")));
        check("web:logs", &[], Ok((100, 200, &[], "/srv")));
        check("web:77", &["logs", "9", "logs"], Ok((100, 77, &[200, 9], "/srv")));
        check("12345", &[], Ok((12345, 0, &[], "/")));
        check("7", &[], Ok((500, 500, &[], "/seven")));
        check("nosuch", &[], Err(Step::UnknownUser));
        check("bad", &[], Err(Step::UnknownUser));
        check("4294967295", &[], Err(Step::UnknownUser));
        check("web:nosuch", &[], Err(Step::UnknownGroup));
        check("web", &["nosuch"], Err(Step::UnknownGroup));
    }
}
