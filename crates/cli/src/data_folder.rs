//! The data folder: where it is, what lies where in it, and who owns it.

use crate::names;
use anyhow::{Context, Result};
use evoke_core::{Error, ErrorCode};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Gid, Uid};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the data folder is, if nobody says otherwise.
const SYSTEM_FOLDER: &str = "/var/lib/evoke";
/// The user that the server runs as where no user `evoke` exists.
const SERVICE_ID_DEFAULT: u32 = 64_087;
/// Name of the service user and of the group whose members may use the server.
pub(crate) const SERVICE_NAME: &str = "evoke";
/// The folder itself can be passed through, so that local users reach the socket, but not listed.
const FOLDER_MODE: u32 = 0o711;
/// What is inside is the service user's alone.
const PRIVATE_MODE: u32 = 0o700;
/// The folders inside.
const INSIDE: [&str; 11] =
    ["db", "objects", "blobs", "values", "mounts", "bundles", "logs", "spool", "layers", "containers", "run"];

/// A data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataFolder {
    root: PathBuf,
}

/// The user that owns the data folder and runs the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServiceUser {
    pub uid: u32,
    pub gid: u32,
}

/// The held lock of a data folder. Given back when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: std::fs::File,
}

impl DataFolder {
    /// The folder at `root`.
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder that the user means: `explicit` (from `--data` or `EVOKE_DATA`), else the user's own if a
    /// server was started there, else the system's.
    pub(crate) fn locate(explicit: Option<&Path>) -> Result<Self> {
        if let Some(path) = explicit.filter(|p| !p.as_os_str().is_empty()) {
            let path = std::path::absolute(path).with_context(|| format!("resolving {}", path.display()))?;
            return Ok(Self::at(path));
        }
        if !rustix::process::geteuid().is_root() {
            let own = names::read(names::XDG_DATA_HOME)
                .map(PathBuf::from)
                .or_else(|| names::read(names::HOME).map(|home| Path::new(&home).join(".local/share")))
                .map(|base| Self::at(base.join("evoke")));
            if let Some(own) = own.filter(|own| own.socket().exists()) {
                return Ok(own);
            }
        }
        Ok(Self::at(SYSTEM_FOLDER))
    }

    /// What to add to a command so that it means this folder: nothing for the system's.
    pub(crate) fn option(&self) -> String {
        if self.root == Path::new(SYSTEM_FOLDER) {
            return String::new();
        }
        format!(" --data {}", crate::env::quoted(&self.root.to_string_lossy()))
    }

