//! `evoke bisect`: which version broke an app. Each version that is tried is called beside the live one, by a command
//! whose token shows it that version; which one is next is decided in `search`.

mod search;

use crate::args::BisectOptions;
use crate::data_folder::DataFolder;
use crate::local::{Access, AppQuestion, Request, access};
use crate::names;
use crate::own_verbs::asked;
use crate::stdout;
use anyhow::{Context, Result};
use evoke_core::Error;
use search::{Next, Search, Verdict};
use serde_json::{Value, json};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code that says that a version cannot be told.
const SKIP: i32 = 125;
/// Exit codes from here on say that the command itself went wrong.
const ABORT: i32 = 128;
/// The exit code of a search that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Runs the verb.
pub(crate) fn run(data: Option<&std::path::Path>, options: BisectOptions) -> Result<ExitCode> {
    let data = DataFolder::locate(data)?;
    let versions = asked(&data, &options.request(AppQuestion::Versions))?;
    let candidates = candidates(&versions, options.good, options.bad)?;
    let contents = candidates.iter().map(|c| c["content"].as_str().unwrap_or_default().to_owned()).collect();
    let interrupted = Arc::new(AtomicBool::new(false));
    // The command gets the signal, too: it ends, and what was found out until then is told.
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&interrupted))
        .context("preparing for Ctrl-C")?;
    let access = access(&data)?;
    let mut bisection = Bisection { data, options, access, interrupted, candidates, probes: Vec::new() };
    match bisection.search(Search::new(contents)) {
        Ok(end) => bisection.report(&end),
        Err(_) if bisection.interrupted.load(Ordering::Relaxed) => {
            eprintln!("evoke: interrupted; {}", bisection.so_far());
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error),
    }
}

impl BisectOptions {
    fn request(&self, question: AppQuestion) -> Request {
        Request::App { environment: self.env.clone(), app: self.app.clone(), question }
    }
}

/// The versions from the good to the bad one. What was staged counts, too: it can be called as any other.
fn candidates(versions: &Value, good: u32, bad: u32) -> Result<Vec<Value>> {
    let all = versions.as_array().map(Vec::as_slice).unwrap_or_default();
    let number = |version: &Value| version["version"].as_u64().unwrap_or_default();
    for wanted in [good, bad] {
        if !all.iter().any(|version| number(version) == u64::from(wanted)) {
            return Err(Error::invalid(format!("there is no version v{wanted}"))
                .with_hint("`evoke app history APP` lists the versions")
                .into());
        }
    }
    if good >= bad {
        let text = format!("the good version, v{good}, must be older than the bad one, v{bad}");
        return Err(Error::invalid(text).into());
    }
    let between = u64::from(good)..=u64::from(bad);
    Ok(all.iter().filter(|version| between.contains(&number(version))).cloned().collect())
}

/// A version that was tried.
struct Probe {
    index: usize,
    verdict: Verdict,
    /// How its runs ended.
    codes: Vec<i32>,
}

impl Probe {
    /// Whether its runs ended in different ways.
    fn is_flaky(&self) -> bool {
        self.codes.iter().any(|code| (*code == 0) != (self.codes[0] == 0))
    }
}

/// What a search found.
struct End {
    /// The versions of which one is the first bad one, oldest first; one where it is certain.
    first_bad: Vec<usize>,
    last_good: usize,
}

struct Bisection {
    data: DataFolder,
    options: BisectOptions,
    access: Access,
    interrupted: Arc<AtomicBool>,
    candidates: Vec<Value>,
    probes: Vec<Probe>,
}

impl Bisection {
    fn number(&self, index: usize) -> u64 {
        self.candidates[index]["version"].as_u64().unwrap_or_default()
    }

    fn search(&mut self, mut search: Search) -> Result<End> {
        let last = self.candidates.len() - 1;
        for (index, wanted) in [(0, Verdict::Good), (last, Verdict::Bad)] {
            let verdict = self.probe(index)?;
            if verdict != wanted {
                return Err(self.wrong_end(index, wanted, verdict).into());
            }
            search.note(index, verdict);
        }
        loop {
            match search.next() {
                Next::Try(index) => {
                    eprintln!("evoke: {} versions left to tell", search.left());
                    let verdict = self.probe(index)?;
                    search.note(index, verdict);
                }
                Next::Found(first_bad) => {
                    self.check_again(first_bad)?;
                    return Ok(End { first_bad: vec![first_bad], last_good: first_bad - 1 });
                }
                Next::Among(first_bad) => {
                    let last_good = first_bad[0] - 1;
                    return Ok(End { first_bad, last_good });
                }
            }
        }
    }

