//! Table and property tests of the parser.

use super::*;
use proptest::prelude::*;

fn only(text: &str) -> Instruction {
    let mut file = parse(&format!("FROM base\n{text}")).unwrap();
    assert_eq!(file.stages[0].instructions.len(), 1, "{text}");
    file.stages.remove(0).instructions.remove(0).instruction
}

fn failure(text: &str) -> DockerfileError {
    parse(&format!("FROM base\n{text}")).unwrap_err()
}

fn shell(text: &str) -> Form {
    Form::Shell(text.into())
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn reads_what_the_client_emits() {
    let text = r#"FROM python:3.11.12-slim-bookworm
RUN apt-get update
RUN apt-get install -y gcc gfortran build-essential
RUN pip install --upgrade pip wheel uv
RUN echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections
CMD ["sleep", "172800"]"#;
    let file = parse(text).unwrap();
    let stage = &file.stages[0];
    assert_eq!(stage.base, "python:3.11.12-slim-bookworm");
    assert_eq!(stage.instructions.len(), 5);
    assert_eq!(stage.instructions[1].line, 3);
    let sleep = Form::Exec(vec!["sleep".into(), "172800".into()]);
    assert_eq!(stage.instructions[4].instruction, Instruction::Cmd(sleep));

    let text = "FROM base\nCOPY --from=ghcr.io/astral-sh/uv:latest /uv /.uv/uv\nCOPY /.0_r.txt /.uv/0/r.txt\nENV PATH=/.uv/.venv/bin:$PATH\nENV K='it'\"'\"'s'\n";
    let file = parse(text).unwrap();
    let steps = &file.stages[0].instructions;
    let Instruction::Copy(copy) = &steps[0].instruction else { panic!() };
    assert_eq!(copy.from.as_deref(), Some("ghcr.io/astral-sh/uv:latest"));
    assert_eq!(copy.destination, "/.uv/uv");
    assert_eq!(steps[2].instruction, Instruction::Env(pairs(&[("PATH", "/.uv/.venv/bin:$PATH")])));
    let Instruction::Env(env) = &steps[3].instruction else { panic!() };
    assert_eq!(crate::dockerfile::expand(&env[0].1, '\\', &|_| None).as_deref(), Ok("it's"));
}

#[test]
fn reads_each_instruction() {
    let words = |w: &[&str]| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let table: Vec<(&str, Instruction)> = vec![
        ("ENV A=1 B=\"x y\"", Instruction::Env(pairs(&[("A", "1"), ("B", "\"x y\"")]))),
        ("ENV A some text here", Instruction::Env(pairs(&[("A", "some text here")]))),
        ("env a=b", Instruction::Env(pairs(&[("a", "b")]))),
        ("LABEL org.x=\"y z\"", Instruction::Label(pairs(&[("org.x", "\"y z\"")]))),
        ("ARG V", Instruction::Arg(vec![("V".into(), None)])),
        ("ARG V=1 W", Instruction::Arg(vec![("V".into(), Some("1".into())), ("W".into(), None)])),
        ("WORKDIR /a b", Instruction::Workdir("/a b".into())),
        ("SHELL [\"/bin/bash\", \"-c\"]", Instruction::Shell(words(&["/bin/bash", "-c"]))),
        ("CMD sleep 1", Instruction::Cmd(shell("sleep 1"))),
        ("CMD [\"a\"]", Instruction::Cmd(Form::Exec(words(&["a"])))),
        ("CMD [not json]", Instruction::Cmd(shell("[not json]"))),
        ("ENTRYPOINT []", Instruction::Entrypoint(Form::Exec(vec![]))),
        ("USER 1000:1000", Instruction::User("1000:1000".into())),
        ("EXPOSE 80 443/tcp", Instruction::Expose(words(&["80", "443/tcp"]))),
        ("VOLUME [\"/a b\"]", Instruction::Volume(words(&["/a b"]))),
        ("VOLUME /a /b", Instruction::Volume(words(&["/a", "/b"]))),
        ("STOPSIGNAL SIGTERM", Instruction::StopSignal("SIGTERM".into())),
        ("HEALTHCHECK NONE", Instruction::Healthcheck("NONE".into())),
        ("MAINTAINER someone", Instruction::Maintainer("someone".into())),
    ];
    for (text, want) in table {
        assert_eq!(only(text), want, "{text}");
    }
}

#[test]
fn reads_runs() {
    let Instruction::Run(run) = only("RUN --mount=type=cache,target=/x --network=none make \\\n  all") else {
        panic!()
    };
    assert_eq!(run.form, shell("make   all"));
    assert_eq!((run.mounts[0].kind.as_str(), run.network_none), ("cache", true));
    let Instruction::Run(run) = only("RUN <<EOF\nset -e\nmake\nEOF") else { panic!() };
    assert_eq!(run.heredocs[0].content, "set -e\nmake\n");
    let Instruction::Run(run) = only("RUN [\"/bin/true\", \"a b\"]") else { panic!() };
    assert_eq!(run.form, Form::Exec(vec!["/bin/true".into(), "a b".into()]));
}

#[test]
fn reads_copies() {
    let Instruction::Copy(copy) = only("COPY --chown=1:2 --chmod=755 --from=build a b* /dst/") else {
        panic!()
    };
    assert_eq!(copy.sources.len(), 2);
    assert_eq!((copy.chown.as_deref(), copy.chmod.as_deref()), (Some("1:2"), Some("755")));
    let Instruction::Copy(copy) = only("COPY [\"a b\", \"/c d\"]") else { panic!() };
    assert_eq!((copy.sources, copy.json), (vec![CopySourceText::Path("a b".into())], true));
    let Instruction::Copy(copy) = only("COPY <<one.txt x <<'two' /d/\n1\none.txt\n2\ntwo") else { panic!() };
    assert!(matches!(&copy.sources[0], CopySourceText::Heredoc(d) if d.content == "1\n" && d.expand));
    assert!(matches!(&copy.sources[1], CopySourceText::Path(p) if p == "x"));
    assert!(matches!(&copy.sources[2], CopySourceText::Heredoc(d) if d.content == "2\n" && !d.expand));
}

#[test]
fn reads_stages() {
    let file = parse("ARG V=1\nfrom a:$V as Build\nRUN x\nFROM --platform=linux/amd64 b\n").unwrap();
    assert_eq!(file.global_args, vec![("V".to_owned(), Some("1".to_owned()))]);
    assert_eq!(file.stages[0].name.as_deref(), Some("build"));
    assert_eq!(file.stages[1].platform.as_deref(), Some("linux/amd64"));
}

#[test]
fn refuses() {
    let table = [
        ("NOPE x", "unknown instruction NOPE: there are FROM, RUN, COPY"),
        ("ONBUILD RUN x", "ONBUILD is not supported"),
        ("RUN", "needs an argument"),
        ("COPY a", "at least one source"),
        ("ENV =x", "NAME=value"),
        ("ENV A=1 B", "NAME=value"),
        ("ENV A", "name and a value"),
        ("SHELL bash", "JSON list"),
        ("FROM a b", "FROM needs"),
        ("FROM a AS 1x", "name for a stage"),
        ("COPY --nope=1 a b", "no flag --nope"),
        ("RUN --nope x", "no flag --nope"),
    ];
    for (text, want) in table {
        let got = failure(text);
        assert!(got.message.contains(want), "{text}: {got}");
        assert_eq!((got.line, got.text.as_str()), (2, text));
    }
    assert_eq!(parse("").unwrap_err().message, "there is no FROM");
    assert!(parse("RUN x").unwrap_err().message.contains("before the first FROM"));
}

proptest! {
    #[test]
    fn never_panics(text in ".{0,400}") {
        let _ = parse(&text);
    }

    #[test]
    fn never_panics_near_the_grammar(parts in proptest::collection::vec(
        prop_oneof![
            Just("FROM base\n".to_owned()), Just("RUN ".to_owned()), Just("COPY ".to_owned()),
            Just("ENV ".to_owned()), Just("<<EOF\n".to_owned()), Just("EOF\n".to_owned()),
            Just("\\\n".to_owned()), Just("# escape=`\n".to_owned()), Just("--from=x ".to_owned()),
            Just("[\"a\",".to_owned()), Just("\"".to_owned()), Just("'".to_owned()), Just("${".to_owned()),
            Just("}".to_owned()), Just("$".to_owned()), Just(":-".to_owned()), Just("\n".to_owned()),
            Just("%%*".to_owned()), "[ -~]{0,10}", "\\PC{0,4}",
        ], 0..40)) {
        if let Ok(file) = parse(&parts.concat()) {
            for step in file.stages.iter().flat_map(|s| &s.instructions) {
                let _ = crate::dockerfile::expand(&step.text, file.escape, &|name| Some(name.to_owned()));
            }
        }
    }

    #[test]
    fn expansion_never_panics(word in "[$@{}:#%*?a-c'\"\\\\+-]{0,60}", value in "\\PC{0,12}") {
        let _ = crate::dockerfile::expand(&word, '\\', &|_| Some(value.clone()));
    }
}
