//! Debian's control format (stanzas of `Field: value` lines), versions, and dependency fields.

use std::cmp::Ordering;

/// One stanza; fields keep their order and their text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stanza {
    fields: Vec<(String, String)>,
}

impl Stanza {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        match self.fields.iter_mut().find(|(k, _)| k.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value,
            None => self.fields.push((name.to_owned(), value)),
        }
    }

    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// Stanzas of a control file, one after the other.
pub(super) fn stanzas(text: &str) -> impl Iterator<Item = Stanza> + '_ {
    let mut lines = text.lines();
    std::iter::from_fn(move || {
        let mut stanza = Stanza::default();
        for line in lines.by_ref() {
            if line.trim().is_empty() {
                if stanza.fields.is_empty() {
                    continue;
                }
                return Some(stanza);
            }
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = stanza.fields.last_mut() {
                    value.push('\n');
                    value.push_str(line);
                }
            } else if let Some((key, value)) = line.split_once(':') {
                stanza.fields.push((key.to_owned(), value.trim().to_owned()));
            }
        }
        (!stanza.fields.is_empty()).then_some(stanza)
    })
}

/// How a dependency limits a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    Less,
    LessEqual,
    Equal,
    GreaterEqual,
    Greater,
}

/// One alternative of a dependency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dependency {
    pub name: String,
    pub version: Option<(Relation, String)>,
}

impl Dependency {
    /// Whether a package of that version will do.
    pub(super) fn accepts(&self, version: &str) -> bool {
        let Some((relation, wanted)) = &self.version else { return true };
        let order = compare_versions(version, wanted);
        match relation {
            Relation::Less => order == Ordering::Less,
            Relation::LessEqual => order != Ordering::Greater,
            Relation::Equal => order == Ordering::Equal,
            Relation::GreaterEqual => order != Ordering::Less,
            Relation::Greater => order == Ordering::Greater,
        }
    }
}

/// `a (>= 1) | b, c:any` as groups of alternatives.
pub(super) fn dependencies(field: &str) -> Vec<Vec<Dependency>> {
    field
        .split(',')
        .map(|group| group.split('|').filter_map(dependency).collect::<Vec<_>>())
        .filter(|group| !group.is_empty())
        .collect()
}

fn dependency(text: &str) -> Option<Dependency> {
    let text = text.split('[').next()?.trim();
    let (name, rest) = text.split_once('(').unwrap_or((text, ""));
    let name = name.trim().split(':').next()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_end_matches(')').trim();
    let operators = [
        ("<<", Relation::Less),
        ("<=", Relation::LessEqual),
        (">=", Relation::GreaterEqual),
        (">>", Relation::Greater),
        ("=", Relation::Equal),
    ];
    let version = operators
        .iter()
        .find_map(|(sign, relation)| rest.strip_prefix(sign).map(|v| (*relation, v.trim().to_owned())));
    Some(Dependency { name, version })
}

/// Compares versions as dpkg does: epoch, upstream part, Debian revision.
pub(super) fn compare_versions(a: &str, b: &str) -> Ordering {
    let (epoch_a, up_a, rev_a) = split_version(a);
    let (epoch_b, up_b, rev_b) = split_version(b);
    epoch_a.cmp(&epoch_b).then_with(|| compare_part(up_a, up_b)).then_with(|| compare_part(rev_a, rev_b))
}

fn split_version(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch.trim().parse().unwrap_or(0), upstream, revision)
}

fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        while !(a.first().is_none_or(u8::is_ascii_digit) && b.first().is_none_or(u8::is_ascii_digit)) {
            let order = rank(a.first()).cmp(&rank(b.first()));
            if order != Ordering::Equal {
                return order;
            }
            a = a.get(1..).unwrap_or_default();
            b = b.get(1..).unwrap_or_default();
        }
        let (number_a, rest_a) = digits(a);
        let (number_b, rest_b) = digits(b);
        let order = number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b));
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

/// `~` sorts before the end, letters before other signs; a digit ends the part as the end does.
fn rank(byte: Option<&u8>) -> i32 {
    match byte {
        None => 0,
        Some(b'~') => -1,
        Some(b) if b.is_ascii_digit() => 0,
        Some(b) if b.is_ascii_alphabetic() => i32::from(*b),
        Some(b) => i32::from(*b) + 256,
    }
}

/// Leading digits without leading zeros, and the rest.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let zeros = number.iter().take_while(|b| **b == b'0').count();
    (&number[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn compares_versions() {
        let table = [
            ("1.0", "1.0", Ordering::Equal),
            ("1.0-1", "1.0-2", Ordering::Less),
            ("1.10", "1.9", Ordering::Greater),
            ("1:0.1", "9.9", Ordering::Greater),
            ("1.0~rc1", "1.0", Ordering::Less),
            ("1.0~~", "1.0~", Ordering::Less),
            ("1.0+b1", "1.0", Ordering::Greater),
            ("1.0a", "1.0+", Ordering::Less),
            ("1.0", "1.0-0", Ordering::Equal),
            ("001", "1", Ordering::Equal),
            ("2.36-9+deb12u10", "2.36-9+deb12u9", Ordering::Greater),
            ("3.11.2-6+deb12u6", "3.11.2-6", Ordering::Greater),
        ];
        for (a, b, want) in table {
            assert_eq!(compare_versions(a, b), want, "{a} {b}");
            assert_eq!(compare_versions(b, a), want.reverse(), "{b} {a}");
        }
    }

    #[test]
    fn reads_dependencies() {
        let groups = dependencies("libc6 (>= 2.34), a | b:any (<< 2~), c [amd64],");
        assert_eq!(groups.len(), 3);
        assert_eq!(groups[0][0].version, Some((Relation::GreaterEqual, "2.34".into())));
        assert_eq!(groups[1][1].name, "b");
        assert!(groups[1][1].accepts("1.9") && !groups[1][1].accepts("2"));
    }

    #[test]
    fn reads_stanzas() {
        let list: Vec<Stanza> = stanzas("\nA: 1\nB: x\n  y\n\n\nA: 2\n").collect();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].get("b"), Some("x\n  y"));
        assert_eq!(list[1].get("A"), Some("2"));
    }

    proptest! {
        #[test]
        fn versions_are_ordered(a in "[0-9a-z.~+:-]{0,12}", b in "[0-9a-z.~+:-]{0,12}") {
            prop_assert_eq!(compare_versions(&a, &b), compare_versions(&b, &a).reverse());
            prop_assert_eq!(compare_versions(&a, &a), Ordering::Equal);
        }

        #[test]
        fn never_panics(text in "\\PC{0,80}") {
            let _ = stanzas(&text).count();
            let _ = dependencies(&text);
        }
    }
}
