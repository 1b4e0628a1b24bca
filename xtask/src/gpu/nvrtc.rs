//! NVRTC, the compiler of kernels: the one that is installed, or else the one of a Python package, which is fetched
//! once into `target/cuda`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cards::{Library, nvrtc_version};
use crate::cargo::root;
use crate::lines::report;

/// What is fetched: a version, and the hash of its package for x86-64 Linux.
const VERSION: &str = "13.0.88";
const HASH: &str = "sha256:ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575";
/// The names under which programs look for it.
const NAMES: &[&str] = &["libnvrtc.so", "libnvrtc.so.13"];
/// Where CUDA's own installer puts it, which the loader does not always know.
const INSTALLED: &str = "/usr/local/cuda/lib64";

/// An NVRTC that loads.
pub struct Nvrtc {
    /// The folder that the loader must be told of; `None` where it finds NVRTC by itself.
    pub folder: Option<PathBuf>,
    version: (i32, i32),
}

impl Nvrtc {
    /// The one that is here, or fetches one; or why there is none.
    pub fn find() -> Result<Nvrtc, String> {
        let fetched = root().join("target/cuda").join(format!("nvrtc-{VERSION}"));
        Nvrtc::load(None)
            .or_else(|| Nvrtc::load(Some(Path::new(INSTALLED))))
            .or_else(|| Nvrtc::load(Some(&fetched)))
            .map_or_else(|| fetch(&fetched), Ok)
    }

    /// `NVRTC 13.0`.
    pub fn name(&self) -> String {
        let (major, minor) = self.version;
        format!("NVRTC {major}.{minor}")
    }

    fn load(folder: Option<&Path>) -> Option<Nvrtc> {
        let path = |name| folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        let version = NAMES
            .iter()
            .find_map(|name| nvrtc_version(&Library::open(path(name))?))?;
        Some(Nvrtc {
            folder: folder.map(Path::to_owned),
            version,
        })
    }
}

impl fmt::Display for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        match &self.folder {
            Some(folder) => write!(f, " of {}", folder.display()),
            None => write!(f, ", which is installed"),
        }
    }
}

/// A folder that is removed in the end.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // What is left of it takes room, and nothing else.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Fetches the package into a folder of this process's own, and moves its libraries to `into` in one step, so any
/// number of processes may do this at once.
fn fetch(into: &Path) -> Result<Nvrtc, String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Err("NVRTC is not installed, and is fetched for x86-64 Linux alone".to_owned());
    }
    let parent = into.parent().unwrap_or(into);
    let draft = Draft(parent.join(format!("draft-{}", std::process::id())));
    let failed = |error| format!("{}: {error}", draft.0.display());
    fs::create_dir_all(&draft.0).map_err(failed)?;
    // It takes a while. Where the line cannot be written, nobody waits.
    let _ = report(format_args!("NVRTC {VERSION} is fetched (90 MB)"));
    let requirements = draft.0.join("requirements.txt");
    let requirement = format!("nvidia-cuda-nvrtc=={VERSION} --hash={HASH}\n");
    fs::write(&requirements, requirement).map_err(failed)?;
    let python = draft.0.join("python");
    step(Command::new("python3").args(["-m", "venv"]).arg(&python))?;
    let mut install = Command::new(python.join("bin/pip"));
    install.args(["install", "--quiet", "--no-deps", "--require-hashes"]);
    install.args(["--only-binary=:all:", "--no-cache-dir", "--retries=2"]);
    install.args(["--disable-pip-version-check", "--requirement"]);
    step(install.arg(&requirements))?;
    let folder = libraries(&python).ok_or("the package of NVRTC holds no library")?;
    // Where another process was first, its folder stays.
    if let Err(error) = fs::rename(folder, into)
        && !into.is_dir()
    {
        return Err(failed(error));
    }
    Nvrtc::load(Some(into)).ok_or_else(|| {
        format!(
            "the NVRTC that was fetched does not load: {}",
            into.display()
        )
    })
}

/// Runs a program silently; its failure is the reason why there is no NVRTC.
fn step(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let name = Path::new(&program).file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    let output = command
        .output()
        .map_err(|error| format!("NVRTC is not installed, and {name} does not start: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    Err(format!(
        "NVRTC is not installed, and fetching it failed: {name}: {}",
        last.unwrap_or("it does not say why").trim()
    ))
}

/// The folder of libraries in a Python environment.
fn libraries(python: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(python.join("lib")).ok()?.flatten();
    versions
        .map(|version| version.path().join("site-packages/nvidia/cu13/lib"))
        .find(|folder| folder.is_dir())
}
