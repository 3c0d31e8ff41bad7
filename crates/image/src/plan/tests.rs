//! Table tests of planning: configuration, sharing of layers, stages.

use super::*;
use crate::context::ContextEntry;
use crate::dockerfile::parse;
use crate::recipe::{ContextMount, SecretRef};
use crate::spec::{LayerOwner, LayerRef};

fn base() -> ImageSpec {
    let layer = LayerRef { digest: "b0".into(), path: "/layers/b0".into(), owner: LayerOwner::Canonical };
    ImageSpec { layers: vec![layer], cmd: vec!["python3".into()], ..ImageSpec::default() }
}

fn recipe(text: &str) -> Recipe {
    Recipe {
        lines: vec![text.to_owned()],
        bases: [("base".to_owned(), base())].into(),
        context_mount: Some(ContextMount {
            id: "mo-1".into(),
            entries: ["a.txt", "d/b.txt"]
                .map(|p| ContextEntry { path: p.into(), sha256: format!("h-{p}"), mode: Some(0o644) })
                .to_vec(),
        }),
        ..Recipe::default()
    }
}

fn plan_of(recipe: &Recipe) -> Result<Plan> {
    let dockerfile = parse(&recipe.lines.join("\n"))?;
    let external = external_images(&dockerfile, recipe)?.into_iter().map(|r| (r, base())).collect();
    let input = PlanInput {
        dockerfile: &dockerfile,
        recipe,
        external: &external,
        layers: Path::new("/layers"),
        salt: None,
    };
    plan(&input)
}

fn image(text: &str) -> ImageSpec {
    plan_of(&recipe(text)).unwrap().image
}

fn message(text: &str) -> String {
    plan_of(&recipe(text)).unwrap_err().to_string()
}

#[test]
fn configures() {
    let image = image(
        "FROM base\nENV A=1 B=$A\nENV C=${A}x PATH=/x:$PATH\nARG V=2\nENV D=$V\nWORKDIR /w\nWORKDIR sub/\nUSER me\nSHELL [\"/bin/bash\", \"-ec\"]\nENTRYPOINT [\"e\"]\nCMD run it",
    );
    assert_eq!(image.env("A"), Some("1"));
    assert_eq!(image.env("B"), Some(""));
    assert_eq!(image.env("C"), Some("1x"));
    assert_eq!(image.env("D"), Some("2"));
    assert_eq!(image.env("PATH"), Some(format!("/x:{}", crate::spec::PATH_DEFAULT).as_str()));
    assert_eq!((image.workdir.as_str(), image.user.as_str()), ("/w/sub", "me"));
    assert_eq!(image.cmd, ["/bin/bash", "-ec", "run it"]);
    assert_eq!(image.entrypoint, ["e"]);
    assert_eq!(image.layers.len(), 1);
    assert!(self::image("FROM base\nENTRYPOINT e").cmd.is_empty());
    assert_eq!(self::image("FROM base").cmd, ["python3"]);
}

#[test]
fn arguments_reach_commands_but_not_the_image() {
    let mut recipe = recipe("ARG G=g\nFROM base\nARG V=1\nARG G\nARG NONE\nRUN echo $V");
    recipe.build_args.insert("V".into(), "given".into());
    let plan = plan_of(&recipe).unwrap();
    let Action::Run(run) = &plan.steps[3].action else { panic!("{:?}", plan.steps) };
    assert!(run.env.contains(&("V".into(), "given".into())) && run.env.contains(&("G".into(), "g".into())));
    assert_eq!(run.argv, ["/bin/sh", "-c", "echo $V"]);
    assert_eq!(plan.image.env("V"), None);
}

#[test]
fn same_step_on_same_parent_is_one_layer() {
    let one = image("FROM base\nRUN a\nRUN b");
    assert_eq!(one.layers, image("FROM base\nRUN a\nCMD x\nLABEL a=b\nRUN b").layers);
    assert_eq!(one.layers[..2], image("FROM base\nRUN a\nRUN c").layers[..2]);
    let differing = ["RUN b\nRUN a", "ENV X=1\nRUN a", "WORKDIR /w\nRUN a", "USER x\nRUN a", "RUN [\"a\"]"];
    for text in differing {
        assert_ne!(one.layers[1], image(&format!("FROM base\n{text}")).layers[1], "{text}");
    }
    let mut secret = recipe("FROM base\nRUN a");
    secret.secrets.push(SecretRef { id: "st-1".into(), version: 1 });
    assert_ne!(one.layers[1], plan_of(&secret).unwrap().image.layers[1]);
}

