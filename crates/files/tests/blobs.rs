//! Payloads: sent at once or in parts, checked, finished once, and resumed after a restart.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use evoke_core::{BlobId, SystemClock, UnixMs};
use evoke_files::{BlobError, BlobSpec, BlobStore, BodyMd5, ContentHash, ObjectStore};
use md5::{Digest, Md5};
use std::{io::Read, os::unix::fs::FileExt, path::Path, sync::Arc};

fn store(root: &Path) -> BlobStore {
    BlobStore::open(root, Arc::new(SystemClock)).unwrap()
}

fn spec(body: &[u8], part_length: Option<u64>) -> BlobSpec {
    BlobSpec {
        length: body.len() as u64,
        md5: Some(BodyMd5(Md5::digest(body).into())),
        sha256: Some(ContentHash::of(body)),
        part_length,
    }
}

fn send(store: &BlobStore, id: BlobId, number: u32, body: &[u8]) -> Result<BodyMd5, BlobError> {
    let mut writer = store.write_part(id, number)?;
    for chunk in body.chunks(7) {
        writer.write(chunk)?;
    }
    writer.finish()
}

fn read(store: &BlobStore, id: BlobId) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.open_blob(id).unwrap().0.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_body_sent_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let id = BlobId::from_bits(7);
    let body = b"some payload".as_slice();
    store.create(id, spec(body, None)).unwrap();
    assert!(matches!(store.open_blob(id), Err(BlobError::Missing(_))));
    assert!(matches!(store.complete(id), Err(BlobError::PartMissing { .. })));
    let etag = send(&store, id, 1, body).unwrap().to_hex();
    let finished = store.complete(id).unwrap();
    assert_eq!((finished.length, &finished.etag), (12, &etag));
    assert_eq!(finished.sha256, ContentHash::of(body).to_hex());
    assert_eq!(store.complete(id).unwrap(), finished, "a repeated request gets the same answer");
    assert_eq!(read(&store, id), body);
    let (file, length) = store.open_blob(id).unwrap();
    let mut middle = [0; 7];
    file.read_exact_at(&mut middle, 5).unwrap();
    assert_eq!((&middle, length), (b"payload", 12));
    assert_eq!(std::fs::read_dir(folder.path().join("uploads")).unwrap().count(), 0);

    let objects = ObjectStore::open(&folder.path().join("objects"), Arc::new(SystemClock)).unwrap();
    objects.adopt(ContentHash::of(body), &store.path_of(id)).unwrap();
    store.delete(id).unwrap();
    store.delete(id).unwrap();
    assert!(matches!(store.size(id), Err(BlobError::Missing(_))));
    objects.open_verified(ContentHash::of(body)).unwrap();
}

#[test]
fn a_body_in_parts_out_of_order_and_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let id = BlobId::from_bits(8);
    let body: Vec<u8> = (0..=255).collect();
    let first = store(folder.path());
    first.create(id, BlobSpec { md5: None, ..spec(&body, Some(100)) }).unwrap();
    send(&first, id, 3, &body[200..]).unwrap();
    send(&first, id, 1, &body[..100]).unwrap();
    drop(first);
    let second = store(folder.path());
    assert!(matches!(second.complete(id), Err(BlobError::PartMissing { number: 2, .. })));
    assert!(matches!(second.write_part(id, 4), Err(BlobError::NoSuchPart { .. })));
    assert!(matches!(second.write_part(id, 0), Err(BlobError::NoSuchPart { .. })));
    send(&second, id, 2, &body[100..200]).unwrap();
    let finished = second.complete(id).unwrap();
    let mut md5 = Md5::new();
    for part in [&body[..100], &body[100..200], &body[200..]] {
        md5.update(Md5::digest(part));
    }
    let wanted: String = md5.finalize().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(finished.etag, format!("{wanted}-3"));
    assert_eq!(read(&second, id), body);
}

#[test]
fn what_is_not_as_announced_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let id = BlobId::from_bits(9);
    store.create(id, spec(b"abc", None)).unwrap();
    assert!(matches!(send(&store, id, 1, b"ab"), Err(BlobError::Length { got: 2, .. })));
    assert!(matches!(send(&store, id, 1, b"abcd"), Err(BlobError::Length { got: 4, .. })));
    assert!(matches!(send(&store, id, 1, b"abd"), Err(BlobError::WrongHash { what: "MD5", .. })));
    // The placeholder stands for "not computed"; then the SHA-256 catches it.
    let placeholder = "baadbaadbaadbaadbaadbaadbaadbaad".parse().ok();
    store.create(id, BlobSpec { md5: placeholder, ..spec(b"abc", None) }).unwrap();
    send(&store, id, 1, b"abd").unwrap();
    assert!(matches!(store.complete(id), Err(BlobError::WrongHash { what: "SHA-256", .. })));
    send(&store, id, 1, b"abc").unwrap();
    store.complete(id).unwrap();
    let huge = BlobSpec { length: u64::MAX, ..spec(b"", Some(1)) };
    assert!(matches!(store.create(BlobId::from_bits(10), huge), Err(BlobError::Parts { .. })));
}

#[test]
fn an_older_writer_cannot_touch_what_a_later_one_sent() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let id = BlobId::from_bits(11);
    store.create(id, spec(b"new", None)).unwrap();
    let mut old = store.write_part(id, 1).unwrap();
    old.write(b"o").unwrap();
    send(&store, id, 1, b"new").unwrap();
    assert!(matches!(old.write(b"ld"), Err(BlobError::Replaced { .. })));
    store.complete(id).unwrap();
    assert_eq!(read(&store, id), b"new");
}

#[test]
fn an_empty_body_and_abandoned_uploads() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let (empty, abandoned) = (BlobId::from_bits(12), BlobId::from_bits(13));
    for part_length in [None, Some(8)] {
        store.create(empty, spec(b"", part_length)).unwrap();
        send(&store, empty, 1, b"").unwrap();
        assert_eq!(store.complete(empty).unwrap().length, 0);
        store.delete(empty).unwrap();
    }
    store.create(abandoned, spec(b"abc", None)).unwrap();
    let now = evoke_core::Clock::now(&SystemClock);
    assert_eq!(store.sweep_uploads(now, 60_000).unwrap(), 0);
    assert_eq!(store.sweep_uploads(UnixMs(now.0 + 61_000), 60_000).unwrap(), 1);
    assert!(matches!(store.write_part(abandoned, 1), Err(BlobError::Missing(_))));
    assert_eq!(std::fs::read_dir(folder.path().join("uploads")).unwrap().count(), 0);
    assert_eq!(store.put(empty, b"server-made").unwrap().length, 11);
    assert_eq!(read(&store, empty), b"server-made");
}
