//! Where archives lie between runs: files that were opened before the process gave up the file system, one archive in each.
//!
//! A file is mapped while an archive is in use, under a shared lock, and written under an exclusive one. Nobody waits for a
//! lock: another machine's archive of the same kernel is as good, and none at all costs time only. Its header is written last.
//!
//! | bytes | header |
//! |---|---|
//! | 0..8 | `MAGIC` |
//! | 8..16 | identity |
//! | 16..24 | length of what follows the header |
//! | 24..32 | checksum of it |
//! | 32..40 | when it was written: seconds since 1970 |
//!
//! Numbers are little-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use memmap2::Mmap;
use parking_lot::Mutex;

use crate::host_unsafe::map_file;

const MAGIC: [u8; 8] = *b"R3CODE01";
const HEADER_BYTES: usize = 64;
/// What an archive may have at most.
pub const MAX_BYTES: usize = 64 << 20;

/// Files for archives.
#[derive(Debug, Default)]
pub struct Shelf {
    places: Vec<Arc<Place>>,
}

#[derive(Debug)]
struct Place {
    file: File,
    /// Locks of files are the process's, not a thread's: who reads counts here, and who writes holds this.
    nr_readers: Mutex<usize>,
}

/// An archive in its file, which stays as it is until this is dropped.
#[derive(Debug)]
pub struct Found {
    file: Option<Mmap>,
    place: Arc<Place>,
}

impl AsRef<[u8]> for Found {
    fn as_ref(&self) -> &[u8] {
        self.file.as_deref().and_then(|file| file.get(HEADER_BYTES..)).unwrap_or_default()
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        self.file = None;
        self.place.release();
    }
}

impl Place {
    /// Holds the file's shared lock for one more reader. Returns whether it could be had.
    fn hold(&self) -> bool {
        let mut nr_readers = self.nr_readers.lock();
        let is_held = *nr_readers != 0 || self.file.try_lock_shared().is_ok();
        *nr_readers += usize::from(is_held);
        is_held
    }

    fn release(&self) {
        let mut nr_readers = self.nr_readers.lock();
        *nr_readers -= 1;
        if *nr_readers == 0 {
            let _ = self.file.unlock();
        }
    }

    /// The archive of an identity, if it is here and whole.
    fn find(self: &Arc<Self>, identity: u64) -> Option<Found> {
        if !self.hold() {
            return None;
        }
        let mut found = Found { file: None, place: Arc::clone(self) };
        let header = Header::read(&self.file).filter(|header| header.identity == identity)?;
        let file = map_file(&self.file, HEADER_BYTES + usize::try_from(header.len).ok()?).ok()?;
        found.file = Some(file);
        (checksum(found.as_ref()) == header.checksum).then_some(found)
    }

    fn write(&self, identity: u64, body: &[u8]) -> io::Result<()> {
        let nr_readers = self.nr_readers.lock();
        if *nr_readers != 0 {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.file.try_lock()?;
        let written = self.write_locked(identity, body);
        let _ = self.file.unlock();
        written
    }

    fn write_locked(&self, identity: u64, body: &[u8]) -> io::Result<()> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let header = Header { identity, len: body.len() as u64, checksum: checksum(body), time };
        self.file.set_len(0)?;
        self.file.write_all_at(body, HEADER_BYTES as u64)?;
        self.file.write_all_at(&header.to_bytes(), 0)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Header {
    identity: u64,
    len: u64,
    checksum: u64,
    time: u64,
}

impl Header {
    fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let header = Self { identity: word(8)?, len: word(16)?, checksum: word(24)?, time: word(32)? };
        (bytes.starts_with(&MAGIC) && header.len <= MAX_BYTES as u64).then_some(header)
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let words = [u64::from_le_bytes(MAGIC), self.identity, self.len, self.checksum, self.time];
        for (field, word) in bytes.chunks_exact_mut(8).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Of the archive in `file`, if there is one.
    fn read(file: &File) -> Option<Self> {
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).ok()?;
        Self::from_bytes(&bytes)
    }
}

/// Mixes every word in, so that a torn or rotten file is found out. Against an attacker it is no help: see
/// docs/security.md.
pub fn checksum(bytes: &[u8]) -> u64 {
    let mut lanes = [0x9e37_79b9_7f4a_7c15u64, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, bytes.len() as u64];
    let mix = |lane: u64, word: u64| (lane ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let mut chunks = bytes.chunks_exact(32);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
            *lane = mix(*lane, word.try_into().map_or(0, u64::from_le_bytes));
        }
    }
    let rest = chunks.remainder().iter().fold(0, |sum, &byte| mix(sum, u64::from(byte)));
    lanes.into_iter().fold(rest, mix)
}

