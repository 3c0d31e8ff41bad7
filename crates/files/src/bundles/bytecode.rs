//! Compiled bytecode inside a bundle, so that interpreters need not compile at every start.
//!
//! Bytecode is written by an interpreter of the same version, in a container of the image that has it, and
//! Python runs it unchecked. So it is trusted only as far as that image: a compiled tree is kept per
//! interpreter name, which the caller takes from the image's identity, and is never shared with containers
//! of another image. From what the container leaves nothing but bytecode of known modules is taken; sources
//! always come from the bundle.

use super::{Bundle, BundleError, Bundles, build::make_folder};
use crate::{IoFailure, io_failure::IoContext, trees::copy_file};
use std::{
    fs::{self, OpenOptions, Permissions},
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Where the job's tree must appear inside the container, writable.
pub const BUNDLE_MOUNT: &str = "/__evoke/bundle";
/// The longest bytecode of one module, in bytes.
const BYTECODE_BYTES_MAX: u64 = 32 << 20;
/// The head of a bytecode file: magic number, flags, hash.
const HEAD_BYTES: usize = 16;
/// Flags of bytecode that is bound to its source by hash and not checked against it.
const UNCHECKED_HASH: [u8; 4] = [1, 0, 0, 0];

/// What there is for an interpreter.
#[derive(Debug)]
pub enum Bytecode {
    /// The compiled tree.
    Ready(Bundle),
    /// It must be compiled first; until then the plain bundle does, only slower.
    Needed(BytecodeJob),
}

/// A compilation that somebody must run in a container. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct BytecodeJob {
    bundles: Bundles,
    bundle: Bundle,
    python_minor: u8,
    key: String,
    folder: PathBuf,
}

impl std::fmt::Debug for Bundles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundles").field("root", &self.inner.root).finish()
    }
}

impl Bundles {
    /// The compiled form of `bundle` for CPython 3.`python_minor`, or the job that makes it. `interpreter`
    /// names the image (or the trusted base) whose interpreter compiles: see above for why it matters.
    pub fn bytecode(
        &self,
        bundle: &Bundle,
        python_minor: u8,
        interpreter: &str,
    ) -> Result<Bytecode, BundleError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if interpreter.is_empty() || interpreter.len() > 100 || !interpreter.bytes().all(plain) {
            return Err(BundleError::Interpreter(interpreter.chars().take(100).collect()));
        }
        let minor = format!("-cp3{python_minor}");
        let tagged = if bundle.key.contains(&minor) { String::new() } else { minor };
        let key = format!("{}{tagged}-pyc-{interpreter}", bundle.key);
        if let Some(ready) = self.find(&key) {
            return Ok(Bytecode::Ready(ready));
        }
        let folder = self.temporary(&key)?;
        let job = BytecodeJob { bundles: self.clone(), bundle: bundle.clone(), python_minor, key, folder };
        // A copy, because the container may write into it and links would reach the bundle's own files.
        copy_tree(&bundle.tree, &job.tree(), &copy_file)?;
        Ok(Bytecode::Needed(job))
    }
}

impl BytecodeJob {
    /// The tree to bind at [`BUNDLE_MOUNT`], writable, owned by the server's user.
    pub fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    /// What to run in the container, where `python` is the image's interpreter. A module that does not
    /// compile makes the exit status 1, which is no reason not to [`BytecodeJob::finish`].
    pub fn argv(&self, python: &str) -> Vec<String> {
        self.argv_at(python, BUNDLE_MOUNT)
    }

    /// The same with the tree at another path.
    pub fn argv_at(&self, python: &str, mount: &str) -> Vec<String> {
        // The names inside the bytecode are those that the modules will have, not those in the job's mount.
        let fixed = ["-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", mount];
        let rest = ["-p", "/", mount];
        [python].iter().chain(&fixed).chain(&rest).map(|word| (*word).to_owned()).collect()
    }

