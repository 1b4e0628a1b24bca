//! What this machine has: an MPI to build for and to start, and cores, which chores share out.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{env, fs, thread};

use anyhow::Result;

/// Why there is no MPI here to build for and to start, if there is none.
pub fn obstacle() -> Option<String> {
    let version = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let there_is_no = |what: &str| {
        let packages = "Debian: libopenmpi-dev openmpi-bin libclang-dev";
        Some(format!("there is no {what} ({packages})"))
    };
    match (
        version("mpirun", "--version"),
        version("mpicc", "--version"),
    ) {
        (Err(_), _) => there_is_no("mpirun"),
        (Ok(text), _) if !text.contains("Open MPI") => Some("its mpirun is not Open MPI's".into()),
        (_, Err(_)) => there_is_no("mpicc"),
        // By which its crate reads MPI's headers.
        (Ok(_), Ok(_)) if !has_libclang() => there_is_no("libclang"),
        (Ok(_), Ok(_)) => None,
    }
}

/// Whether libclang is where `bindgen` looks for it.
pub fn has_libclang() -> bool {
    // The names in a folder that start and go on so.
    let list = |folder: &Path, start: &str, then: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let named = entries.filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_prefix(start)
                .is_some_and(|rest| rest.contains(then))
        });
        named.map(|entry| entry.path()).collect()
    };
    let versions = list(Path::new("/usr/lib"), "llvm-", "");
    let has_it = |version: &PathBuf| !list(&version.join("lib"), "libclang", ".so").is_empty();
    let is_known_to_the_linker = || {
        let output = Command::new("ldconfig").arg("-p").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("libclang"))
    };
    env::var_os("LIBCLANG_PATH").is_some_and(|path| !path.is_empty())
        || versions.iter().any(has_it)
        || is_known_to_the_linker()
}

/// How many cores each of so many ranks gets for itself, where all cores are there for them, and suffice: its threads
/// share them. Without a binding the kernel now and then leaves a core idle, and two ranks, or the threads of two that
/// move their data, on another. `bench` decides the same way.
pub fn cores_of_a_rank(ranks: usize) -> Option<usize> {
    // What the affinity and the quota leave. mpirun knows nothing of quotas, and hands out what it finds.
    let usable = thread::available_parallelism().ok()?.get();
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    (usable == count(&online)? && usable % ranks == 0).then_some(usable / ranks)
}

/// How many numbers a list like `0-3,6` has.
fn count(list: &str) -> Option<usize> {
    let ranges = list.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (last + 1).checked_sub(first)
    });
    ranges.sum()
}

/// How many lanes [`in_lanes`] has: one for each core.
pub fn lanes() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Does what `next` gives, in as many threads as there are [`lanes`]: `work` gets the number of its lane. After an error no
/// lane takes up anything more.
///
/// # Errors
/// That of the first lane that has one, when all lanes have ended.
pub fn in_lanes<T>(
    next: impl Fn() -> Option<T> + Sync,
    work: impl Fn(usize, T) -> Result<()> + Sync,
) -> Result<()> {
    let has_failed = AtomicBool::new(false);
    let lane = |number| {
        while !has_failed.load(Relaxed)
            && let Some(one) = next()
        {
            work(number, one).inspect_err(|_| has_failed.store(true, Relaxed))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let lane = &lane;
        let lanes: Vec<_> = (0..lanes())
            .map(|number| scope.spawn(move || lane(number)))
            .collect();
        let ends: Vec<_> = lanes.into_iter().map(|lane| lane.join()).collect();
        ends.into_iter()
            .try_for_each(|end| end.expect("a lane has panicked"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Barrier, Mutex};
    use std::time::{Duration, Instant};

    #[test]
    fn all_lanes_work_at_the_same_time() {
        let (left, together) = (Mutex::new(3 * lanes()), Barrier::new(lanes()));
        let seen = Mutex::new(HashSet::new());
        let next = || {
            let mut left = left.lock().unwrap();
            *left = left.checked_sub(1)?;
            Some(*left)
        };
        let work = |lane, one| {
            together.wait(); // for ever, where one lane has ended before, or does two at once
            seen.lock().unwrap().insert(one);
            anyhow::ensure!(lane < lanes());
            Ok(())
        };
        in_lanes(next, work).unwrap();
        assert_eq!(
            seen.into_inner().unwrap(),
            HashSet::from_iter(0..3 * lanes())
        );
    }

    #[test]
    fn nothing_is_taken_up_after_an_error() {
        let (taken, start) = (AtomicUsize::new(0), Instant::now());
        let is_soon = || start.elapsed() < Duration::from_secs(60);
        let next = || is_soon().then(|| taken.fetch_add(1, Relaxed)); // there is always more
        let work = |_, one| match one {
            9 => anyhow::bail!("number {one}"),
            _ => Ok(()),
        };
        let error = in_lanes(next, work).unwrap_err();
        assert_eq!(error.to_string(), "number 9");
        assert!(is_soon(), "the other lanes have gone on");
    }

    #[test]
    fn lists_are_counted() {
        assert_eq!(count("0-3,6\n"), Some(5));
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("3-1"), None);
        assert_eq!(count(""), None);
    }
}
