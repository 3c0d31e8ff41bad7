//! Stages: which are needed for the last one, in which order, and what each stands on.

use super::state::{State, builtin_args, fail};
use super::{Action, Plan, PlanInput, PlannedStage, Step};
use crate::dockerfile::{Dockerfile, Instruction, Stage, expand};
use crate::error::{ImageError, Result};
use crate::recipe::Recipe;
use crate::spec::ImageSpec;
use std::collections::BTreeMap;

/// What a FROM or a `--from` names.
enum Source {
    Scratch,
    Stage(usize),
    /// One of the recipe's own bases.
    Given(String),
    External(String),
}

/// References of all images that must be brought from outside, as written.
pub fn external_images(dockerfile: &Dockerfile, recipe: &Recipe) -> Result<Vec<String>> {
    let globals = globals(dockerfile, recipe)?;
    let mut references = Vec::new();
    let mut add = |source| match source {
        Source::External(reference) if !references.contains(&reference) => references.push(reference),
        _ => {}
    };
    for index in needed(dockerfile, recipe, &globals)? {
        let stage = &dockerfile.stages[index];
        add(base_of(dockerfile, recipe, &globals, index)?);
        for name in images_used(stage) {
            add(source_of(dockerfile, recipe, index, name));
        }
    }
    Ok(references)
}

/// Plans all stages that the last one needs.
pub(super) fn plan_all(input: &PlanInput<'_>) -> Result<Plan> {
    let globals = globals(input.dockerfile, input.recipe)?;
    let mut built: BTreeMap<usize, ImageSpec> = BTreeMap::new();
    let mut stages = Vec::new();
    let mut steps = Vec::new();
    let mut last = ImageSpec::default();
    for index in needed(input.dockerfile, input.recipe, &globals)? {
        let stage = &input.dockerfile.stages[index];
        let source = base_of(input.dockerfile, input.recipe, &globals, index)?;
        let start = find(input, &built, &source).map_err(|message| stage_error(stage, message))?;
        let (stage_steps, image) = plan_stage(input, &globals, &built, index, start)?;
        steps.extend(stage_steps.into_iter().map(|step| Step { stage: stages.len(), ..step }));
        let name = stage.name.clone().unwrap_or_else(|| format!("stage-{index}"));
        stages.push(PlannedStage { name, base: stage.base.clone() });
        last.clone_from(&image);
        built.insert(index, image);
    }
    last.builder_version.clone_from(&input.recipe.builder_version);
    if steps.iter().any(|step: &Step| step.layer.is_some()) {
        // What a base had no longer describes what stands on it.
        last.packages.clear();
    }
    Ok(Plan { stages, steps, image: last })
}

fn plan_stage(
    input: &PlanInput<'_>,
    globals: &BTreeMap<String, String>,
    built: &BTreeMap<usize, ImageSpec>,
    index: usize,
    start: ImageSpec,
) -> Result<(Vec<Step>, ImageSpec)> {
    let mut state = State::new(input, globals, start);
    state.args = BTreeMap::new();
    let mut steps = Vec::new();
    for at in &input.dockerfile.stages[index].instructions {
        let image = |name: &str| {
            let source = source_of(input.dockerfile, input.recipe, index, name);
            find(input, built, &source).map_err(|message| fail(at, message))
        };
        let step = match &at.instruction {
            Instruction::Run(run) => state.run(at, run, &image)?,
            Instruction::Copy(copy) => {
                let from = copy.from.as_deref().map(image).transpose()?;
                state.copy(at, copy, from.as_ref())?
            }
            _ => {
                state.configure(at)?;
                state.plain(at, Action::Config)
            }
        };
        steps.push(step);
    }
    Ok((steps, state.image))
}

fn find(
    input: &PlanInput<'_>,
    built: &BTreeMap<usize, ImageSpec>,
    source: &Source,
) -> std::result::Result<ImageSpec, String> {
    let found = match source {
        Source::Scratch => return Ok(ImageSpec::default()),
        Source::Stage(index) => built.get(index),
        Source::Given(name) => input.recipe.bases.get(name),
        Source::External(reference) => input.external.get(reference),
    };
    found.cloned().ok_or_else(|| "the image it stands on was not brought here".to_owned())
}

