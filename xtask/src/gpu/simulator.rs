//! The simulated device: it is built, stands in a folder under the names of the driver, and what it has found is read.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::nvrtc::Nvrtc;
use crate::cargo::{artifacts, cargo, root};

/// The names that it has for the programs: those of the driver, of cuBLASLt and of NCCL.
const NAMES: &[&str] = &[
    "libcuda.so",
    "libcuda.so.1",
    "libcublasLt.so",
    "libnccl.so.2",
    "libnccl.so",
];

/// Why it cannot run here, apart from NVRTC, if it cannot.
pub fn obstacle() -> Option<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Some("the simulated device runs on x86-64 Linux alone".to_owned());
    }
    let compiler = Command::new("g++").arg("--version").output();
    (!compiler.is_ok_and(|output| output.status.success()))
        .then(|| "there is no g++, by which the simulated device compiles kernels".to_owned())
}

/// So many simulated GPUs.
pub struct Simulator {
    pub gpus: usize,
    /// Whether they look for races in global memory.
    pub checks: bool,
    folder: PathBuf,
    /// Where the programs of this process report findings.
    findings: PathBuf,
}

impl Simulator {
    /// Builds it.
    ///
    /// # Errors
    /// It does not build, or a folder cannot be written.
    pub fn build(gpus: usize) -> Result<Simulator> {
        let library = built()?;
        let folder = root().join("target/simulator");
        fs::create_dir_all(&folder)?;
        for name in NAMES {
            // A link appears in one step: another process may be starting a program.
            let draft = folder.join(format!(".{name}-{}", std::process::id()));
            let _ = fs::remove_file(&draft);
            symlink(&library, &draft)?;
            fs::rename(&draft, folder.join(name))?;
        }
        let findings = folder.join(format!("findings-{}", std::process::id()));
        // One that an earlier process of the same number has left.
        let _ = fs::remove_file(&findings);
        Ok(Simulator {
            gpus,
            checks: false,
            folder,
            findings,
        })
    }

    /// The same, looking for races in global memory.
    pub fn checking(self) -> Simulator {
        Simulator {
            checks: true,
            ..self
        }
    }

    /// The same for programs that run beside others: what these find is kept apart. `number` tells it from other ones.
    pub fn beside(&self, number: usize) -> Simulator {
        let mut findings = self.findings.clone().into_os_string();
        findings.push(format!("-{number}"));
        let _ = fs::remove_file(&findings);
        Simulator {
            folder: self.folder.clone(),
            findings: findings.into(),
            ..*self
        }
    }

    /// The folder that has it under the driver's names.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a program finds in its environment: the folders of libraries, of which `nvrtc` is one, and the settings.
    pub fn environment(&self, seed: u64, nvrtc: Option<&Path>) -> Vec<(&'static str, OsString)> {
        vec![
            ("LD_LIBRARY_PATH", search([Some(&*self.folder), nvrtc])),
            ("PHALANX_SIMULATOR_GPUS", self.gpus.to_string().into()),
            ("PHALANX_SIMULATOR_SEED", seed.to_string().into()),
            // A card so small that what is made for more than it runs at once goes on in turns.
            ("PHALANX_SIMULATOR_BLOCKS", "1".into()),
            (
                "PHALANX_SIMULATOR_CHECK",
                u8::from(self.checks).to_string().into(),
            ),
            ("PHALANX_SIMULATOR_REPORT", self.findings.clone().into()),
            (
                "PHALANX_SIMULATOR_CACHE",
                self.folder.join("modules").into(),
            ),
        ]
    }

    /// Takes what has been found since the last call.
    pub fn findings(&self) -> Vec<String> {
        let text = fs::read(&self.findings).unwrap_or_default();
        let _ = fs::remove_file(&self.findings);
        let text = String::from_utf8_lossy(&text);
        text.lines().map(str::to_owned).collect()
    }
}

/// Where the loader looks: these folders, then those that the environment names.
pub fn search<'a>(folders: impl IntoIterator<Item = Option<&'a Path>>) -> OsString {
    let theirs = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let theirs: Vec<_> = std::env::split_paths(&theirs).collect();
    let ours = folders.into_iter().flatten().map(Path::to_owned);
    let all = ours
        .chain(theirs)
        .filter(|folder| !folder.as_os_str().is_empty());
    // A folder with a colon in its name cannot be named there.
    std::env::join_paths(all).unwrap_or_default()
}

/// The library, built.
fn built() -> Result<PathBuf> {
    // With a test of it, as the tests of the workspace build it: by itself it would have other features, and be built once
    // more.
    let mut build = cargo([
        "test",
        "--no-run",
        "--quiet",
        "--workspace",
        "--test=nccl_calls",
    ]);
    let artifacts = artifacts(&mut build)?;
    let library = artifacts.iter().find_map(|artifact| {
        let files = artifact["filenames"].as_array()?.iter();
        let mut files = files.filter_map(|file| Some(PathBuf::from(file.as_str()?)));
        files.find(|file| file.ends_with("libsimulator.so"))
    });
    library.context("the build of the simulated device made no libsimulator.so")
}

/// NVRTC for it and all else that it needs; or why it cannot run here.
pub fn nvrtc() -> Result<Nvrtc, String> {
    obstacle().map_or_else(Nvrtc::find, Err)
}
