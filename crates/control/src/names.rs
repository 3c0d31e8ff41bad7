//! Which names the client's users may give, as the client itself checks them.

use evoke_proto::Status;

/// Characters of a name.
const NAME_CHARS_MAX: usize = 64;

/// Checks the name of an object such as a Dict.
pub(crate) fn check_object_name(name: &str, what: &str) -> Result<(), Status> {
    let app_id = name
        .strip_prefix("ap-")
        .is_some_and(|rest| rest.len() == 22 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(letters) || app_id {
        return Err(Status::invalid(format!(
            "'{}' is not a name for a {what}: names have 1 to {NAME_CHARS_MAX} letters, digits, dashes, periods \
             and underscores, and do not look like an app's id",
            shown(name)
        )));
    }
    Ok(())
}

/// Checks the name of a new environment.
pub(crate) fn check_environment_name(name: &str) -> Result<(), Status> {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let reserved = name.to_ascii_lowercase().starts_with("en-");
    if !begins || reserved || name.len() > NAME_CHARS_MAX || !name.chars().all(letters) {
        return Err(Status::invalid(format!(
            "'{}' is not a name for an environment: names have 1 to {NAME_CHARS_MAX} letters, digits, dashes and \
             underscores, begin with a letter or digit, and not with 'en-'",
            shown(name)
        )));
    }
    Ok(())
}

/// Checks the part of web addresses that stands for an environment; empty for none.
pub(crate) fn check_web_suffix(suffix: &str) -> Result<(), Status> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = suffix.starts_with('-') || suffix.ends_with('-');
    let number = !suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_digit());
    if suffix.len() > 63 || !suffix.chars().all(letters) || edges || number {
        return Err(Status::invalid(format!(
            "'{}' is not a web suffix: it has up to 63 small letters, digits and dashes, no dash at its ends, and \
             is no number",
            shown(suffix)
        )));
    }
    Ok(())
}

/// The web suffix of a new environment of this name.
pub(crate) fn web_suffix_of(name: &str) -> String {
    let lower = name.to_ascii_lowercase().replace('_', "-");
    let suffix = lower.trim_matches('-').to_string();
    if check_web_suffix(&suffix).is_ok() { suffix } else { String::new() }
}

/// A name as an error shows it.
fn shown(name: &str) -> String {
    name.chars().take(2 * NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_client_takes() {
        let long = "x".repeat(65);
        for good in ["a", "my-dict", "A.b_c-9", "ap-short", &long[..64]] {
            check_object_name(good, "Dict").unwrap();
        }
        for bad in ["", "a b", "a/b", "ä", "ap-0123456789abcdefghijkl", &long] {
            assert!(check_object_name(bad, "Dict").is_err(), "{bad}");
        }
        for good in ["main", "Dev_1", "9-lives", &long[..64]] {
            check_environment_name(good).unwrap();
        }
        for bad in ["", "-a", "_a", "a.b", "en-x", "EN-x", &long] {
            assert!(check_environment_name(bad).is_err(), "{bad}");
        }
        for good in ["", "dev", "a-1"] {
            check_web_suffix(good).unwrap();
        }
        for bad in ["-a", "a-", "12", "Dev", "a.b", &long] {
            assert!(check_web_suffix(bad).is_err(), "{bad}");
        }
        assert_eq!(web_suffix_of("Dev_1"), "dev-1");
        assert_eq!(web_suffix_of("42"), "");
    }
}
