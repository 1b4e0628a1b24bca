//! [`Folder`]: where the ranks of a job leave files, for each other or for who has started it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// A new, empty folder; it goes when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// For a job of this name.
    pub fn new(job: &str) -> Result<Folder> {
        let name = format!(
            "phalanx-job-{}-{}",
            std::process::id(),
            job.replace('/', "-")
        );
        let path = std::env::temp_dir().join(name);
        // One of an earlier job of the same name would hold its files.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays among the system's temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}
