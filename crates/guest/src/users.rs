//! Finds out who `name|uid[:group|gid]` is, from the container's own files as Docker does.

use crate::step::invalid;
use rustix::fs::{FileType, Mode, OFlags};
use std::io::{self, Read};

/// Bytes of `/etc/passwd` or `/etc/group` that are looked at.
const FILE_MAX: u64 = 1024 * 1024;
/// Supplementary groups at most.
const GROUPS_MAX: usize = 256;

/// Whom a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Resolves `spec`; empty is root.
pub(crate) fn resolve(spec: &str) -> io::Result<Identity> {
    if spec.is_empty() {
        return Ok(Identity { uid: 0, gid: 0, groups: Vec::new() });
    }
    resolve_in(spec, &read("/etc/passwd")?, &read("/etc/group")?)
}

/// Reads a small file that the image's maker controls: never a pipe or a device that would block.
fn read(path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(invalid(format!("{path} is not a plain file")));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn resolve_in(spec: &str, passwd: &str, group: &str) -> io::Result<Identity> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 4
            && (fields[0] == user || user.parse::<u32>().is_ok_and(|id| fields[2] == id.to_string()))
    });
    let uid = match &entry {
        Some(fields) => fields[2].parse().map_err(|_| invalid("/etc/passwd is malformed"))?,
        None => user.parse().map_err(|_| invalid(format!("the image has no user '{user}'")))?,
    };
    if let Some(wanted) = wanted_group.filter(|g| !g.is_empty()) {
        let by_name = group.lines().find_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            if fields.len() >= 3 && fields[0] == wanted { fields[2].parse().ok() } else { None }
        });
        let gid = by_name.or_else(|| wanted.parse().ok());
        let gid = gid.ok_or_else(|| invalid(format!("the image has no group '{wanted}'")))?;
        return Ok(Identity { uid, gid, groups: Vec::new() });
    }
    match &entry {
        Some(fields) => {
            let gid = fields[3].parse().map_err(|_| invalid("/etc/passwd is malformed"))?;
            let groups =
                group.lines().filter_map(|line| group_with(line, fields[0])).take(GROUPS_MAX).collect();
            Ok(Identity { uid, gid, groups })
        }
        None => Ok(Identity { uid, gid: 0, groups: Vec::new() }),
    }
}

/// The id of the group that this line of `/etc/group` describes, if `user` is one of its members.
fn group_with(line: &str, user: &str) -> Option<u32> {
    let fields: Vec<_> = line.split(':').collect();
    let member = fields.len() >= 4 && fields[3].split(',').any(|member| member == user);
    if member { fields[2].parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_of_users_and_groups() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/false\nbroken\n";
        let group = "root:x:0:\nweb:x:34:\nextra:x:50:a,web\n";
        let identity = |uid, gid, groups: &[u32]| Identity { uid, gid, groups: groups.to_vec() };
        for (spec, expected) in [
            ("root", identity(0, 0, &[])),
            ("web", identity(33, 34, &[50])),
            ("33", identity(33, 34, &[50])),
            ("1000", identity(1000, 0, &[])),
            ("web:extra", identity(33, 50, &[])),
            ("7:8", identity(7, 8, &[])),
        ] {
            assert_eq!(resolve_in(spec, passwd, group).unwrap(), expected, "{spec}");
        }
        assert!(resolve_in("nobody", passwd, group).is_err());
        assert!(resolve_in("web:none", passwd, group).is_err());
    }
}
