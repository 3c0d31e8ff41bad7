//! What `RUN --mount=` shows a command: brought together before it runs, taken apart after it.

use super::{BuildRequest, Inner, stage};
use crate::collect::PASSING;
use crate::digest::Hasher;
use crate::error::{ImageError, Result};
use crate::log::{LogSink, NoLog, say};
use crate::plan::{BindOrigin, MountPlan, RunPlan, Sharing, StagedFile, Step};
use crate::steps::{Copy, CopyFrom, Mount, MountOwner, Root};
use evoke_core::{Entropy as _, SystemEntropy};
use evoke_runtime::{MemoryFolder, SuppliedFile};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Where the copy of another image's files lies in the layer that is made for it.
const COPIED: &str = "v";

/// The mounts of one command, with what must live as long as it runs.
#[derive(Default)]
pub(super) struct Mounts {
    /// For the command.
    pub mounts: Vec<Mount>,
    /// Variables that hold secrets.
    pub env: Vec<(String, String)>,
    folders: Vec<tempfile::TempDir>,
    locks: Vec<tokio::sync::OwnedMutexGuard<()>>,
    /// Layers that were made for it.
    copies: Vec<PathBuf>,
}

impl Inner {
    /// Brings together what the mounts of `run` show.
    pub(super) async fn mount(
        &self,
        step: &Step,
        run: &RunPlan,
        request: &BuildRequest,
        log: &dyn LogSink,
    ) -> Result<Mounts> {
        let mut mounts = Mounts::default();
        for plan in &run.mounts {
            if let Err(error) = self.mount_one(step, plan, request, log, &mut mounts).await {
                self.unmount(mounts).await?;
                return Err(error);
            }
        }
        Ok(mounts)
    }

    /// Gives back what the command does not need any more. Whatever a dropped build leaves here goes with the next
    /// start.
    pub(super) async fn unmount(&self, mounts: Mounts) -> Result<()> {
        for copy in &mounts.copies {
            self.tools.base.builder.remove(copy).await?;
        }
        Ok(())
    }

    async fn mount_one(
        &self,
        step: &Step,
        plan: &MountPlan,
        request: &BuildRequest,
        log: &dyn LogSink,
        mounts: &mut Mounts,
    ) -> Result<()> {
        match plan {
            MountPlan::Tmpfs { target, bytes_max } => {
                let folder = MemoryFolder { target: target.clone(), bytes_max: *bytes_max };
                mounts.mounts.push(Mount::Memory(folder));
            }
            MountPlan::Secret { id, target, env, required, mode, owner } => {
                let Some(value) = secret(request, id) else {
                    if *required {
                        let message = format!(
                            "the build has no secret {id}: give it with \
                             secrets=[modal.Secret.from_dict({{\"{id}\": ...}})]"
                        );
                        let text = step.text.clone();
                        return Err(ImageError::Instruction { line: step.line, text, message });
                    }
                    say(log, format!("note: the build has no secret {id}"));
                    return Ok(());
                };
                mounts.env.extend(env.iter().map(|name| (name.clone(), value.to_owned())));
                mounts.mounts.extend(target.iter().map(|path| {
                    let (path, content) = (path.clone(), value.to_owned());
                    Mount::File(SuppliedFile { path, content, mode: *mode, owner: *owner })
                }));
            }
            MountPlan::Cache { target, id, sharing, read_only, mode } => {
                let source = self.cache(id, *sharing, *mode, mounts).await?;
                let (target, writable) = (target.clone(), !read_only);
                mounts.mounts.push(Mount::Bind { source, owner: MountOwner::Server, target, writable });
            }
            MountPlan::Bind { target, from, writable } => {
                let (source, owner) = match from {
                    BindOrigin::Context { source, files } => (
                        self.of_context(request, source, files, *writable, mounts).await?,
                        MountOwner::Server,
                    ),
                    BindOrigin::Image { root, source } => {
                        (self.of_image(root, source, mounts).await?, MountOwner::Layer)
                    }
                };
                if *writable && owner == MountOwner::Layer {
                    say(log, format!("note: {target} is from another image and cannot be written"));
                }
                let writable = *writable && owner == MountOwner::Server;
                mounts.mounts.push(Mount::Bind { source, owner, target: target.clone(), writable });
            }
        }
        Ok(())
    }

