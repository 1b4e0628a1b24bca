//! Compiled kernels on disk, so that a program compiles each of them once on a machine. This is the
//! one file of the crate that reads environment variables:
//!
//! - `PHALANX_KERNEL_CACHE`: the folder; empty for none.
//! - else `XDG_CACHE_HOME`, or `HOME` with `.cache`: there `phalanx/kernels`.
//!
//! A file's name holds all that decides on its contents: the kernels' name and types, the
//! architecture, a hash of source and options, NVRTC's version. It appears under that name only when
//! it is complete, so any number of processes may start at once. It starts with the hash of what
//! follows, and one that does not fit is taken for none: the driver is never given a broken image.

use super::compile::{Image, Target};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::{env, fs, io, process};

/// What decides on the contents of a file.
#[derive(Debug)]
pub(crate) struct Key {
    /// The name but for NVRTC's version.
    stem: String,
    /// NVRTC's version; `None` for any.
    version: Option<(i32, i32)>,
    extension: &'static str,
}

impl Key {
    pub(super) fn new(
        name: String,
        target: Target,
        texts: &[&str],
        version: Option<(i32, i32)>,
    ) -> Key {
        let mut hasher = Sha256::new();
        for text in texts {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        let mut stem = format!("{name}-{}-", target.architecture());
        for byte in &hasher.finalize()[..16] {
            // Writing to a string does not fail.
            let _ = write!(stem, "{byte:02x}");
        }
        stem.push_str("-nvrtc");
        Key {
            stem,
            version,
            extension: target.extension(),
        }
    }

    fn file(&self) -> Option<String> {
        let (major, minor) = self.version?;
        Some(format!("{}{major}.{minor}.{}", self.stem, self.extension))
    }
}

/// A folder of compiled kernels.
#[derive(Debug)]
pub(crate) struct Cache(PathBuf);

impl Cache {
    /// The user's folder, if there is one.
    pub(super) fn of_user() -> Option<Cache> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let folder = match env::var_os("PHALANX_KERNEL_CACHE") {
            Some(folder) if folder.is_empty() => return None,
            Some(folder) => folder.into(),
            None => {
                let caches = set("XDG_CACHE_HOME").map(PathBuf::from);
                let home = || set("HOME").map(|home| Path::new(&home).join(".cache"));
                caches.or_else(home)?.join("phalanx").join("kernels")
            }
        };
        Some(Cache(folder))
    }

    /// The folder `folder`.
    pub(crate) fn at(folder: &Path) -> Cache {
        Cache(folder.into())
    }

    pub(super) fn load(&self, key: &Key) -> Option<Image> {
        whole(fs::read(self.0.join(key.file()?)).ok()?)
    }

    /// As [`load`](Cache::load), of the latest version of NVRTC whose code a driver of the CUDA version
    /// `major` takes.
    pub(super) fn load_any(&self, key: &Key, major: i32) -> Option<Image> {
        let files = fs::read_dir(&self.0).ok()?;
        let of_key = |file: io::Result<fs::DirEntry>| {
            let file = file.ok()?;
            let name = file.file_name().into_string().ok()?;
            let version = name.strip_prefix(&key.stem)?.strip_suffix(key.extension)?;
            let (of, minor) = version.strip_suffix('.')?.split_once('.')?;
            let version: (i32, i32) = (of.parse().ok()?, minor.parse().ok()?);
            (version.0 <= major).then(|| (version, file.path()))
        };
        let (_, file) = files.filter_map(of_key).max()?;
        whole(fs::read(file).ok()?)
    }

    /// Writes a file that appears when it is complete.
    pub(crate) fn store(&self, key: &Key, image: &Image) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let Some(name) = key.file() else {
            return Ok(());
        };
        fs::create_dir_all(&self.0)?;
        let count = COUNT.fetch_add(1, Relaxed);
        // Processes on other hosts may share the folder and have this one's number.
        let random = RandomState::new().build_hasher().finish();
        let part = self
            .0
            .join(format!(".{name}.{}.{count}.{random:x}", process::id()));
        let write = || {
            let mut file = fs::File::create_new(&part)?;
            file.write_all(&Sha256::digest(image.bytes()))?;
            file.write_all(image.bytes())?;
            file.sync_all()?;
            fs::rename(&part, self.0.join(name))
        };
        let written = write();
        if written.is_err() {
            // What is left of it takes room, and nothing else.
            let _ = fs::remove_file(&part);
        }
        written
    }
}

/// The image of a file, where it is the one that was written.
fn whole(mut bytes: Vec<u8>) -> Option<Image> {
    let (hash, image) = bytes.split_at_checked(32)?;
    if image.is_empty() || Sha256::digest(image).as_slice() != hash {
        return None;
    }
    bytes.drain(..32);
    Some(Image::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_takes_the_latest_code_that_it_can_read() -> io::Result<()> {
        let folder = env::temp_dir().join(format!("phalanx-cache-{}", process::id()));
        let cache = Cache::at(&folder);
        let key = |version| Key::new("add".into(), Target::Ptx, &["source"], version);
        for (version, bytes) in [
            ((12, 8), b"a"),
            ((13, 0), b"b"),
            ((13, 1), b"c"),
            ((14, 0), b"d"),
        ] {
            cache.store(&key(Some(version)), &Image::new(bytes.to_vec()))?;
        }
        let found = |major| Some(cache.load_any(&key(None), major)?.bytes().to_vec());
        let taken = [11, 12, 13, 14].map(found);
        fs::remove_dir_all(&folder)?;
        assert_eq!(
            taken,
            [
                None,
                Some(b"a".to_vec()),
                Some(b"c".to_vec()),
                Some(b"d".to_vec())
            ]
        );
        Ok(())
    }
}
