//! What objects with names have in common: one is looked up or made as a request says, and listings come in
//! pages.

use crate::names;
use api::ObjectCreationType as Creation;
use evoke_core::UnixMs;
use evoke_proto::{Code, Status, api};

/// A name in a request that looks an object up or makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// What has the name, as people call it.
    pub what: &'static str,
    /// The command that such things have.
    pub command: &'static str,
    /// The name.
    pub name: &'a str,
    /// The environment's name.
    pub environment: &'a str,
    /// Whether one is to be made.
    pub creation: Creation,
}

impl Asked<'_> {
    /// The one that was `found`, if that is what is asked for; nothing where one is to be made.
    pub(crate) fn settle<T>(&self, found: Option<T>) -> Result<Option<T>, Status> {
        let Self { what, command, name, environment, creation } = self;
        match (found, creation) {
            (Some(_), Creation::CreateFailIfExists) => Err(self.taken()),
            (Some(found), _) => Ok(Some(found)),
            (None, Creation::Unspecified) => Err(Status::not_found(format!(
                "There is no {what} '{name}' in environment '{environment}'. Create it with: evoke {command} create \
                 {name}, or pass create_if_missing=True"
            ))),
            (None, _) => names::check_object_name(name, what).map(|()| None),
        }
    }

    /// What a request is answered for which one was made: with the new one, or with what somebody else made of this
    /// name meanwhile.
    pub(crate) async fn made<T, R>(
        &self,
        made: Result<(), Status>,
        answer: R,
        find: impl AsyncFnOnce() -> Result<Option<T>, Status>,
        reply: impl FnOnce(&T) -> R,
    ) -> Result<R, Status> {
        match made {
            Ok(()) => Ok(answer),
            Err(status) if self.overtaken(&status) => find().await?.map(|found| reply(&found)).ok_or(status),
            Err(status) if status.code == Code::AlreadyExists => Err(self.taken()),
            Err(status) => Err(status),
        }
    }

    /// Whether the making failed because somebody else made one of this name meanwhile, who then is asked for.
    fn overtaken(&self, failed: &Status) -> bool {
        failed.code == Code::AlreadyExists && self.creation != Creation::CreateFailIfExists
    }

    /// The name belongs to something else.
    pub(crate) fn taken(&self) -> Status {
        let text =
            format!("There is a {} '{}' in environment '{}' already", self.what, self.name, self.environment);
        Status::new(Code::AlreadyExists, text)
    }
}

/// The page of a listing that a request asks for, out of all there is from the newest on. It only ends between
/// two times, so that the next one, which begins at a time, misses none.
pub(crate) fn page<T>(
    newest_first: Vec<T>,
    asked: Option<api::ListPagination>,
    created: impl Fn(&T) -> UnixMs,
) -> Vec<T> {
    let asked = asked.unwrap_or_default();
    let most = usize::try_from(asked.max_objects).ok().filter(|most| *most > 0).unwrap_or(usize::MAX);
    let mut rows = newest_first;
    rows.retain(|row| asked.created_before <= 0.0 || created(row).as_secs_f64() < asked.created_before);
    let last = rows.get(most.saturating_sub(1)).map(&created);
    let end = rows.iter().position(|row| last.is_some_and(|last| created(row) < last));
    rows.truncate(end.unwrap_or(rows.len()));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(creation: Creation) -> Asked<'static> {
        Asked { what: "Dict", command: "dict", name: "d", environment: "main", creation }
    }

    #[test]
    fn one_is_found_made_or_refused_as_the_request_says() {
        assert_eq!(asked(Creation::Unspecified).settle(Some(1)).unwrap(), Some(1));
        assert_eq!(asked(Creation::CreateIfMissing).settle(Some(1)).unwrap(), Some(1));
        assert_eq!(asked(Creation::CreateIfMissing).settle::<u8>(None).unwrap(), None);
        let taken = asked(Creation::CreateFailIfExists).settle(Some(1)).unwrap_err();
        assert_eq!(taken.code, Code::AlreadyExists);
        assert!(!asked(Creation::CreateFailIfExists).overtaken(&taken));
        assert!(asked(Creation::CreateIfMissing).overtaken(&taken));
        let missing = asked(Creation::Unspecified).settle::<u8>(None).unwrap_err();
        assert_eq!(missing.code, Code::NotFound);
        assert!(missing.message.contains("evoke dict create d"));
        let bad = Asked { name: "a b", ..asked(Creation::CreateIfMissing) };
        assert!(bad.settle::<u8>(None).is_err());
    }

    #[test]
    fn pages_miss_nothing_that_was_made_in_one_moment() {
        let rows = [5u64, 4, 4, 4, 3].map(|second| UnixMs(second * 1000)).to_vec();
        let ask = |max_objects, created_before| Some(api::ListPagination { max_objects, created_before });
        let of = |asked| page(rows.clone(), asked, |at| *at).len();
        assert_eq!(of(ask(2, 0.0)), 4, "the page goes on to the end of its last moment");
        assert_eq!(of(ask(2, 4.0)), 1);
        assert_eq!(of(ask(1, 0.0)), 1);
        assert_eq!((of(None), of(ask(0, 0.0)), of(ask(9, 0.0))), (5, 5, 5));
    }
}
