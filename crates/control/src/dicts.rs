//! Dictionaries: opaque keys and values. Reads take one indexed look-up and do not touch the writer; what
//! depends on what is there is decided by the writer in its turn.

use crate::data_objects::{creation_info, no_object};
use crate::{Control, blocking, parse_id, stored, wire};
use bytes::Bytes;
use evoke_core::{BlobId, DictId, Error, UnixMs};
use evoke_proto::{CallContext, Status, api};
use evoke_store::{
    Answer, DictEntry, DictWrite, ENTRY_TOUCH_MS, Found, Grade, ObjectRow, ObjectWrite, Value,
};
use futures::Stream;
use futures::stream::try_unfold;
use prost::Message;
use std::collections::VecDeque;
use std::io::Read as _;
use std::sync::Arc;

/// Bytes of one value, as the client's documentation has it.
const VALUE_BYTES_MAX: usize = 100 << 20;
/// Bytes of one key.
const KEY_BYTES_MAX: usize = 1 << 20;
/// Entries in one update, as the client's documentation has it.
const UPDATE_ENTRIES_MAX: usize = 10_000;
/// Values up to this size (bytes) are stored in their row, larger ones as files.
const INLINE_BYTES_MAX: usize = 1 << 20;
/// The same in an update that has more than [`UPDATE_INLINE_BYTES`] of values.
const INLINE_BYTES_MAX_IN_LARGE: usize = 64 << 10;
/// Bytes of values that one update stores in rows, about.
const UPDATE_INLINE_BYTES: usize = 8 << 20;
/// An update whose files are written has this long (milliseconds) before they count as nobody's.
const WRITING_MS_MAX: u64 = 3600 * 1000;
/// Entries, and bytes of them, read at a time for a stream of contents.
const PAGE: (usize, usize) = (500, 4 << 20);
/// Where a kept answer to a pop says which file has its value. The protocol does not use this field number.
const FILE_FIELD: u32 = 1000;

/// What an oversized request is answered with: the client looks for the words of the status.
pub(crate) fn too_large(what: &str, bytes: usize, most: usize) -> Status {
    Status::invalid(format!("{what} has {bytes} bytes; at most {most} are allowed (status = '413')"))
}

fn metadata(row: &ObjectRow<evoke_core::id::Dict>) -> Option<api::DictMetadata> {
    Some(api::DictMetadata { name: row.name.clone().unwrap_or_default(), creation_info: creation_info(row) })
}

impl Control {
    pub(crate) async fn dict_get_or_create(
        self: Arc<Self>,
        context: CallContext,
        request: api::DictGetOrCreateRequest,
    ) -> Result<api::DictGetOrCreateResponse, Status> {
        let first = self.dict_entries(request.data.clone()).await?;
        let now = self.now();
        let fill = |dict| match first.is_empty() {
            true => Vec::new(),
            false => {
                let answer = Answer::new(None);
                vec![
                    DictWrite::Update { dict, entries: first.clone(), if_not_exists: false, now, answer }
                        .into(),
                ]
            }
        };
        let name = (request.deployment_name.as_str(), request.environment_name.as_str());
        self.object_get_or_create(&context, name, request.object_creation_type(), fill, |row| {
            api::DictGetOrCreateResponse { dict_id: row.id.to_string(), metadata: metadata(row) }
        })
        .await
    }

    pub(crate) async fn dict_get_by_id(
        self: Arc<Self>,
        _context: CallContext,
        request: api::DictGetByIdRequest,
    ) -> Result<api::DictGetByIdResponse, Status> {
        let row = self.object(parse_id(&request.dict_id)?).await?;
        Ok(api::DictGetByIdResponse { dict_id: row.id.to_string(), metadata: metadata(&row) })
    }

    pub(crate) async fn dict_list(
        self: Arc<Self>,
        _context: CallContext,
        request: api::DictListRequest,
    ) -> Result<api::DictListResponse, Status> {
        let (rows, environment_name) =
            self.object_page(&request.environment_name, request.pagination).await?;
        let dicts = rows.iter().map(|row| api::dict_list_response::DictInfo {
            name: row.name.clone().unwrap_or_default(),
            created_at: row.created_at.as_secs_f64(),
            dict_id: row.id.to_string(),
            metadata: metadata(row),
        });
        Ok(api::DictListResponse { dicts: dicts.collect(), environment_name })
    }

    pub(crate) async fn dict_heartbeat(
        self: Arc<Self>,
        _context: CallContext,
        request: api::DictHeartbeatRequest,
    ) -> Result<(), Status> {
        let id: DictId = parse_id(&request.dict_id)?;
        self.object_heartbeat(id).await
    }

    pub(crate) async fn dict_delete(
        self: Arc<Self>,
        context: CallContext,
        request: api::DictDeleteRequest,
    ) -> Result<(), Status> {
        let id: DictId = parse_id(&request.dict_id)?;
        self.object_write(&context, id, ObjectWrite::Delete { id: id.to_string() }).await
    }

