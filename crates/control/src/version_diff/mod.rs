//! `evoke diff`: what two versions of an app differ in. Collects what is kept of each version; what they differ in is
//! decided in `compare`, and how a definition reads in `settings`.

mod compare;
mod settings;

pub use compare::{FileChange, FunctionChange, ImageChange, PackageChange, SettingChange, VersionDiff};

use crate::deployments::published;
use crate::images::parse_request;
use crate::publish::Release;
use crate::registry::{App, read_layout};
use crate::{Control, blocking, stored};
use compare::{Files, ImageFacts, Packages, Snapshot, compare, unified};
use evoke_core::{Error, ErrorCode, ImageId, MountId, UnixMs};
use evoke_files::{ContentHash, ObjectStore};
use evoke_proto::{Status, api};
use evoke_store::DeploymentRow;
use prost::Message;
use settings::{Names, settings_of};
use std::io::Read;

/// Bytes of one file of which lines are compared.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of all files of which lines are compared.
const ALL_BYTES_MAX: u64 = 16 << 20;
/// Images that may stand on each other: as many as an image may have layers.
const BASES_MAX: usize = 176;

/// A version of an app, as people tell it from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionFacts {
    /// Its number.
    pub version: u32,
    /// When it was deployed.
    pub deployed: UnixMs,
    /// Who deployed it.
    pub deployed_by: String,
    /// The tag that it was given; empty for none.
    pub tag: String,
    /// The commit that it was deployed from; empty where that is not known.
    pub commit: String,
    /// The branch.
    pub branch: String,
    /// Whether files differed from the commit.
    pub dirty: bool,
}

impl Control {
    /// What version `from` of an app differs in from version `to`. Without `to` it is the one that is live, without
    /// `from` the one that was live before it.
    pub async fn version_diff(
        &self,
        environment: &str,
        app: &str,
        from: Option<u32>,
        to: Option<u32>,
    ) -> Result<(VersionFacts, VersionFacts, VersionDiff), Status> {
        let app = self.named_app(environment, app)?;
        let to = match to {
            Some(version) => self.version(&app, version as i32).await?,
            None => self.present_version(&app).await?,
        };
        let from = match from {
            Some(version) => self.version(&app, version as i32).await?,
            None => {
                let before = self.store.apps().deployment_before(app.row.id, to.version).await;
                before.map_err(stored)?.ok_or_else(|| {
                    Status::not_found(format!(
                        "There is no version before v{} to compare it with",
                        to.version
                    ))
                })?
            }
        };
        let (before, after) = (self.snapshot(&from).await?, self.snapshot(&to).await?);
        let mut diff = compare(&before, &after);
        let names = (format!("v{}", from.version), format!("v{}", to.version));
        let objects = self.objects.clone();
        let diff = blocking(move || {
            let mut room = ALL_BYTES_MAX;
            for file in diff.files_mut() {
                fill_in(&objects, file, (&names.0, &names.1), &mut room)?;
            }
            Ok::<_, Error>(diff)
        })
        .await?;
        Ok((facts(&from), facts(&to), diff))
    }

    /// The deployed app of this name, or the one with this id.
    pub(crate) fn named_app(&self, environment: &str, app: &str) -> Result<App, Status> {
        if app.starts_with("ap-") {
            return self.app(app);
        }
        let environment = self.environment(environment)?;
        let found = self.registry.lock().deployed(environment.id, app).cloned();
        found.ok_or_else(|| {
            Status::not_found(format!(
                "App '{app}' is not deployed in environment '{}'. List what is: evoke app list",
                environment.name
            ))
        })
    }

    async fn snapshot(&self, version: &DeploymentRow) -> Result<Snapshot, Status> {
        let request = published(version);
        let (functions, _) = read_layout(&version.layout);
        let mut snapshot = Snapshot::default();
        for (name, value) in &request.tags {
            snapshot.app.insert(format!("tag {name}"), value.clone());
        }
        snapshot.app.insert("client".into(), request.client_version.clone());
        let release = Release::of(request)?;
        for (tag, id) in functions {
            let Some(definition) = release.definition(id) else { continue };
            let definition = self.kept_definition(&tag, id, definition).await?;
            let function = &definition.function;
            let names = self.names_of(function).await?;
            snapshot.functions.insert(tag.clone(), settings_of(&definition, &names));
            for mount in &function.mount_ids {
                self.add_files(mount, &mut snapshot.files).await?;
            }
            let image = function.image_id.clone();
            if !image.is_empty() && !snapshot.images.contains_key(&image) {
                let facts = self.image_facts(&image).await?;
                snapshot.images.insert(image.clone(), facts);
            }
            snapshot.image_of.insert(tag, image);
        }
        Ok(snapshot)
    }

    /// The files of a mount. The client's own packages are no part of an app's code.
    async fn add_files(&self, mount: &str, files: &mut Files) -> Result<(), Status> {
        let Ok(id) = mount.parse::<MountId>() else { return Ok(()) };
        let Some(row) = self.store.mounts().by_id(id).await.map_err(stored)? else { return Ok(()) };
        if row.name.is_some() {
            return Ok(());
        }
        let listed = api::MountGetOrCreateRequest::decode(row.files.as_slice())
            .map_err(|error| Status::internal(format!("stored mount {id}: {error}")))?;
        for file in listed.files {
            files.entry(file.filename).or_default().insert(file.sha256_hex);
        }
        Ok(())
    }

