//! A mount set as a folder tree, made once and shared by every container that uses it.
//!
//! Layout: `<root>/<digest>/…`. Files are hard links to the contents of the store, so a tree costs inodes
//! of folders only; where a link is not possible (too many of them, another file system) they share blocks
//! or are copied. A tree is built below `<root>/tmp` and renamed, so what has its digest as its name is
//! whole. It is not synced of its own: its contents are, and after a power loss a journal that kept the
//! last rename also kept the links before it.

use crate::{
    ContentHash, IoFailure, ObjectError, ObjectStore, PathError,
    io_failure::IoContext,
    objects::{PLAIN_MODE, copy_content},
    tree_paths::{folders_of, inside},
};
use evoke_core::Error;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, File, OpenOptions, Permissions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Files in one mount set.
pub const TREE_FILES_MAX: usize = 500_000;

/// One file of a mount set, as the protocol gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFile {
    /// Where it appears, from the container's root on.
    pub path: String,
    /// Its content, which must be in the store.
    pub sha256: ContentHash,
    /// Its permission bits; only the nine of read, write and execute count, and 0 stands for 0644.
    pub mode: u32,
}

/// A tree that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// What it is made of: the same set of files gives the same digest.
    pub digest: ContentHash,
    /// Its root, to be laid over a container's root.
    pub path: PathBuf,
}

/// What kept a tree from being made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The set is not a tree.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A content is missing or damaged.
    #[error("{path}: {source}")]
    Content {
        /// The file that needs it.
        path: String,
        /// What is wrong with it.
        source: ObjectError,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

impl From<TreeError> for Error {
    fn from(error: TreeError) -> Error {
        match error {
            TreeError::Path(path) => path.into(),
            TreeError::Io(failure) => failure.into(),
            TreeError::Content { path, source } => {
                let mut error = Error::from(source);
                error.message = format!("{path}: {}", error.message);
                error
            }
        }
    }
}

/// The place of the trees. Cheap to clone.
#[derive(Clone)]
pub struct Trees {
    root: PathBuf,
    objects: ObjectStore,
    next_temporary: Arc<AtomicU64>,
    /// Trees that were asked for since the last round of collection began.
    asked: Arc<Mutex<HashSet<ContentHash>>>,
}

/// A checked set: files in order of their paths, and the folders they need.
struct Plan<'a> {
    files: BTreeMap<&'a str, (ContentHash, u32)>,
    folders: BTreeSet<&'a str>,
    digest: ContentHash,
}