    pub(crate) async fn dict_clear(
        self: Arc<Self>,
        context: CallContext,
        request: api::DictClearRequest,
    ) -> Result<(), Status> {
        let id: DictId = parse_id(&request.dict_id)?;
        self.object_write(&context, id, ObjectWrite::Clear { id: id.to_string() }).await
    }

    pub(crate) async fn dict_get(
        self: Arc<Self>,
        _context: CallContext,
        request: api::DictGetRequest,
    ) -> Result<api::DictGetResponse, Status> {
        let dict = parse_id(&request.dict_id)?;
        // An entry that is replaced between the look and the reading of its file is looked at again.
        while let Some(found) = self.dict_find(dict, &request.key).await? {
            if let Some(value) = self.value_bytes(found.value).await? {
                return Ok(api::DictGetResponse { found: true, value: Some(value) });
            }
        }
        Ok(api::DictGetResponse { found: false, value: None })
    }

    pub(crate) async fn dict_contains(
        self: Arc<Self>,
        _context: CallContext,
        request: api::DictContainsRequest,
    ) -> Result<api::DictContainsResponse, Status> {
        let found = self.dict_find(parse_id(&request.dict_id)?, &request.key).await?.is_some();
        Ok(api::DictContainsResponse { found })
    }

    async fn dict_find(&self, dict: DictId, key: &Bytes) -> Result<Option<Found>, Status> {
        let now = self.now();
        let found = self.store.dicts().get(dict, key, now).map_err(stored)?.ok_or_else(|| no_object(dict))?;
        self.last_writes.settled(&self.store, &dict.to_string()).await.map_err(stored)?;
        if found.as_ref().is_some_and(|found| now.since(found.used_at) > ENTRY_TOUCH_MS) {
            // Nobody waits for this; lost, it is noted by the next read.
            let touch = DictWrite::Touch { dict, key: key.clone(), now };
            drop(self.store.submit(vec![touch.into()], Grade::Written));
        }
        Ok(found)
    }