#[test]
fn copies_follow_their_files() {
    let of = |recipe: &Recipe| plan_of(recipe).unwrap().image.layers[1].digest.clone();
    let first = recipe("FROM base\nCOPY d /x/");
    let mut other = first.clone();
    other.context_mount.as_mut().unwrap().entries[0].sha256 = "changed".into();
    assert_eq!(of(&first), of(&other));
    other.context_mount.as_mut().unwrap().entries[1].sha256 = "changed".into();
    assert_ne!(of(&first), of(&other));
    assert_ne!(of(&first), of(&recipe("FROM base\nCOPY --chown=1 d /x/")));
    assert_ne!(of(&first), of(&recipe("FROM base\nCOPY --chmod=700 d /x/")));
    assert_ne!(of(&first), of(&recipe("FROM base\nCOPY d /y/")));
}

#[test]
fn chooses_where_copies_come_from() {
    let origin = |recipe: &Recipe| match &plan_of(recipe).unwrap().steps.last().unwrap().action {
        Action::Copy(copy) => copy.from.clone(),
        other => panic!("{other:?}"),
    };
    assert!(
        matches!(origin(&recipe("FROM base\nCOPY . /")), CopyOrigin::Mount { sources } if sources == [""])
    );
    let mut inline = recipe("FROM base\nCOPY /.requirements.txt /.requirements.txt");
    inline.context_files.insert("/.requirements.txt".into(), b"numpy".to_vec());
    assert!(
        matches!(origin(&inline), CopyOrigin::Staged { sources, .. } if sources == [".requirements.txt"])
    );
    let excluded = recipe("FROM base\nCOPY --exclude=a.txt . /x/");
    assert!(matches!(origin(&excluded), CopyOrigin::Staged { files, .. } if files.len() == 1));
    let text = recipe("FROM base\nENV A=1\nCOPY <<EOF /f\n$A\nEOF\n");
    assert!(
        matches!(origin(&text), CopyOrigin::Staged { files, .. } if files[0].1 == StagedFile::Text("1\n".into()))
    );
    let add = recipe("FROM base\nADD https://x.org/a/b.txt?c /f");
    assert!(matches!(origin(&add), CopyOrigin::Staged { sources, .. } if sources == ["b.txt"]));
    let from = recipe("FROM base\nCOPY --from=ghcr.io/astral-sh/uv:latest /uv /.uv/uv");
    assert!(matches!(origin(&from), CopyOrigin::Image { sources, .. } if sources == ["uv"]));
}

#[test]
fn builds_only_the_stages_that_are_needed() {
    let text = "FROM base AS one\nRUN one\nFROM base AS two\nRUN two\nFROM one AS three\nRUN three\nFROM scratch\nCOPY --from=three /x /x\nCOPY --from=0 /y /y";
    let plan = plan_of(&recipe(text)).unwrap();
    let texts: Vec<&str> = plan.steps.iter().map(|s| s.text.as_str()).collect();
    assert_eq!(texts, ["RUN one", "RUN three", "COPY --from=three /x /x", "COPY --from=0 /y /y"]);
    assert_eq!(plan.image.layers.len(), 2);
}

#[test]
fn all_of_an_image_is_its_layers() {
    let image = image("FROM base AS b\nRUN x\nFROM scratch\nCOPY --from=b / /\nRUN y");
    assert_eq!(image.layers.len(), 3);
    assert_eq!(image.layers[0], base().layers[0]);
}

#[test]
fn an_image_has_no_more_layers_than_a_container_takes() {
    let text = format!("FROM base\n{}", "RUN x\n".repeat(200));
    assert!(message(&text).contains("more than 176 layers"));
}

#[test]
fn names_what_must_come_from_outside() {
    let recipe = recipe(
        "ARG V=3.11\nFROM python:$V-slim AS p\nFROM base\nCOPY --from=p /a /b\nCOPY --from=x/uv:1 /c /d",
    );
    let dockerfile = parse(&recipe.lines.join("\n")).unwrap();
    assert_eq!(external_images(&dockerfile, &recipe).unwrap(), ["python:3.11-slim", "x/uv:1"]);
}