impl Trees {
    /// Trees below `root` over the contents of `objects`; both should lie on one file system. Left-overs of
    /// unfinished trees are removed.
    pub fn open(root: &Path, objects: ObjectStore) -> Result<Self, IoFailure> {
        let tmp = root.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).during("remove", &tmp)?;
        }
        fs::create_dir_all(&tmp).during("create", &tmp)?;
        let (next_temporary, asked) = Default::default();
        Ok(Self { root: root.to_owned(), objects, next_temporary, asked })
    }

    /// The digest of the set, which must be a valid one. Nothing is made.
    pub fn digest(files: &[MountFile]) -> Result<ContentHash, PathError> {
        plan(files).map(|plan| plan.digest)
    }

    /// The tree of this digest, if it has been made.
    pub fn find(&self, digest: ContentHash) -> Option<Tree> {
        let path = self.root.join(digest.to_hex());
        path.is_dir().then_some(Tree { digest, path })
    }

    /// The tree of `files`: the one that is there, else a new one. Concurrent calls for one set may both
    /// build it; one result is kept.
    pub fn materialise(&self, files: &[MountFile]) -> Result<Tree, TreeError> {
        let plan = plan(files)?;
        // Before the look, so that no collection fits in between.
        self.lock().insert(plan.digest);
        if let Some(tree) = self.find(plan.digest) {
            return Ok(tree);
        }
        let _pin = self.objects.pin(plan.files.values().map(|(hash, _)| *hash));
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.root.join("tmp").join(format!("{}-{number}", plan.digest));
        let built = self.build(&plan, &temporary).and_then(|()| self.publish(&plan, &temporary));
        if built.is_err() {
            if let Err(error) = fs::remove_dir_all(&temporary) {
                tracing::warn!(path = %temporary.display(), %error, "could not remove an unfinished tree");
            }
        }
        built
    }

    /// A round of collection begins: what is asked for from now on stays. What is live must be found out after
    /// this.
    pub fn begin_collection(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<ContentHash>> {
        // Each change is a single insert or clear.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the trees for which `live` says no and that nobody asked for since the round began; only counts
    /// them where it is a dry run. The caller sees to it that no container uses them.
    pub fn collect(&self, live: &dyn Fn(&ContentHash) -> bool, dry_run: bool) -> Result<u64, IoFailure> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.root).during("list", &self.root)? {
            let entry = entry.during("list", &self.root)?;
            let digest = entry.file_name().to_str().and_then(|name| name.parse::<ContentHash>().ok());
            let Some(digest) = digest.filter(|digest| !live(digest)) else { continue };
            // Held until it has lost its name: who asks for it then makes it anew.
            let asked = self.lock();
            if asked.contains(&digest) {
                continue;
            }
            if dry_run {
                removed += 1;
                continue;
            }
            // Renamed first, so that a half-removed tree is never found.
            let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
            let doomed = self.root.join("tmp").join(format!("removed-{number}"));
            fs::rename(entry.path(), &doomed).during("rename to", &doomed)?;
            drop(asked);
            fs::remove_dir_all(&doomed).during("remove", &doomed)?;
            removed += 1;
        }
        Ok(removed)
    }

    fn build(&self, plan: &Plan<'_>, at: &Path) -> Result<(), TreeError> {
        make_folder(at, "")?;
        for folder in &plan.folders {
            make_folder(&at.join(folder), folder)?;
        }
        // The same content and mode again and again is the rule in package trees: found once.
        let mut sources: HashMap<(ContentHash, u32), PathBuf> = HashMap::new();
        let mut copied = false;
        for (path, (hash, mode)) in &plan.files {
            let content = |source| TreeError::Content { path: format!("/{path}"), source };
            let source = match sources.entry((*hash, *mode)) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => {
                    new.insert(self.objects.with_mode(*hash, *mode).map_err(content)?)
                }
            };
            let target = at.join(path);
            match fs::hard_link(&*source, &target) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(content(ObjectError::Missing(*hash)));
                }
                // Too many links to one inode (ext4 allows 65,000: think of empty `__init__.py`), another
                // file system, or one without links. Further files are linked to the copy.
                Err(_) => {
                    copy_file(source, &target, *mode)?;
                    *source = target;
                    copied = true;
                }
            }
        }
        if copied {
            let root = File::open(at).during("open", at)?;
            rustix::fs::syncfs(&root).during("sync the file system of", at)?;
        }
        Ok(())
    }

    fn publish(&self, plan: &Plan<'_>, temporary: &Path) -> Result<Tree, TreeError> {
        let path = self.root.join(plan.digest.to_hex());
        let tree = Tree { digest: plan.digest, path: path.clone() };
        match fs::rename(temporary, &path) {
            // Somebody else was faster with the same content.
            Err(_) if path.is_dir() => {
                fs::remove_dir_all(temporary).during("remove", temporary)?;
                Ok(tree)
            }
            renamed => Ok(renamed.during("rename to", &path).map(|()| tree)?),
        }
    }
}

fn plan(files: &[MountFile]) -> Result<Plan<'_>, PathError> {
    if files.len() > TREE_FILES_MAX {
        return Err(PathError::TooMany(files.len(), TREE_FILES_MAX));
    }
    let mut by_path = BTreeMap::new();
    for file in files {
        let entry = (file.sha256, wanted_mode(file.mode));
        let before = by_path.insert(inside(&file.path)?, entry);
        if before.is_some_and(|before| before != entry) {
            return Err(PathError::Twice(file.path.clone()));
        }
    }
    let names: BTreeSet<&str> = by_path.keys().copied().collect();
    let folders = folders_of(&names)?;
    let mut hasher = Sha256::new();
    for (path, (hash, mode)) in &by_path {
        // No path holds a NUL, so the encoding is unambiguous.
        hasher.update(path.as_bytes());
        hasher.update([0]);
        hasher.update(hash.0);
        hasher.update(mode.to_le_bytes());
    }
    Ok(Plan { files: by_path, folders, digest: ContentHash(hasher.finalize().into()) })
}

/// The bits a file gets: never set-id ones, always readable for its owner, who is the server.
fn wanted_mode(mode: u32) -> u32 {
    if mode & 0o7777 == 0 { PLAIN_MODE } else { (mode & 0o777) | 0o400 }
}

fn make_folder(path: &Path, inside: &str) -> Result<(), IoFailure> {
    let mode = match inside {
        "tmp" | "var/tmp" => 0o1777,
        "root" => 0o700,
        _ => 0o755,
    };
    fs::DirBuilder::new().mode(0o700).create(path).during("create", path)?;
    if mode != 0o700 {
        fs::set_permissions(path, Permissions::from_mode(mode)).during("set the mode of", path)?;
    }
    Ok(())
}

