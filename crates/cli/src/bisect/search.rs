//! Which version to try next, and when the search is over. Pure.

use std::collections::HashMap;

/// What was found out about a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The command succeeded.
    Good,
    /// It failed.
    Bad,
    /// It cannot be told.
    Skipped,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// This candidate is to be tried.
    Try(usize),
    /// This one is the first that is bad; the one before is good.
    Found(usize),
    /// The first bad one is among these, but all before the last of them were skipped.
    Among(Vec<usize>),
}

/// A search among candidates in a row, the first of which is good and the last of which is bad.
#[derive(Debug)]
pub(super) struct Search {
    /// The same for candidates that behave the same.
    contents: Vec<String>,
    /// By content: what runs the same behaves the same.
    verdicts: HashMap<String, Verdict>,
    good: usize,
    bad: usize,
}

impl Search {
    /// A search among candidates that run what `contents` says. There are two at least.
    pub(super) fn new(contents: Vec<String>) -> Self {
        let bad = contents.len().saturating_sub(1);
        Self { contents, verdicts: HashMap::new(), good: 0, bad }
    }

    /// Candidates that are still to be told from each other.
    pub(super) fn left(&self) -> usize {
        (self.good + 1..self.bad).filter(|index| self.verdict(*index).is_none()).count()
    }

    /// Notes what was found out.
    pub(super) fn note(&mut self, index: usize, verdict: Verdict) {
        self.verdicts.insert(self.contents[index].clone(), verdict);
        match verdict {
            Verdict::Good if index > self.good => self.good = index,
            Verdict::Bad if index < self.bad => self.bad = index,
            _ => {}
        }
    }

    fn verdict(&self, index: usize) -> Option<Verdict> {
        self.verdicts.get(&self.contents[index]).copied()
    }

    /// What is to be done now. Of what was not tried the one nearest to the middle is the next.
    pub(super) fn next(&mut self) -> Next {
        loop {
            let middle = self.good.midpoint(self.bad);
            let mut between: Vec<usize> = (self.good + 1..self.bad).collect();
            between.sort_by_key(|index| index.abs_diff(middle));
            let known = |index: &usize| Some((*index, self.verdict(*index)?));
            let known = between.iter().filter_map(known).find(|(_, verdict)| *verdict != Verdict::Skipped);
            if let Some((index, verdict)) = known {
                self.note(index, verdict);
                continue;
            }
            if let Some(index) = between.iter().find(|index| self.verdict(**index).is_none()) {
                return Next::Try(*index);
            }
            return match between.is_empty() {
                true => Next::Found(self.bad),
                false => Next::Among((self.good + 1..=self.bad).collect()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distinct(count: usize) -> Search {
        Search::new((0..count).map(|n| n.to_string()).collect())
    }

    /// The first bad one as the search finds it, and how many it tried.
    fn run(search: &mut Search, verdict: impl Fn(usize) -> Verdict) -> (Next, usize) {
        let mut tried = 0;
        loop {
            match search.next() {
                Next::Try(index) => {
                    tried += 1;
                    search.note(index, verdict(index));
                }
                end => return (end, tried),
            }
        }
    }

    #[test]
    fn the_first_bad_one_is_found_in_as_many_steps_as_its_number_has_bits() {
        for count in 2..70usize {
            let most = (count - 1).next_power_of_two().ilog2() as usize;
            for first in 1..count {
                let verdict = |index| if index < first { Verdict::Good } else { Verdict::Bad };
                let (end, tried) = run(&mut distinct(count), verdict);
                assert_eq!(end, Next::Found(first), "{count}");
                assert!(tried <= most, "{tried} of {most} for {first} of {count}");
            }
        }
    }

    #[test]
    fn what_is_skipped_leaves_the_answer_open_only_where_it_matters() {
        let far = |index| match index {
            2 => Verdict::Skipped,
            index if index < 7 => Verdict::Good,
            _ => Verdict::Bad,
        };
        assert_eq!(run(&mut distinct(10), far).0, Next::Found(7));
        let near = |index| match index {
            5 | 6 => Verdict::Skipped,
            index if index < 5 => Verdict::Good,
            _ => Verdict::Bad,
        };
        assert_eq!(run(&mut distinct(10), near).0, Next::Among(vec![5, 6, 7]));
    }

    #[test]
    fn what_runs_the_same_is_not_tried_again() {
        let contents = ["a", "b", "c", "b", "a", "d", "e"].map(str::to_owned).to_vec();
        let mut search = Search::new(contents);
        search.note(0, Verdict::Good);
        search.note(6, Verdict::Bad);
        let verdict = |index: usize| if index == 5 { Verdict::Bad } else { Verdict::Good };
        assert_eq!(run(&mut search, verdict), (Next::Found(5), 1), "the fifth is what the first is");
    }
}