impl Shelf {
    pub fn new(files: Vec<File>) -> Self {
        let place = |file| Arc::new(Place { file, nr_readers: Mutex::default() });
        Self { places: files.into_iter().map(place).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The archive of an identity, if one is there and whole.
    pub fn find(&self, identity: u64) -> Option<Found> {
        self.places.iter().find_map(|place| place.find(identity))
    }

    /// The archive that was written last, and its identity, if it is whole.
    pub fn newest(&self) -> Option<(u64, Found)> {
        let headers = self.places.iter().filter_map(|place| Header::read(&place.file));
        let identity = headers.max_by_key(|header| header.time)?.identity;
        self.find(identity).map(|found| (identity, found))
    }

    /// Keeps an archive: in the place of that of the same identity, else where none is, else of the oldest.
    ///
    /// # Errors
    /// No file is free, or the host's.
    pub fn keep(&self, identity: u64, body: &[u8]) -> io::Result<()> {
        let place = self.places.iter().min_by_key(|place| match Header::read(&place.file) {
            Some(header) if header.identity == identity => (0, 0),
            None => (1, 0),
            Some(header) => (2, header.time),
        });
        place.ok_or(io::ErrorKind::NotFound)?.write(identity, body)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn shelf(nr_files: usize) -> Shelf {
        let name = |n| std::env::temp_dir().join(format!("ring3-shelf-{}-{n}", std::process::id()));
        let open = |n| {
            let path = name(n);
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
            let _ = std::fs::remove_file(path);
            file
        };
        Shelf::new((0..nr_files).map(|n| open(n).unwrap()).collect())
    }

    fn found(shelf: &Shelf, identity: u64) -> Option<Vec<u8>> {
        shelf.find(identity).map(|found| found.as_ref().to_vec())
    }

    /// The shelf's file, opened anew: its locks are another's.
    fn reopened(shelf: &Shelf) -> File {
        let fd = shelf.places[0].file.as_raw_fd();
        File::options().read(true).write(true).open(format!("/proc/self/fd/{fd}")).unwrap()
    }

    #[test]
    fn test_an_archive_comes_back_as_it_was_kept() {
        let shelf = shelf(2);
        assert_eq!(found(&shelf, 7), None);
        shelf.keep(7, b"seven").unwrap();
        assert_eq!(shelf.newest().map(|(identity, _)| identity), Some(7));
        shelf.keep(8, &[8; 100_000]).unwrap();
        assert_eq!(found(&shelf, 7).as_deref(), Some(&b"seven"[..]));
        assert_eq!(found(&shelf, 8), Some(vec![8; 100_000]));
        shelf.keep(7, b"another seven").unwrap();
        assert_eq!(found(&shelf, 7).as_deref(), Some(&b"another seven"[..]), "in the place of the first");
        assert!(shelf.find(8).is_some());
        shelf.keep(9, b"nine").unwrap();
        assert_eq!(found(&shelf, 9).as_deref(), Some(&b"nine"[..]), "in the place of one of the others");
    }

    #[test]
    fn test_an_archive_in_use_stays_as_it_is() {
        let shelf = shelf(1);
        shelf.keep(7, b"seven").unwrap();
        let (first, second) = (shelf.find(7).unwrap(), shelf.find(7).unwrap());
        drop(first);
        assert!(shelf.keep(7, b"x").is_err(), "the second is in use");
        let other = Shelf::new(vec![reopened(&shelf)]);
        assert!(other.find(7).is_some(), "another process reads it, too");
        assert!(other.keep(7, b"x").is_err(), "but does not write");
        assert_eq!(second.as_ref(), b"seven");
        drop(second);
        other.keep(7, b"nobody's").unwrap();
        assert_eq!(found(&shelf, 7).as_deref(), Some(&b"nobody's"[..]));
    }

    #[test]
    fn test_what_is_torn_or_rotten_is_not_found() {
        let shelf = shelf(1);
        shelf.keep(7, &[1; 1000]).unwrap();
        shelf.places[0].file.write_all_at(&[2], 500).unwrap();
        assert_eq!(found(&shelf, 7), None, "a byte changed");
        shelf.keep(7, &[1; 1000]).unwrap();
        shelf.places[0].file.set_len(800).unwrap();
        assert_eq!(found(&shelf, 7), None, "too short");
        shelf.places[0].file.set_len(0).unwrap();
        assert_eq!(found(&shelf, 7), None, "empty");
        assert!(Shelf::default().keep(7, b"x").is_err(), "no file");
        assert!(Shelf::default().newest().is_none());
    }
}