/// A copy that shares blocks where the file system can; not synced.
pub(crate) fn copy_file(source: &Path, target: &Path, mode: u32) -> Result<(), IoFailure> {
    let from = File::open(source).during("open", source)?;
    let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target);
    let to = to.during("create", target)?;
    copy_content(&from, &to).during("copy to", target)?;
    to.set_permissions(Permissions::from_mode(mode)).during("set the mode of", target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use evoke_core::SystemClock;
    use std::os::unix::fs::MetadataExt;

    struct Fixture {
        _folder: tempfile::TempDir,
        objects: ObjectStore,
        trees: Trees,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let objects = ObjectStore::open(&folder.path().join("objects"), Arc::new(SystemClock)).unwrap();
        let trees = Trees::open(&folder.path().join("mounts"), objects.clone()).unwrap();
        Fixture { _folder: folder, objects, trees }
    }

    impl Fixture {
        fn file(&self, path: &str, text: &str, mode: u32) -> MountFile {
            let sha256 = ContentHash::of(text.as_bytes());
            self.objects.put(sha256, text.as_bytes()).unwrap();
            MountFile { path: path.into(), sha256, mode }
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_set_becomes_a_tree_once() {
        let f = fixture();
        let mut files = vec![
            f.file("/root/app.py", "print()", 0o664),
            f.file("/root/run.sh", "echo", 0o4755),
            f.file("/root/pkg/__init__.py", "", 0),
            f.file("/tmp/data", "x", 0o644),
            f.file("/var/tmp/y", "", 0o600),
        ];
        let tree = f.trees.materialise(&files).unwrap();
        assert_eq!(fs::read_to_string(tree.path.join("root/app.py")).unwrap(), "print()");
        let modes = ["root/app.py", "root/run.sh", "root/pkg", "root", "tmp", "var", "var/tmp", "var/tmp/y"];
        let got = modes.map(|p| mode(&tree.path.join(p)));
        assert_eq!(got, [0o664, 0o755, 0o755, 0o700, 0o1777, 0o755, 0o1777, 0o600]);
        assert_eq!(mode(&tree.path), 0o755);
        let plain = fs::metadata(f.objects.path_of(files[3].sha256)).unwrap();
        assert_eq!(fs::metadata(tree.path.join("tmp/data")).unwrap().ino(), plain.ino());
        files.reverse();
        files.push(files[0].clone());
        assert_eq!(f.trees.materialise(&files).unwrap(), tree);
        assert_eq!(Trees::digest(&files).unwrap(), tree.digest);
        files.push(f.file("/root/more", "", 0));
        assert_ne!(f.trees.materialise(&files).unwrap().digest, tree.digest);
        assert_eq!(fs::read_dir(f.trees.root.join("tmp")).unwrap().count(), 0);
        let collect = |dry_run| f.trees.collect(&|digest| *digest == tree.digest, dry_run).unwrap();
        assert_eq!(collect(false), 0, "both were asked for");
        f.trees.begin_collection();
        assert_eq!((collect(true), collect(false), collect(false)), (1, 1, 0));
        assert_eq!(f.trees.find(tree.digest), Some(tree));
    }

    #[test]
    fn bad_sets_are_named_and_leave_nothing() {
        let f = fixture();
        let good = f.file("/a/b", "1", 0o644);
        let with = |path: &str, mode| MountFile { path: path.into(), mode, ..good.clone() };
        for (bad, wanted) in [
            (with("/a/../../etc/passwd", 0o644), "not a file name"),
            (with("a", 0o644), "not absolute"),
            (with("/a/b/c", 0o644), "a file, and other paths"),
            (with("/a/b", 0o755), "twice"),
            (MountFile { sha256: ContentHash::of(b"?"), path: "/c".into(), mode: 0 }, "/c: content"),
            (MountFile { sha256: ContentHash::of(b"?"), path: "/c".into(), mode: 0o755 }, "/c: content"),
        ] {
            let error = f.trees.materialise(&[good.clone(), bad]).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        assert_eq!(fs::read_dir(&f.trees.root).unwrap().count(), 1);
        assert_eq!(fs::read_dir(f.trees.root.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn an_empty_set_is_an_empty_tree() {
        let f = fixture();
        let tree = f.trees.materialise(&[]).unwrap();
        assert_eq!(fs::read_dir(tree.path).unwrap().count(), 0);
    }

    #[test]
    fn the_same_set_at_once_from_many_threads() {
        let f = fixture();
        let files: Vec<_> = (0..200).map(|n| f.file(&format!("/p/{n}/f"), &n.to_string(), 0)).collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| f.trees.materialise(&files).unwrap())).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap().digest, Trees::digest(&files).unwrap());
            }
        });
        assert_eq!(fs::read_dir(f.trees.root.join("tmp")).unwrap().count(), 0);
    }

    /// 70,000 uses of one content exceed the links that ext4 allows to an inode; it also shows the time
    /// that a large set takes.
    #[test]
    #[ignore = "takes seconds"]
    fn a_very_large_set() {
        let f = fixture();
        let empty = f.file("/x", "", 0);
        let files: Vec<_> = (0..70_000)
            .map(|n| MountFile { path: format!("/p/{}/{n}.py", n / 100), ..empty.clone() })
            .collect();
        let start = std::time::Instant::now();
        let tree = f.trees.materialise(&files).unwrap();
        let built = start.elapsed();
        let again = f.trees.materialise(&files).unwrap();
        eprintln!("70,000 files: built in {built:?}, found again in {:?}", start.elapsed() - built);
        assert_eq!(tree, again);
    }
}
