//! A copy of the workspace in which mistakes are made, and the tests of cards that are built and run there. The copy
//! has a target folder of its own and no optimisation, so that a change costs seconds. What is added to it asks the
//! environment which mistake to make.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{kernel, switch};
use crate::cargo::{cargo, root};
use crate::job::{MARK, kill};

/// What its builds are like.
const CONFIG: &[&str] = &[
    "profile.dev.debug=0",
    "profile.dev.package.phalanx-tensor.opt-level=0",
    "profile.dev.package.half.opt-level=0",
];

/// The copy.
pub struct Tree {
    folder: PathBuf,
}

/// What came of a build.
pub enum Built {
    Program(PathBuf),
    /// The files and lines that do not compile.
    Faults(Vec<(String, usize)>),
}

/// How a run of the tests ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All passed.
    Passed,
    /// This test failed.
    Failed(String),
    /// A kernel does not compile.
    Refused,
    /// The time was over.
    Late,
    /// The program died.
    Died,
}

impl Tree {
    /// Makes the copy alike to the workspace, as it lies on disk, but for the two files that ask which mistake to make.
    ///
    /// # Errors
    /// Git does not list the files, or one cannot be copied.
    pub fn copy() -> Result<Tree> {
        let folder = root().join("target/mutants/tree");
        let list = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(root())
            .output()
            .context("cannot start git")?;
        ensure!(list.status.success(), "git cannot list the files");
        let names = String::from_utf8(list.stdout)?;
        let names: HashSet<&str> = names.split_terminator('\0').collect();
        for name in &names {
            let Ok(mut bytes) = fs::read(root().join(name)) else {
                continue;
            };
            if *name == kernel::TEXTS {
                bytes = kernel::with_changed_text(&bytes)?;
            } else if *name == switch::LIBRARY {
                bytes.extend(switch::PICK.bytes());
            }
            let to = folder.join(name);
            // What is alike keeps its time, so that cargo does not build it again.
            if fs::read(&to).is_ok_and(|old| old == bytes) {
                continue;
            }
            fs::create_dir_all(to.parent().unwrap_or(&folder))?;
            fs::write(to, bytes)?;
        }
        remove_others(&folder, &folder, &names)?;
        Ok(Tree { folder })
    }

    /// The text of a file of the copy: the workspace may change meanwhile.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.folder.join(name)).with_context(|| name.to_owned())
    }

    /// Writes a file of the copy.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join(name), text).with_context(|| name.to_owned())
    }

    /// Builds the tests of cards.
    ///
    /// # Errors
    /// Cargo does not start, or fails and names no line.
    pub fn build(&self) -> Result<Built> {
        let mut build = cargo(["test", "--no-run", "--quiet", "--package", "phalanx-tensor"]);
        build.args(["--features", "cuda", "--test=cuda", "--target-dir"]);
        build.arg(root().join("target/mutants/target"));
        build.arg("--message-format=json");
        for config in CONFIG {
            build.args(["--config", config]);
        }
        // A change leaves something without a use, and that is no news.
        build.env("RUSTFLAGS", "-Awarnings");
        // It is built again after each change, also where nothing else is.
        build.env("CARGO_INCREMENTAL", "1");
        let output = build.current_dir(&self.folder).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let messages = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let messages: Vec<Value> = messages.collect();
        let program = messages
            .iter()
            .filter(|message| message["target"]["name"] == "cuda")
            .find_map(|message| message["executable"].as_str());
        if let (true, Some(program)) = (output.status.success(), program) {
            return Ok(Built::Program(program.into()));
        }
        let errors = messages.iter().map(|message| &message["message"]);
        let errors = errors.filter(|message| message["level"] == "error");
        let spans = errors
            .filter_map(|message| message["spans"].as_array())
            .flatten();
        let place = |span: &Value| {
            let line = span["line_start"].as_u64()?;
            Some((span["file_name"].as_str()?.to_owned(), line as usize))
        };
        let faults: Vec<_> = spans
            .filter(|span| span["is_primary"] == true)
            .filter_map(place)
            .collect();
        ensure!(
            !faults.is_empty(),
            "the tests do not build, for no line of theirs: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Built::Faults(faults))
    }
}

/// Removes the files of `folder` that are none of `names`.
fn remove_others(folder: &Path, whole: &Path, names: &HashSet<&str>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, whole, names)?;
        } else {
            let name = path.strip_prefix(whole)?.to_str();
            if !name.is_some_and(|name| names.contains(name)) {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

fn forward(stream: Option<impl Read + Send + 'static>, to: Sender<String>) {
    let Some(stream) = stream else { return };
    thread::spawn(move || {
        let lines = BufReader::new(stream).split(b'\n').map_while(Result::ok);
        for line in lines {
            if to
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                break;
            }
        }
    });
}

/// Runs a test program until something is wrong, for `limit` at most.
///
/// # Errors
/// It does not start.
pub fn run(command: &mut Command, limit: Duration) -> Result<Outcome> {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let mark = format!(
        "mutants-{}-{}",
        std::process::id(),
        RUNS.fetch_add(1, Relaxed)
    );
    let mut child = command
        .arg("--nocapture")
        .env(MARK, &mark)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (to, lines) = channel();
    forward(child.stdout.take(), to.clone());
    forward(child.stderr.take(), to);
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let outcome = match lines.recv_timeout(left) {
            Ok(line) => match judge(&line) {
                Some(outcome) => outcome,
                None => continue,
            },
            Err(RecvTimeoutError::Timeout) => Outcome::Late,
            // It has closed its streams: it is about to end, or has.
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(match child.wait()?.success() {
                    true => Outcome::Passed,
                    false => Outcome::Died,
                });
            }
        };
        stop(child, &mark);
        return Ok(outcome);
    }
}

/// Ends a program and those that its tests have started: what one of them found would be taken for the next one's.
fn stop(mut child: Child, mark: &str) {
    // Where it has ended by itself there is nothing to stop.
    let _ = child.kill();
    let _ = child.wait();
    kill(|other| other == mark);
}

/// What a line of a test program says of its end.
fn judge(line: &str) -> Option<Outcome> {
    if line.contains("NVRTC does not compile") {
        return Some(Outcome::Refused);
    }
    let test = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
    Some(Outcome::Failed(test.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: u64) -> Outcome {
        let mut command = Command::new("sh");
        // `--nocapture` becomes an argument of the script.
        command.args(["-c", script, "sh"]);
        run(&mut command, Duration::from_millis(limit)).unwrap()
    }

    #[test]
    fn a_run_ends_at_the_first_fault() {
        assert_eq!(shell("echo test a ... ok", 5000), Outcome::Passed);
        assert_eq!(
            shell("echo test a ... FAILED; sleep 60", 5000),
            Outcome::Failed("a".into())
        );
        let refused = "echo error: NVRTC does not compile fill-f32 >&2; sleep 60";
        assert_eq!(shell(refused, 5000), Outcome::Refused);
        assert_eq!(shell("exec sleep 60", 100), Outcome::Late);
        assert_eq!(shell("exit 3", 5000), Outcome::Died);
    }

    #[test]
    fn nothing_of_a_run_goes_on() {
        let file = std::env::temp_dir().join(format!("phalanx-left-{}", std::process::id()));
        let script = format!(
            "(sleep 1; touch {}) & echo test a ... FAILED; wait",
            file.display()
        );
        assert_eq!(shell(&script, 5000), Outcome::Failed("a".into()));
        thread::sleep(Duration::from_millis(1500));
        assert!(!file.exists(), "what the program had started went on");
    }
}