    /// A value's bytes; none where its file is gone, because the entry has changed since.
    async fn value_bytes(&self, value: Value) -> Result<Option<Bytes>, Status> {
        let file = match value {
            Value::Inline(bytes) => return Ok(Some(bytes)),
            Value::File(file) => file,
        };
        let values = self.values.clone();
        blocking(move || {
            let (mut open, length) = match values.open_blob(file) {
                Ok(opened) => opened,
                Err(evoke_files::BlobError::Missing(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let mut bytes = Vec::with_capacity(length as usize);
            let read = open.read_to_end(&mut bytes);
            read.map_err(|error| Error::internal(format!("cannot read a value of a Dict: {error}")))?;
            Ok(Some(bytes.into()))
        })
        .await
    }

    pub(crate) async fn dict_len(
        self: Arc<Self>,
        _context: CallContext,
        request: api::DictLenRequest,
    ) -> Result<api::DictLenResponse, Status> {
        let dict: DictId = parse_id(&request.dict_id)?;
        let len = self.store.dicts().len(dict, self.now()).await.map_err(stored)?;
        self.last_writes.settled(&self.store, &dict.to_string()).await.map_err(stored)?;
        Ok(api::DictLenResponse { len: len.ok_or_else(|| no_object(dict))? as i32 })
    }

    pub(crate) async fn dict_update(
        self: Arc<Self>,
        context: CallContext,
        request: api::DictUpdateRequest,
    ) -> Result<api::DictUpdateResponse, Status> {
        let dict: DictId = parse_id(&request.dict_id)?;
        let entries = self.dict_entries(request.updates).await?;
        let encode = |created: &Option<bool>| {
            created.map(|created| api::DictUpdateResponse { created }.encode_to_vec())
        };
        let answer = Answer::new(self.keep(&context, encode));
        let if_not_exists = request.if_not_exists;
        let now = self.now();
        let write = DictWrite::Update { dict, entries, if_not_exists, now, answer: answer.clone() };
        self.dict_submit(dict, write).await?;
        let created = answer.take().flatten().ok_or_else(|| no_object(dict))?;
        Ok(api::DictUpdateResponse { created })
    }

    async fn dict_submit(&self, dict: DictId, write: DictWrite) -> Result<(), Status> {
        if self.store.is_saturated() {
            self.store.room().await;
        }
        let tickets = self.last_writes.submit(&self.store, &dict.to_string(), vec![vec![write.into()]]);
        for ticket in tickets {
            ticket.await.map_err(stored)?;
        }
        Ok(())
    }

    /// Entries as they are stored: checked, and large values written to files.
    async fn dict_entries(&self, entries: Vec<api::DictEntry>) -> Result<Vec<DictEntry>, Status> {
        if entries.len() > UPDATE_ENTRIES_MAX {
            return Err(Status::invalid(format!(
                "An update of a Dict has {} entries; at most {UPDATE_ENTRIES_MAX} are allowed. Send them in parts",
                entries.len()
            )));
        }
        let mut total = 0;
        for entry in &entries {
            if entry.key.len() > KEY_BYTES_MAX {
                return Err(too_large("A key of a Dict", entry.key.len(), KEY_BYTES_MAX));
            }
            if entry.value.len() > VALUE_BYTES_MAX {
                return Err(too_large("A value of a Dict", entry.value.len(), VALUE_BYTES_MAX));
            }
            total += entry.value.len();
        }
        let inline = if total > UPDATE_INLINE_BYTES { INLINE_BYTES_MAX_IN_LARGE } else { INLINE_BYTES_MAX };
        let mut files = Vec::new();
        let stored = entries.into_iter().map(|entry| {
            let value = if entry.value.len() > inline {
                let file = BlobId::new(self.now(), &mut *self.entropy());
                files.push((file, entry.value));
                Value::File(file)
            } else {
                Value::Inline(entry.value)
            };
            DictEntry { key: entry.key, value }
        });
        let stored: Vec<_> = stored.collect();
        if !files.is_empty() {
            let since = UnixMs(self.now().0 + WRITING_MS_MAX);
            let announce =
                DictWrite::Announce { files: files.iter().map(|(file, _)| *file).collect(), since };
            self.submit(vec![announce.into()], Grade::Synced).await?;
            let values = self.values.clone();
            blocking(move || {
                let put = |(file, bytes): &(BlobId, Bytes)| values.put(*file, bytes).map(drop);
                files.iter().try_for_each(put).map_err(Error::from)
            })
            .await?;
        }
        Ok(stored)
    }

    pub(crate) async fn dict_pop(
        self: Arc<Self>,
        context: CallContext,
        request: api::DictPopRequest,
    ) -> Result<api::DictPopResponse, Status> {
        let dict: DictId = parse_id(&request.dict_id)?;
        let answer = Answer::new(self.keep(&context, kept_pop));
        let write = DictWrite::Pop { dict, key: request.key, now: self.now(), answer: answer.clone() };
        self.dict_submit(dict, write).await?;
        match answer.take().flatten().ok_or_else(|| no_object(dict))? {
            None => Ok(api::DictPopResponse { found: false, value: None }),
            Some(value) => self.popped(value).await,
        }
    }

    async fn popped(&self, value: Value) -> Result<api::DictPopResponse, Status> {
        let bytes = self.value_bytes(value).await?;
        let bytes = bytes.ok_or_else(|| Status::internal("the file of a popped value is gone"))?;
        Ok(api::DictPopResponse { found: true, value: Some(bytes) })
    }

    /// The answer to a repeated pop, of which a large value was kept as its file only.
    pub(crate) async fn dict_popped_before(&self, kept: Bytes) -> Result<Bytes, Status> {
        let file = wire::field(&kept, FILE_FIELD).and_then(|id| std::str::from_utf8(&id).ok()?.parse().ok());
        match file {
            Some(file) => Ok(self.popped(Value::File(file)).await?.encode_to_vec().into()),
            None => Ok(kept),
        }
    }

    pub(crate) async fn dict_contents(
        self: Arc<Self>,
        request: api::DictContentsRequest,
    ) -> Result<impl Stream<Item = Result<api::DictEntry, Status>> + Send + use<>, Status> {
        let dict: DictId = parse_id(&request.dict_id)?;
        let cursor = self.store.dicts().cursor(dict).await.map_err(stored)?.ok_or_else(|| no_object(dict))?;
        let values = request.values;
        let state = (self, Some(cursor), VecDeque::<DictEntry>::new());
        Ok(try_unfold(state, move |(me, mut cursor, mut ready)| async move {
            loop {
                if let Some(DictEntry { key, value }) = ready.pop_front() {
                    // Keys come with values too: the client names them where a value does not load.
                    let value = if values { me.value_bytes(value).await? } else { Some(Bytes::new()) };
                    // One whose file is gone was replaced or deleted since.
                    let Some(value) = value else { continue };
                    return Ok(Some((api::DictEntry { key, value }, (me, cursor, ready))));
                }
                let Some(at) = cursor.take() else { return Ok(None) };
                let page = me.store.dicts().next(at, values, me.now(), PAGE).await.map_err(stored)?;
                me.last_writes.settled(&me.store, &dict.to_string()).await.map_err(stored)?;
                let Some((entries, next)) = page else { return Ok(None) };
                ready.extend(entries);
                cursor = Some(next);
            }
        }))
    }
}

fn kept_pop(popped: &Option<Option<Value>>) -> Option<Vec<u8>> {
    let mut file = None;
    let value = match popped.as_ref()?.as_ref()? {
        Value::Inline(bytes) => Some(bytes.clone()),
        Value::File(id) => {
            file = Some(id.to_string());
            None
        }
    };
    let mut reply = api::DictPopResponse { found: true, value }.encode_to_vec();
    if let Some(file) = file {
        wire::append(&mut reply, FILE_FIELD, file.as_bytes());
    }
    Some(reply)
}