#[test]
fn skips_the_set_up_of_host_images() {
    let mut recipe = recipe(
        "FROM base\nRUN apt-get update\nRUN pip install --upgrade pip wheel uv\nRUN pip install numpy",
    );
    recipe.bases.get_mut("base").unwrap().host = true;
    let plan = plan_of(&recipe).unwrap();
    assert!(
        matches!(plan.steps[0].action, Action::Skip(_)) && matches!(plan.steps[1].action, Action::Skip(_))
    );
    assert!(matches!(plan.steps[2].action, Action::Run(_)));
}

#[test]
fn plans_mounts() {
    let text = "FROM base AS b\nRUN x\nFROM base\nARG W=/w\nWORKDIR $W\nRUN --mount=target=c,source=d \
                --mount=type=bind,from=b,src=/x,dst=/o,rw --mount=type=cache,target=/c,sharing=locked \
                --mount=type=tmpfs,target=/t,size=1m --mount=type=secret,id=K,mode=0444 \
                --mount=type=secret,id=K,env=E,required go";
    let planned = plan_of(&recipe(text)).unwrap();
    assert_eq!(planned.stages.len(), 2);
    let Action::Run(run) = &planned.steps.last().unwrap().action else { panic!("{planned:?}") };
    let [bind, image, cache, tmpfs, file, env] = run.mounts.as_slice() else { panic!("{:?}", run.mounts) };
    let from = BindOrigin::Context { source: "d".into(), files: vec!["d/b.txt".into()] };
    assert_eq!(*bind, MountPlan::Bind { target: "/w/c".into(), from, writable: false });
    let MountPlan::Bind { from: BindOrigin::Image { root, source }, writable: true, .. } = image else {
        panic!("{image:?}")
    };
    assert_eq!((root.layers.len(), source.as_str()), (2, "x"));
    assert!(matches!(cache, MountPlan::Cache { id, sharing: Sharing::Locked, .. } if id == "/c"));
    assert_eq!(*tmpfs, MountPlan::Tmpfs { target: "/t".into(), bytes_max: Some(1 << 20) });
    assert!(
        matches!(file, MountPlan::Secret { target: Some(path), mode: 0o444, .. } if path == "/run/secrets/K")
    );
    assert!(matches!(env, MountPlan::Secret { target: None, required: true, .. }));
    // What a cache holds decides nothing; what a bind shows does.
    let digest = |text: &str, sha: &str| {
        let mut recipe = recipe(text);
        recipe.context_mount.as_mut().unwrap().entries[1].sha256 = sha.into();
        plan_of(&recipe).unwrap().steps.pop().unwrap().layer.unwrap().digest
    };
    assert_ne!(digest(text, "one"), digest(text, "two"));
    let cache = "FROM base\nRUN --mount=type=cache,target=/c x";
    assert_eq!(digest(cache, "one"), digest(cache, "two"));
    // A cache of another user is a folder in memory.
    let other = plan_of(&recipe("FROM base\nUSER 7\nRUN --mount=type=cache,target=/c x")).unwrap();
    let Action::Run(run) = &other.steps[1].action else { panic!("{other:?}") };
    assert!(matches!(run.mounts[0], MountPlan::Tmpfs { .. }) && run.notes.len() == 1);
}

#[test]
fn refuses() {
    for (text, want) in [
        ("FROM base\nCOPY nope /x", "not in the build context"),
        ("FROM base\nCOPY a.txt d /x", "must end with /"),
        ("FROM base\nCOPY --chmod=9 a.txt /x", "octal"),
        ("FROM base\nRUN --mount=type=ssh x", "type=ssh"),
        ("FROM base\nRUN --mount=type=bind,source=nope,target=/x x", "copy it in some stage"),
        ("FROM base\nRUN --mount=type=cache x", "needs a target"),
        ("FROM base\nRUN --mount=type=tmpfs,target=/x,size=big x", "not a size"),
        ("FROM base\nRUN --mount=type=secret x", "needs an id"),
        ("FROM base\nRUN --mount=type=cache,target=/x,sharing=no x", "no sharing=no"),
        ("FROM base\nRUN --mount=type=tmpfs,target=/x,colour=red x", "no field colour"),
        ("FROM base\nRUN --mount=type=ftp,target=/x x", "no --mount=type=ftp"),
        ("FROM base\nENV A=${B:?must be set}", "must be set"),
        ("FROM $NOPE", "empty"),
        ("FROM --platform=linux/s390x base", "not linux/s390x"),
    ] {
        let got = message(text);
        assert!(got.contains(want), "{text}: {got}");
    }
}