/// ARGs before the first FROM, with what the recipe gives for them.
fn globals(dockerfile: &Dockerfile, recipe: &Recipe) -> Result<BTreeMap<String, String>> {
    let mut values = builtin_args();
    for (name, default) in &dockerfile.global_args {
        let value = match (recipe.build_args.get(name), default) {
            (Some(value), _) => value.clone(),
            (None, Some(default)) => expand(default, dockerfile.escape, &|n| values.get(n).cloned())
                .map_err(|e| {
                    let text = format!("ARG {name}={default}");
                    ImageError::Instruction { line: 1, text, message: e.to_string() }
                })?,
            (None, None) => continue,
        };
        values.insert(name.clone(), value);
    }
    Ok(values)
}

/// The last stage and those it stands on or copies from, in the order of the file.
fn needed(
    dockerfile: &Dockerfile,
    recipe: &Recipe,
    globals: &BTreeMap<String, String>,
) -> Result<Vec<usize>> {
    let mut wanted = vec![false; dockerfile.stages.len()];
    // The parser gives at least one stage.
    let last = dockerfile.stages.len().saturating_sub(1);
    let mut open = vec![last];
    while let Some(index) = open.pop() {
        if std::mem::replace(&mut wanted[index], true) {
            continue;
        }
        if let Source::Stage(below) = base_of(dockerfile, recipe, globals, index)? {
            open.push(below);
        }
        for name in images_used(&dockerfile.stages[index]) {
            if let Source::Stage(other) = source_of(dockerfile, recipe, index, name) {
                open.push(other);
            }
        }
    }
    Ok((0..wanted.len()).filter(|i| wanted[*i]).collect())
}

/// The images that a stage copies or mounts something from, as written.
fn images_used(stage: &Stage) -> impl Iterator<Item = &str> {
    stage.instructions.iter().flat_map(|at| {
        let (copied, mounts) = match &at.instruction {
            Instruction::Copy(copy) => (copy.from.as_deref(), [].as_slice()),
            Instruction::Run(run) => (None, run.mounts.as_slice()),
            _ => (None, [].as_slice()),
        };
        let fields = mounts.iter().filter(|mount| mount.kind == "bind").flat_map(|mount| &mount.fields);
        copied.into_iter().chain(fields.filter(|(name, _)| name == "from").map(|(_, from)| from.as_str()))
    })
}

fn base_of(
    dockerfile: &Dockerfile,
    recipe: &Recipe,
    globals: &BTreeMap<String, String>,
    index: usize,
) -> Result<Source> {
    let stage = &dockerfile.stages[index];
    let expanded = expand(&stage.base, dockerfile.escape, &|name| globals.get(name).cloned())
        .map_err(|e| stage_error(stage, e.to_string()))?;
    if expanded.is_empty() {
        return Err(stage_error(
            stage,
            format!("{:?} is empty once its variables are filled in", stage.base),
        ));
    }
    if let Some(platform) = &stage.platform {
        let platform = expand(platform, dockerfile.escape, &|name| globals.get(name).cloned())
            .map_err(|e| stage_error(stage, e.to_string()))?;
        let here = format!("linux/{}", crate::base::architecture());
        if !platform.is_empty() && !platform.starts_with(&here) {
            return Err(stage_error(stage, format!("this machine runs {here}, not {platform}")));
        }
    }
    Ok(source_of(dockerfile, recipe, index, &expanded))
}

/// What a name means in the stage `index`: an earlier stage, a base of the recipe, or an image.
fn source_of(dockerfile: &Dockerfile, recipe: &Recipe, index: usize, name: &str) -> Source {
    let lower = name.to_ascii_lowercase();
    let named = dockerfile.stages[..index].iter().rposition(|s| s.name.as_deref() == Some(lower.as_str()));
    if let Some(stage) = named {
        return Source::Stage(stage);
    }
    if let Some(stage) = name.parse::<usize>().ok().filter(|n| *n < index) {
        return Source::Stage(stage);
    }
    if recipe.bases.contains_key(name) {
        return Source::Given(name.to_owned());
    }
    if name == "scratch" {
        return Source::Scratch;
    }
    Source::External(name.to_owned())
}

fn stage_error(stage: &Stage, message: String) -> ImageError {
    ImageError::Instruction { line: stage.line, text: format!("FROM {}", stage.base), message }
}
