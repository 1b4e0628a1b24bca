//! Writes files that are complete or not there, whoever else writes to the same path.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many names for the file beside are tried. Another host on the same file system may have this
/// process's number and have left such files; so many it has not.
const TRIES: usize = 1000;

/// Puts `bytes` at `path`: written beside, under a name that no other writer has, brought to the disk
/// and renamed. Where that fails, nothing is left over.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (mut file, beside) = create_beside(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    drop(file);
    written
        .and_then(|()| fs::rename(&beside, path))
        .inspect_err(|_| {
            // Why the write failed matters more than why its remains cannot be removed.
            _ = fs::remove_file(&beside);
        })
}

/// A new file in the folder of `path`: only there can it be renamed to `path`. The name does not
/// contain that of `path`, which may be as long as a name can be.
fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    // One process has many ranks: its number does not tell them apart. Decides no result.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let mut tried = 0;
    loop {
        let number = WRITES.fetch_add(1, Relaxed);
        let name = format!("phalanx-{}-{number}.partial", std::process::id());
        let beside = path.with_file_name(name);
        match File::create_new(&beside) {
            Ok(file) => return Ok((file, beside)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && tried < TRIES => tried += 1,
            Err(error) => return Err(error),
        }
    }
}