    /// The files of the context that lie below `source`, or the one that is it.
    async fn of_context(
        &self,
        request: &BuildRequest,
        source: &str,
        files: &[String],
        writable: bool,
        mounts: &mut Mounts,
    ) -> Result<PathBuf> {
        let relative = |path: &String| {
            let inside = path[source.len()..].trim_start_matches('/');
            // A file that is the source itself keeps its name.
            let name = if inside.is_empty() { path.rsplit('/').next().unwrap_or(path) } else { inside };
            format!("{COPIED}/{name}")
        };
        let staged: Vec<_> =
            files.iter().map(|path| (relative(path), StagedFile::Context(path.clone()))).collect();
        let folder = stage::make(&self.tools, &request.recipe, &staged, writable).await?;
        // Also where nothing lies in it.
        let all = folder.path().join(COPIED);
        std::fs::create_dir_all(&all).map_err(|e| ImageError::io("make", &all, &e))?;
        let path = match files {
            [only] if only == source => folder.path().join(relative(only)),
            _ => all,
        };
        mounts.folders.push(folder);
        Ok(path)
    }

    /// What is at `source` of an image.
    async fn of_image(&self, root: &Root, source: &str, mounts: &mut Mounts) -> Result<PathBuf> {
        match root.layers.as_slice() {
            // One layer is what the image looks like.
            [only] if source.is_empty() && root.host_binds.is_empty() => Ok(only.path.clone()),
            _ => Ok(self.copy_of(root, source, mounts).await?.join(COPIED)),
        }
    }

    /// The folder of a cache, for as long as `mounts` lives.
    async fn cache(&self, id: &str, sharing: Sharing, mode: u32, mounts: &mut Mounts) -> Result<PathBuf> {
        let mut hasher = Hasher::new("evoke-cache-1");
        hasher.text(id);
        let name = hasher.finish();
        let lock = self.caches.of(&name);
        let guard = match sharing {
            Sharing::Shared => None,
            Sharing::Locked => Some(lock.lock_owned().await),
            Sharing::Private => match lock.try_lock_owned() {
                Ok(guard) => Some(guard),
                Err(_) => {
                    let folder =
                        stage::make(&self.tools, &crate::recipe::Recipe::default(), &[], false).await?;
                    let path = folder.path().to_owned();
                    mounts.folders.push(folder);
                    set_mode(&path, mode)?;
                    return Ok(path);
                }
            },
        };
        mounts.locks.extend(guard);
        let path = self.tools.caches.join(name);
        std::fs::create_dir_all(&path).map_err(|e| ImageError::io("make", &path, &e))?;
        set_mode(&path, mode)?;
        crate::kept::touch(&path)?;
        Ok(path)
    }

    /// A layer that holds what is at `source` of an image, at [`COPIED`].
    async fn copy_of(&self, root: &Root, source: &str, mounts: &mut Mounts) -> Result<PathBuf> {
        let commit =
            self.tools.base.layers.join(format!("{PASSING}{:016x}", SystemEntropy::default().next_u64()));
        let copy = Copy {
            onto: Root::default(),
            from: CopyFrom::Image(root.clone()),
            sources: vec![source.to_owned()],
            destination: format!("/{COPIED}"),
            chown: None,
            chmod: None,
            commit: commit.clone(),
        };
        self.tools.base.builder.copy(copy, &NoLog).await?;
        mounts.copies.push(commit.clone());
        Ok(commit)
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| ImageError::io("set the mode of", path, &e))
}

/// The value of a secret: secrets are variables here, whose names are mostly in capitals.
fn secret<'a>(request: &'a BuildRequest, id: &str) -> Option<&'a str> {
    let plain = |name: &str| name.to_ascii_uppercase().replace(['-', '.'], "_");
    let named = |wanted: &dyn Fn(&str) -> bool| request.secret_env.iter().find(|(name, _)| wanted(name));
    let found = named(&|name| name == id).or_else(|| named(&|name| plain(name) == plain(id)));
    found.map(|(_, value)| value.as_str())
}
