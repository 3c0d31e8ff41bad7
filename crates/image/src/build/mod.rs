//! Builds images: plans a recipe, makes the layers that are not there yet, looks at the result. The same
//! build asked for twice at once runs once.

mod function;
mod layers;
mod mounts;
mod probe;
mod side_by_side;
mod stage;

pub use function::FunctionLayer;

use crate::base::{BaseConfig, BaseTools, Bases, Login, Reference};
use crate::context::Context;
use crate::digest::Hasher;
use crate::dockerfile::{self, Dockerfile};
use crate::error::{ImageError, Result};
use crate::log::{LogFan, LogSink, say};
use crate::plan::{PlanInput, external_images, plan};
use crate::recipe::Recipe;
use crate::spec::ImageSpec;
use crate::steps::Volumes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use layers::Locks;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Builds that are remembered as running at most before those that ended are swept out.
const RUNNING_SWEEP: usize = 64;

/// What a builder needs besides what bases need.
#[derive(Clone)]
pub struct BuildTools {
    /// What bases need.
    pub base: BaseTools,
    /// Files of context mounts.
    pub context: Arc<dyn Context>,
    /// Where copies are put together.
    pub staging: PathBuf,
    /// Folders of `RUN --mount=type=cache`, which are kept.
    pub caches: PathBuf,
    /// Where standalone Pythons are kept.
    pub pythons: PathBuf,
    /// Steps of all builds that run at the same time, at most.
    pub steps_at_once: usize,
}

/// One request for an image.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// What to build.
    pub recipe: Recipe,
    /// Values of the recipe's secrets, as environment of its RUNs.
    pub secret_env: Vec<(String, String)>,
    /// The recipe's volumes, as its RUNs see them.
    pub volumes: Option<Arc<dyn Volumes>>,
    /// For the registry of its base, and no other.
    pub login: Option<Login>,
    /// Build anew and replace what is cached.
    pub force_build: bool,
    /// Build anew and leave what is cached alone.
    pub ignore_cache: bool,
}

/// Builds images. Cheap to clone.
#[derive(Clone)]
pub struct ImageBuilder {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    bases: Bases,
    pub(crate) tools: BuildTools,
    locks: Locks,
    /// Those of caches.
    caches: Locks,
    running: Mutex<HashMap<String, Running>>,
    /// Tells forced builds apart.
    forced: AtomicU64,
    /// Bases are brought one at a time: two that share layers would fetch them twice.
    bringing: tokio::sync::Mutex<()>,
    /// One permit for each step that may run.
    turns: tokio::sync::Semaphore,
}

type SharedBuild = Shared<BoxFuture<'static, Result<ImageSpec>>>;

struct Running {
    build: WeakShared<BoxFuture<'static, Result<ImageSpec>>>,
    fan: Arc<LogFan>,
}

