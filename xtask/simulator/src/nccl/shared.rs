//! What ranks in several processes say to each other: files in shared memory, in a folder for each id of
//! `ncclGetUniqueId`.
//!
//! A file appears under its name in one step, and whole. What is meant for a process has its name in it, and that process
//! removes it when it has read it. The last rank that leaves removes the folder; what killed processes have left is
//! removed when the next id is made.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What the names of all folders begin with.
pub const PREFIX: &str = "phalanx-";

/// The folder of an id.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// Where folders lie: in memory, where the system has such a place.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => memory.to_owned(),
        false => std::env::temp_dir(),
    }
}

/// A name without what a file's name cannot have.
fn flat(name: &str) -> String {
    name.replace('/', "+")
}

impl Folder {
    /// The folder of an id, or of a communicator that came from it.
    pub fn of(name: &str) -> Folder {
        let id = name.split(['/', '.']).next().unwrap_or(name);
        Folder(place().join(id))
    }

    /// Publishes the record of a rank that joins, and makes the folder unless it is there.
    ///
    /// # Errors
    /// As [`publish`](Folder::publish).
    pub fn join(&self, name: &str, record: &[u8]) -> io::Result<()> {
        let names = [name.to_owned()];
        loop {
            // Who had joined before may leave just now, be the last one, and remove the folder: between any two steps.
            match fs::create_dir_all(&self.0) {
                Err(error) if is_taken(&error) => continue,
                made => made?,
            }
            match self.publish(&names, record) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                published => return published,
            }
        }
    }

    /// Publishes bytes under some names at once; the names are new.
    ///
    /// # Errors
    /// A name is there already (`AlreadyExists`), or the system's error.
    pub fn publish(&self, names: &[String], bytes: &[u8]) -> io::Result<()> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let draft = self
            .0
            .join(format!("draft-{}-{number}", std::process::id()));
        fs::write(&draft, bytes)?;
        let mut linked = names
            .iter()
            .map(|name| fs::hard_link(&draft, self.0.join(flat(name))));
        let outcome = linked.find(|linked| linked.is_err()).unwrap_or(Ok(()));
        let _ = fs::remove_file(&draft);
        outcome
    }

    /// The bytes under a name, if they are there.
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.0.join(flat(name))).ok()
    }

    /// The bytes under a name, if they are there, which are then gone.
    pub fn take(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.0.join(flat(name));
        let bytes = fs::read(&path).ok()?;
        let _ = fs::remove_file(path);
        Some(bytes)
    }

    /// Notes that the one who published `name` has left; removes the folder if all have.
    pub fn leave(&self, name: &str) {
        if !self.0.is_dir() {
            return;
        }
        let _ = self.publish(&[left(name)], &[]);
        let names = self.names();
        let mut joined = names.iter().filter(|name| name.starts_with(JOIN));
        if joined.all(|name| names.contains(&left(name))) {
            self.remove();
        }
    }

    /// Removes the folder.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }

    fn names(&self) -> HashSet<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.collect()
    }
}

/// What the names of the records of ranks begin with.
pub const JOIN: &str = "join-";

fn left(name: &str) -> String {
    format!("left-{}", flat(name))
}

/// Removes the folders of processes that are gone.
pub fn sweep() {
    let is_gone = |process: &str| {
        process.parse::<u32>().is_ok() && !Path::new("/proc").join(process).exists()
    };
    for entry in fs::read_dir(place()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let maker = rest.and_then(|rest| rest.split('-').next());
        if !Path::new("/proc/self").exists() || !maker.is_some_and(is_gone) {
            continue;
        }
        let folder = Folder(entry.path());
        let names = folder.names();
        let mut joined = names.iter().filter(|name| name.starts_with(JOIN));
        // The process stands first in a record.
        let all_gone = joined.all(|name| {
            let record = folder.read(name).unwrap_or_default();
            let record = String::from_utf8_lossy(&record);
            record.split(' ').next().is_some_and(is_gone)
        });
        if all_gone {
            folder.remove();
        }
    }
}

/// Whether an error says that a name is taken.
pub fn is_taken(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AlreadyExists
}