    fn wrong_end(&self, index: usize, wanted: Verdict, found: Verdict) -> Error {
        let version = self.number(index);
        let (wanted, found) = (word(wanted), word(found));
        Error::precondition(format!("v{version} should be {wanted}, but the command says that it is {found}"))
            .with_hint(
                "the search needs a good and a bad version to start from. Does the command test the right thing? \
                 Does its result change from run to run (--runs)?",
            )
    }

    /// Tries the two versions between which it broke once more: a command whose result changes has found nothing.
    fn check_again(&mut self, first_bad: usize) -> Result<()> {
        for (index, wanted) in [(first_bad - 1, Verdict::Good), (first_bad, Verdict::Bad)] {
            let verdict = self.probe(index)?;
            if verdict != wanted {
                let text = format!(
                    "the command is flaky: v{} was {} and is {} now. The result would mean nothing",
                    self.number(index),
                    word(wanted),
                    word(verdict)
                );
                let hint = "run it several times for each version: --runs 5";
                return Err(Error::precondition(text).with_hint(hint).into());
            }
        }
        Ok(())
    }

    /// Runs the command against a version.
    fn probe(&mut self, index: usize) -> Result<Verdict> {
        let version = self.number(index);
        let question = AppQuestion::Show { version: u32::try_from(version).unwrap_or(u32::MAX) };
        let (verdict, codes) = match asked(&self.data, &self.options.request(question)) {
            Ok(shown) => self.runs(version, &shown)?,
            Err(error) if crate::local::is_no_server(&error) => return Err(error),
            Err(error) => {
                eprintln!("evoke: v{version} cannot be tried: {error}");
                (Verdict::Skipped, Vec::new())
            }
        };
        let probe = Probe { index, verdict, codes };
        let flaky = if probe.is_flaky() { ", and flaky: not all of its runs ended alike" } else { "" };
        eprintln!("evoke: v{version} is {}{flaky}", word(verdict));
        self.probes.push(probe);
        Ok(verdict)
    }

    fn runs(&self, version: u64, shown: &Value) -> Result<(Verdict, Vec<i32>)> {
        let mut codes = Vec::new();
        for _ in 0..self.options.runs {
            let status = self.command(version, shown)?;
            if self.interrupted.load(Ordering::Relaxed) {
                anyhow::bail!("interrupted");
            }
            let code = match status.code() {
                Some(code) if code < ABORT => code,
                _ => {
                    let text = format!(
                        "the command did not end by itself for v{version} ({status}); the search ends"
                    );
                    return Err(Error::precondition(text).into());
                }
            };
            codes.push(code);
        }
        Ok((verdict_of(&codes), codes))
    }

    fn command(&self, version: u64, shown: &Value) -> Result<ExitStatus> {
        let view = shown["view"].as_str().unwrap_or_default();
        let (program, arguments) = self.options.command.split_first().context("no command")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .env(names::MODAL_SERVER_URL, &self.access.address)
            .env(names::MODAL_TOKEN_ID, self.access.token_id_with(view))
            .env(names::MODAL_TOKEN_SECRET, &self.access.token.token_secret)
            .env(names::MODAL_DISABLE_API_PROXY, "1")
            .env(names::EVOKE_DATA, self.data.path())
            .env(names::EVOKE_VIEW, view)
            .env(names::EVOKE_VERSION, version.to_string());
        for name in names::MODAL_OAUTH {
            command.env_remove(name);
        }
        for (name, url) in shown["urls"].as_object().into_iter().flatten() {
            command.env(url_variable(name), url.as_str().unwrap_or_default());
        }
        if self.options.json {
            command.stdout(std::io::stderr());
        }
        command.status().with_context(|| format!("running {}", program.to_string_lossy()))
    }