impl ImageBuilder {
    /// A builder. Removes what builds of an earlier life left in the staging folder.
    pub fn new(bases: BaseConfig, tools: BuildTools) -> Result<Self> {
        stage::clear(&tools.staging)?;
        for folder in [&tools.base.layers, &tools.base.downloads] {
            std::fs::create_dir_all(folder).map_err(|e| ImageError::io("make", folder, &e))?;
        }
        let inner = Inner {
            bases: Bases::new(bases, tools.base.clone()),
            turns: tokio::sync::Semaphore::new(tools.steps_at_once.max(1)),
            tools,
            locks: Locks::default(),
            caches: Locks::default(),
            running: Mutex::default(),
            forced: AtomicU64::new(0),
            bringing: tokio::sync::Mutex::new(()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The finished image of a recipe, if it was built before and is still there.
    pub async fn cached(&self, recipe: &Recipe) -> Result<Option<ImageSpec>> {
        self.inner.cached(&self.inner.key(recipe)).await
    }

    /// Builds an image, or finds it. Dropping the future of the only one who waits ends the build and leaves
    /// nothing behind but finished layers.
    pub async fn build(&self, request: BuildRequest, log: Arc<dyn LogSink>) -> Result<ImageSpec> {
        let mut hasher = Hasher::new("evoke-running-build-1");
        hasher.text(&self.inner.key(&request.recipe));
        hasher.number(u64::from(request.force_build)).number(u64::from(request.ignore_cache));
        let key = hasher.finish();
        let build = {
            let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
            let known = running.get(&key).and_then(|r| Some((r.build.upgrade()?, r.fan.clone())));
            match known.filter(|(build, _)| build.peek().is_none()) {
                Some((build, fan)) => {
                    fan.join(log);
                    build
                }
                None => self.start(&mut running, key, request, log),
            }
        };
        build.await
    }

    fn start(
        &self,
        running: &mut HashMap<String, Running>,
        key: String,
        request: BuildRequest,
        log: Arc<dyn LogSink>,
    ) -> SharedBuild {
        let fan = Arc::new(LogFan::default());
        fan.join(log);
        let (inner, sink) = (self.inner.clone(), fan.clone());
        let build: SharedBuild = async move { inner.build(request, &*sink).await }.boxed().shared();
        if running.len() >= RUNNING_SWEEP {
            running.retain(|_, r| r.build.upgrade().is_some_and(|b| b.peek().is_none()));
        }
        if let Some(weak) = build.downgrade() {
            running.insert(key, Running { build: weak, fan });
        }
        build
    }
}

impl Inner {
    /// The key of a recipe's image: what decides where bases come from is part of it.
    fn key(&self, recipe: &Recipe) -> String {
        let mut hasher = Hasher::new("evoke-image-1");
        hasher.text(&recipe.digest()).text(&self.bases.config_digest());
        hasher.finish()
    }

    async fn cached(&self, key: &str) -> Result<Option<ImageSpec>> {
        let image = self.tools.base.index.image(key).await?;
        let Some(image) = image else { return Ok(None) };
        Ok(self.tools.base.is_whole(&image).await.then_some(image))
    }

    async fn build(&self, request: BuildRequest, log: &dyn LogSink) -> Result<ImageSpec> {
        let _using = self.tools.base.uses.begin(self.tools.base.clock.now());
        let key = self.key(&request.recipe);
        let anew = request.force_build || request.ignore_cache;
        if !anew {
            if let Some(image) = self.cached(&key).await? {
                say(log, "=> The image is cached");
                return Ok(image);
            }
        }
        let recipe = &request.recipe;
        if recipe.run_function.is_some() {
            return Err(ImageError::Unsupported("a function makes this image: it is run by a worker".into()));
        }
        for note in self.tools.base.network.notes() {
            say(log, format!("note: {note}"));
        }
        let file = dockerfile::parse(&recipe.lines.join("\n"))?;
        let external = self.external(&file, &request, log).await?;
        let salt = anew.then(|| {
            let now = self.tools.base.clock.now().0;
            format!("{now}-{}", self.forced.fetch_add(1, Ordering::Relaxed))
        });
        let input = PlanInput {
            dockerfile: &file,
            recipe,
            external: &external,
            layers: &self.tools.base.layers,
            salt,
        };
        let plan = plan(&input)?;
        self.carry_out(&plan, &request, log).await?;
        let changed = plan.steps.iter().any(|step| step.layer.is_some());
        let mut image = plan.image;
        if changed || image.python.is_none() {
            probe::look(&*self.tools.base.builder, &mut image, log).await?;
        }
        if !request.ignore_cache || request.force_build {
            self.tools.base.index.put_image(&key, &image).await?;
        }
        Ok(image)
    }

    /// Brings the images that the file names from outside.
    async fn external(
        &self,
        file: &Dockerfile,
        request: &BuildRequest,
        log: &dyn LogSink,
    ) -> Result<BTreeMap<String, ImageSpec>> {
        let mut external = BTreeMap::new();
        let mut home = None;
        for reference in external_images(file, &request.recipe)? {
            let registry = Reference::parse(&reference).ok().map(|reference| reference.registry);
            let home = home.get_or_insert_with(|| registry.clone());
            // The password is for where the first image is; others that are copied from do not see it.
            let login = request.login.as_ref().filter(|_| *home == registry);
            let _turn = self.bringing.lock().await;
            let image = self.bases.resolve(&reference, login, request.force_build, log).await?;
            external.insert(reference, image);
        }
        Ok(external)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