    /// Takes the bytecode that the container left and makes the compiled bundle of it. Call it after the
    /// container has ended.
    pub fn finish(self) -> Result<Bundle, BundleError> {
        self.bundles.obtain(&self.key, |tree| {
            // `obtain` made the folder itself.
            fs::remove_dir(tree).during("remove", tree)?;
            copy_tree(&self.bundle.tree, tree, &|source, target, mode| {
                fs::hard_link(source, target)
                    .or_else(|_| copy_file(source, target, mode).map_err(|failure| failure.source))
                    .during("link", target)
            })?;
            let taken = self.take_bytecode(&self.tree(), tree)?;
            if taken == 0 {
                return Err(BundleError::NoBytecode(self.python_minor));
            }
            Ok(self.bundle.packages.clone())
        })
    }

    /// Copies bytecode from `left` (which a container wrote, so nothing in it is believed) to the same
    /// place below `tree`. Only folders that `tree` has are entered.
    fn take_bytecode(&self, left: &Path, tree: &Path) -> Result<u64, IoFailure> {
        let mut taken = 0;
        for entry in fs::read_dir(tree).during("list", tree)? {
            let entry = entry.during("list", tree)?;
            if !entry.file_type().during("look at", &entry.path())?.is_dir() {
                continue;
            }
            let below = left.join(entry.file_name());
            // Not followed: a link that the container put here is no folder.
            if fs::symlink_metadata(&below).is_ok_and(|m| m.is_dir()) {
                taken += self.take_bytecode(&below, &entry.path())?;
            }
        }
        let cache = left.join("__pycache__");
        if !fs::symlink_metadata(&cache).is_ok_and(|m| m.is_dir()) {
            return Ok(taken);
        }
        let suffix = format!(".cpython-3{}.pyc", self.python_minor);
        let target = tree.join("__pycache__");
        for entry in fs::read_dir(&cache).during("list", &cache)? {
            let name = entry.during("list", &cache)?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(&suffix));
            let Some(stem) = stem.filter(|stem| tree.join(format!("{stem}.py")).is_file()) else { continue };
            let Some(bytes) = read_bytecode(&cache.join(&name))? else { continue };
            if !target.is_dir() {
                make_folder(&target)?;
            }
            let path = target.join(format!("{stem}{suffix}"));
            fs::write(&path, bytes).during("write", &path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o644)).during("set the mode of", &path)?;
            taken += 1;
        }
        Ok(taken)
    }
}

impl Drop for BytecodeJob {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(path = %self.folder.display(), %error, "could not remove a finished compilation");
        }
    }
}

/// The file's bytes if it is a plain file with unchecked bytecode.
fn read_bytecode(path: &Path) -> Result<Option<Vec<u8>>, IoFailure> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    let Ok(file) = opened else { return Ok(None) };
    if !file.metadata().during("look at", path)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(BYTECODE_BYTES_MAX + 1).read_to_end(&mut bytes).during("read", path)?;
    let fits = bytes.len() as u64 <= BYTECODE_BYTES_MAX;
    let unchecked = bytes.len() > HEAD_BYTES && bytes[4..8] == UNCHECKED_HASH;
    Ok((fits && unchecked).then_some(bytes))
}

type CopyOne<'a> = &'a dyn Fn(&Path, &Path, u32) -> Result<(), IoFailure>;

/// Makes `target`, a tree of the same folders as `source`, and lets `copy` bring over each file.
fn copy_tree(source: &Path, target: &Path, copy: CopyOne<'_>) -> Result<(), IoFailure> {
    make_folder(target)?;
    for entry in fs::read_dir(source).during("list", source)? {
        let entry = entry.during("list", source)?;
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        let metadata = entry.metadata().during("look at", &from)?;
        if metadata.is_dir() {
            copy_tree(&from, &to, copy)?;
        } else {
            copy(&from, &to, metadata.permissions().mode() & 0o777)?;
        }
    }
    Ok(())
}