    /// What is known where the search ended early.
    fn so_far(&self) -> String {
        let told: Vec<String> = self
            .probes
            .iter()
            .map(|probe| format!("v{} is {}", self.number(probe.index), word(probe.verdict)))
            .collect();
        if told.is_empty() { "nothing is known yet".to_owned() } else { told.join(", ") }
    }

    fn report(&self, end: &End) -> Result<ExitCode> {
        let version = |index: &usize| {
            let mut version = self.candidates[*index].clone();
            if let Some(fields) = version.as_object_mut() {
                fields.remove("content");
            }
            version
        };
        let certain = end.first_bad.len() == 1;
        let answer = json!({
            "app": self.options.app,
            "first_bad": end.first_bad.iter().map(version).collect::<Vec<_>>(),
            "last_good": version(&end.last_good),
            "certain": certain,
            "flaky": self.probes.iter().any(Probe::is_flaky),
            "probes": self.probes.iter().map(|probe| json!({
                "version": self.number(probe.index),
                "verdict": word(probe.verdict),
                "exit_codes": probe.codes,
            })).collect::<Vec<_>>(),
        });
        match self.options.json {
            true => stdout::write(&format!("{answer:#}\n"))?,
            false => stdout::write(&self.told(end, &answer))?,
        }
        Ok(if certain { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The answer for people.
    fn told(&self, end: &End, answer: &Value) -> String {
        let numbers: Vec<String> =
            end.first_bad.iter().map(|index| format!("v{}", self.number(*index))).collect();
        let app = &self.options.app;
        let mut text = match numbers.as_slice() {
            [one] => format!("{one} is the first bad version of {app}\n"),
            several => format!(
                "the first bad version of {app} is one of {}; the others were skipped\n",
                several.join(", ")
            ),
        };
        if let [index] = end.first_bad.as_slice() {
            let version = &self.candidates[*index];
            let commit = version["commit"].as_str().filter(|commit| !commit.is_empty());
            text += &format!("deployed {}", version["deployed"].as_str().unwrap_or_default());
            text += &commit.map(|commit| format!(", commit {commit}")).unwrap_or_default();
            text.push('\n');
        }
        if answer["flaky"] == true {
            text += "the command is flaky: not all runs for a version ended alike; a version with a failed run counts as bad\n";
        }
        let last = numbers.last().map(String::as_str).unwrap_or_default();
        text + &format!("what it changed: evoke diff {app} v{} {last}\n", self.number(end.last_good))
    }
}

/// Bad where a run failed, else skipped where one could not tell.
fn verdict_of(codes: &[i32]) -> Verdict {
    if codes.iter().any(|code| *code != 0 && *code != SKIP) {
        return Verdict::Bad;
    }
    if codes.contains(&SKIP) { Verdict::Skipped } else { Verdict::Good }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Bad => "bad",
        Verdict::Skipped => "skipped",
    }
}

/// The variable that holds the address of a web function.
fn url_variable(function: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("{}{}", names::EVOKE_URL_PREFIX, function.chars().map(letter).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_mean_what_they_mean_to_git() {
        let cases: [(&[i32], Verdict); 5] = [
            (&[0], Verdict::Good),
            (&[1], Verdict::Bad),
            (&[SKIP], Verdict::Skipped),
            (&[0, 0, 1], Verdict::Bad),
            (&[0, SKIP], Verdict::Skipped),
        ];
        for (codes, verdict) in cases {
            assert_eq!(verdict_of(codes), verdict, "{codes:?}");
        }
        let probe = |codes: &[i32]| Probe { index: 0, verdict: Verdict::Good, codes: codes.to_vec() };
        assert!(probe(&[0, 1]).is_flaky() && !probe(&[1, 2]).is_flaky() && !probe(&[]).is_flaky());
    }

    #[test]
    fn candidates_lie_between_two_versions_that_exist() {
        let versions = json!([{ "version": 1 }, { "version": 2 }, { "version": 4 }]);
        assert_eq!(candidates(&versions, 1, 4).unwrap().len(), 3);
        for (good, bad) in [(2, 2), (4, 1), (1, 3), (9, 4)] {
            assert!(candidates(&versions, good, bad).is_err(), "{good} {bad}");
        }
    }

    #[test]
    fn web_functions_have_variables_that_shells_take() {
        assert_eq!(url_variable("Model.health-1"), "EVOKE_URL_MODEL_HEALTH_1");
    }
}