    /// The names of what a function uses, by id.
    async fn names_of(&self, function: &api::Function) -> Result<Names, Status> {
        let mut names = Names::new();
        for text in &function.secret_ids {
            let Ok(id) = text.parse() else { continue };
            let row = self.store.secrets().by_id(id).await.map_err(stored)?;
            if let Some(row) = row {
                let unnamed = || format!("{text} in code ({})", row.keys.join(", "));
                names.insert(text.clone(), row.name.clone().unwrap_or_else(unnamed));
            }
        }
        for text in function.volume_mounts.iter().map(|mount| &mount.volume_id) {
            let Ok(id) = text.parse() else { continue };
            let row = self.store.volumes().by_id(id).await.map_err(stored)?;
            names.extend(row.and_then(|row| row.name).map(|name| (text.clone(), name)));
        }
        for text in function.shared_volume_mounts.iter().map(|mount| &mount.shared_volume_id) {
            let Ok(id) = text.parse() else { continue };
            let row = self.store.shared_volumes().by_id(id).await.map_err(stored)?;
            names.extend(row.and_then(|row| row.name).map(|name| (text.clone(), name)));
        }
        Ok(names)
    }

    /// What makes an image, what is in it and what was copied into it. What is not kept any more is not told.
    async fn image_facts(&self, id: &str) -> Result<ImageFacts, Status> {
        let mut facts = ImageFacts::default();
        let Ok(id) = id.parse::<ImageId>() else { return Ok(facts) };
        self.add_steps(id, &mut facts, 0).await?;
        if let Ok(built) = self.built_image(id).await {
            facts.packages = packages_of(&self.builder.layers(&built).await?);
        }
        Ok(facts)
    }

    /// The steps of an image: its bases' own stand where it names them.
    async fn add_steps(&self, id: ImageId, facts: &mut ImageFacts, depth: usize) -> Result<(), Status> {
        let row = self.store.images().by_id(id).await.map_err(stored)?;
        let Some(row) = row.filter(|_| depth < BASES_MAX) else { return Ok(()) };
        let image = parse_request(&row)?.image.unwrap_or_default();
        let mut bases = image.base_images.iter();
        if image.dockerfile_commands.is_empty()
            && let Some(base) = bases.clone().next().and_then(|base| base.image_id.parse().ok())
        {
            Box::pin(self.add_steps(base, facts, depth + 1)).await?;
        }
        for line in image.dockerfile_commands.iter().flat_map(|command| command.lines()) {
            let named = line.strip_prefix("FROM ").map(str::trim);
            let base = bases.find(|base| Some(base.docker_tag.as_str()) == named);
            match base.and_then(|base| base.image_id.parse().ok()) {
                Some(base) => Box::pin(self.add_steps(base, facts, depth + 1)).await?,
                None => facts.steps.push(line.to_owned()),
            }
        }
        if let Some(function) = &image.build_function {
            facts.steps.push("run_function".to_owned());
            facts.steps.extend(function.definition.lines().map(|line| format!("  {line}")));
        }
        if !image.context_mount_id.is_empty() {
            self.add_files(&image.context_mount_id, &mut facts.files).await?;
        }
        Ok(())
    }
}

fn packages_of(layers: &[crate::ports::LayerOverview]) -> Packages {
    let mut packages = Packages::new();
    for layer in layers {
        for (kind, list) in [("python", &layer.python), ("debian", &layer.debian)] {
            for package in list {
                match &package.after {
                    Some(version) => packages.insert((kind, package.name.clone()), version.clone()),
                    None => packages.remove(&(kind, package.name.clone())),
                };
            }
        }
    }
    packages
}

pub(crate) fn facts(version: &DeploymentRow) -> VersionFacts {
    let request = published(version);
    let commit = request.commit_info.unwrap_or_default();
    VersionFacts {
        version: version.version,
        deployed: version.deployed_at,
        deployed_by: version.deployed_by.clone(),
        tag: request.deployment_tag,
        commit: commit.commit_hash,
        branch: commit.branch,
        dirty: commit.dirty,
    }
}

/// Compares the contents of a file that changed, as far as there is room for that.
fn fill_in(
    objects: &ObjectStore,
    file: &mut FileChange,
    versions: (&str, &str),
    room: &mut u64,
) -> Result<(), Error> {
    let mut contents = [None, None];
    for (content, digest) in contents.iter_mut().zip([&file.before, &file.after]) {
        let Some(digest) = digest else { continue };
        match content_of(objects, digest, FILE_BYTES_MAX.min(*room))? {
            Content::Bytes(bytes) => {
                *room -= bytes.len() as u64;
                *content = Some(bytes);
            }
            Content::TooLarge => file.note = Some("too large to be shown"),
            Content::Gone => file.note = Some("its content is not kept any more"),
        }
    }
    if file.note.is_some() {
        return Ok(());
    }
    let [before, after] = &contents;
    file.text = unified(&file.path, versions, before.as_deref(), after.as_deref());
    if file.text.is_none() {
        file.note = Some("not text");
    }
    Ok(())
}

enum Content {
    Bytes(Vec<u8>),
    TooLarge,
    Gone,
}

fn content_of(objects: &ObjectStore, digest: &str, bytes_max: u64) -> Result<Content, Error> {
    let hash: ContentHash =
        digest.parse().map_err(|error| Error::new(ErrorCode::DataLoss, format!("{digest}: {error}")))?;
    if !objects.contains(hash) {
        return Ok(Content::Gone);
    }
    let failed = |error: std::io::Error| Error::internal(format!("reading {digest}: {error}"));
    let file = objects.open_content(hash).map_err(Error::from)?;
    if file.metadata().map_err(failed)?.len() > bytes_max {
        return Ok(Content::TooLarge);
    }
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Content::Bytes(bytes))
}