    /// The folder's path.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }
    /// The local socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("evoke.sock")
    }
    /// The lock that the holder keeps; its content says who holds it.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }
    /// The token of the workspace.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.root.join("token.json")
    }
    /// What a server in the background says.
    pub(crate) fn background_log(&self) -> PathBuf {
        self.root.join("up.log")
    }
    /// The settings of this folder's server.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.root.join("evoke.toml")
    }
    /// Held while someone starts a server in the background, so that only one does.
    pub(crate) fn start_lock_file(&self) -> PathBuf {
        self.root.join("run").join("start.lock")
    }

    /// Makes the folder and what belongs inside, owned by the service user. Needs root.
    pub(crate) fn prepare(&self) -> Result<ServiceUser> {
        self.refuse_foreign_content()?;
        let known =
            std::fs::metadata(self.lock_file()).ok().map(|m| ServiceUser { uid: m.uid(), gid: m.gid() });
        let user = known.filter(|user| user.uid != 0).unwrap_or_else(ServiceUser::of_this_machine);
        let path = self.root.display();
        if let Some(parent) = self.root.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        make_folder(&self.root, FOLDER_MODE, user).with_context(|| format!("making {path}"))?;
        // First of all, because it is what marks the folder as ours.
        self.open_lock_file(user)?;
        for name in INSIDE {
            let inside = self.root.join(name);
            make_folder(&inside, PRIVATE_MODE, user)
                .with_context(|| format!("making {}", inside.display()))?;
        }
        self.refuse_closed_parents(user)?;
        Ok(user)
    }

    /// A folder with anything but our own in it is not taken over.
    fn refuse_foreign_content(&self) -> Result<()> {
        if self.lock_file().exists() {
            return Ok(());
        }
        let Ok(entries) = std::fs::read_dir(&self.root) else { return Ok(()) };
        for entry in entries {
            let name = entry.with_context(|| format!("reading {}", self.root.display()))?.file_name();
            let ours = ["evoke.toml", "lost+found"].iter().any(|known| name == *known);
            // Asked again: somebody else may be making this folder a data folder right now, lock file first.
            if !ours && !self.lock_file().exists() {
                let what = format!("{} is not empty and not a data folder of Evoke", self.root.display());
                return Err(Error::invalid(what)
                    .with_hint("give the path of an empty or a new folder: sudo evoke up --data DIR")
                    .into());
            }
        }
        Ok(())
    }

    /// The service user must be able to pass through every folder above.
    fn refuse_closed_parents(&self, user: ServiceUser) -> Result<()> {
        for parent in self.root.ancestors().skip(1) {
            let about = std::fs::metadata(parent).with_context(|| format!("reading {}", parent.display()))?;
            let shift = if about.uid() == user.uid {
                6
            } else if about.gid() == user.gid {
                3
            } else {
                0
            };
            if (about.mode() >> shift) & 1 == 0 {
                let what = format!(
                    "{} is closed to other users, and the server does not run as root",
                    parent.display()
                );
                let mend = format!(
                    "put the data folder elsewhere (evoke up --data /var/lib/evoke), or: chmod o+x {}",
                    parent.display()
                );
                return Err(Error::precondition(what).with_hint(mend).into());
            }
        }
        Ok(())
    }

    fn open_lock_file(&self, user: ServiceUser) -> Result<std::fs::File> {
        let path = self.lock_file();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd: OwnedFd = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
            .with_context(|| format!("opening {}", path.display()))?;
        rustix::fs::fchown(&fd, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))
            .with_context(|| format!("giving {} to the service user", path.display()))?;
        Ok(std::fs::File::from(fd))
    }

    /// Takes the folder's lock; who has it already is named in the error.
    pub(crate) fn lock(&self, user: ServiceUser) -> Result<Lock> {
        let path = self.lock_file();
        let mut file = self.open_lock_file(user)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { file }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut who = String::new();
                file.read_to_string(&mut who).unwrap_or_default();
                let who =
                    if who.trim().is_empty() { "still starting".to_owned() } else { who.trim().to_owned() };
                let what = format!("a server is already up on {} ({who})", self.root.display());
                let mend = "use it, stop it with `evoke down`, or give another folder with --data DIR";
                Err(Error::new(ErrorCode::AlreadyExists, what).with_hint(mend).into())
            }
            Err(error) => Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }
}

impl Lock {
    /// Writes into the lock file who holds it.
    pub(crate) fn describe(&mut self, address: &str) -> Result<()> {
        let text = format!("pid {}, {address}", std::process::id());
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())?;
        Ok(())
    }
}

impl ServiceUser {
    /// The machine's user `evoke`, else a numeric one that no distribution hands out.
    pub(crate) fn of_this_machine() -> Self {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::from_passwd(&passwd).unwrap_or(Self { uid: SERVICE_ID_DEFAULT, gid: SERVICE_ID_DEFAULT })
    }

    fn from_passwd(passwd: &str) -> Option<Self> {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(SERVICE_NAME))?;
        let mut fields = line.split(':').skip(2);
        let uid = fields.next()?.parse().ok().filter(|uid| *uid != 0)?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { uid, gid })
    }
}

fn make_folder(path: &Path, mode: u32, user: ServiceUser) -> Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error.into()),
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_user_is_never_root() {
        let user = |uid, gid| Some(ServiceUser { uid, gid });
        assert_eq!(
            ServiceUser::from_passwd("root:x:0:0::/:\nevoke:x:997:996::/:/bin/false\n"),
            user(997, 996)
        );
        assert_eq!(ServiceUser::from_passwd("evoke:x:0:0::/:/bin/sh\n"), None);
        assert_eq!(ServiceUser::from_passwd("evoker:x:5:5::/:/bin/sh\n"), None);
    }

    #[test]
    fn a_folder_of_someone_else_is_not_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        let error = DataFolder::at(folder.path()).refuse_foreign_content().unwrap_err();
        assert!(error.to_string().contains("not a data folder"), "{error}");
    }

    #[test]
    fn a_second_holder_is_told_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataFolder::at(folder.path());
        let about = std::fs::metadata(folder.path()).unwrap();
        let user = ServiceUser { uid: about.uid(), gid: about.gid() };
        let mut first = data.lock(user).unwrap();
        first.describe("http://127.0.0.1:7350").unwrap();
        let error = data.lock(user).unwrap_err().to_string();
        assert!(error.contains("http://127.0.0.1:7350") && error.contains("pid"), "{error}");
        drop(first);
        data.lock(user).unwrap();
    }
}
