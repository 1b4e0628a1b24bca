//! `cargo xtask mutate-cuda`: makes small mistakes in the kernels and in the code of the host for cards, one in each run of
//! the tests of cards, and looks whether these notice, on simulated ones. As many run at the same time as there are
//! cores. What the tests do not notice is a failure, unless `survivors.txt` says why.

mod closest;
mod host;
mod kernel;
mod mistakes;
mod sites;
mod switch;
mod tree;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use self::closest::{Words, closest};
use self::sites::{Mutant, mutants, pick};
use self::switch::Switch;
use self::tree::{Built, Outcome, Tree, run as run_tests};
use crate::cargo::root;
use crate::gpu::ahead;
use crate::gpu::simulator::{Simulator, nvrtc};
use crate::lines::report;
use crate::machine::{in_lanes, lanes};

/// What the tests need not notice, and why.
const SURVIVORS: &str = include_str!("survivors.txt");

/// Files that are no card's alone, and order what cards do.
const ORDER: &[&str] = &[
    "tensor/src/storage/across.rs",
    "tensor/src/storage/on.rs",
    "tensor/src/storage/operand.rs",
];

/// The most time of the first run, which compiles all kernels.
const FIRST: Duration = Duration::from_secs(1800);

/// Which mistakes to make.
#[derive(clap::Args)]
pub struct Args {
    /// Decides which mistakes are made.
    #[arg(long, value_name = "S", default_value = "0")]
    seed: u64,
    /// How many are made.
    #[arg(long, value_name = "N", default_value = "20")]
    count: usize,
    /// Only in files whose path has this in it.
    #[arg(long, value_name = "PART", default_value = "")]
    file: String,
    /// Only of these kinds: barrier, wait, record, use, flag, free, lock, check, bound, index, offset (may be repeated).
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Leave out the tests whose names have this in them (may be repeated).
    #[arg(long, value_name = "TEST")]
    skip: Vec<String>,
    /// Run only those tests that look closest at what is changed: quicker, and fewer mistakes are noticed.
    #[arg(long)]
    closest: bool,
    /// Name them, and make none.
    #[arg(long)]
    list: bool,
}

impl Args {
    fn has(&self, mutant: &Mutant) -> bool {
        let kind = mutant.kind.to_string();
        self.kind.is_empty() || self.kind.contains(&kind)
    }
}

/// A variable of the environment and its value, which tell a program what mistake to make.
type Told = (&'static str, OsString);

/// What became of a mistake.
enum Fate {
    Killed(String),
    /// It does not compile, so it tells nothing.
    Stillborn,
    Survived,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let read = |file: &str| fs::read_to_string(root().join(file)).with_context(|| file.to_owned());
    let all: Vec<Mutant> = files()?
        .into_iter()
        .filter(|file| file.contains(&args.file))
        .map(|file| Ok(mutants(&file, &read(&file)?)))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let all: Vec<Mutant> = all.into_iter().filter(|mutant| args.has(mutant)).collect();
    let order = pick(&all, all.len(), args.seed);
    if args.list {
        let some = order.iter().take(args.count);
        some.for_each(|mutant| println!("{mutant}"));
        println!("{} of {}", args.count.min(all.len()), all.len());
        return Ok(ExitCode::SUCCESS);
    }
    let nvrtc = match nvrtc() {
        Ok(nvrtc) => nvrtc,
        Err(why) => {
            println!("SKIPPED: mistakes in the code for cards: {why}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let survivors = survivors(SURVIVORS)?;
    ahead::lend(&kernels())?;
    let tree = Tree::copy()?;
    let switch = Switch::build(&tree, &order[..args.count.min(order.len())])?;
    let workshop = Workshop {
        tree,
        building: Mutex::default(),
        switch,
        simulator: Simulator::build(2)?.checking(),
        nvrtc: nvrtc.folder,
        args,
        survivors,
        limits: Mutex::default(),
    };
    report(format_args!(
        "seed {} of {} mistakes, each of which the tests must notice",
        args.seed,
        order.len()
    ))?;
    let totals = Mutex::new(Totals::default());
    let next = || lock(&totals).next(&order, args.count);
    in_lanes(next, |number, mutant| {
        let simulator = workshop.simulator.beside(number);
        let start = Instant::now();
        let fate = workshop.fate(mutant, &Lane { number, simulator })?;
        let seconds = start.elapsed().as_secs();
        let line = lock(&totals).count(fate, workshop.known(mutant));
        println!("test {mutant} ... {line} ({seconds} s)");
        Ok(())
    })?;
    let totals = lock(&totals);
    totals.lines().iter().for_each(|line| println!("{line}"));
    Ok(match totals.survived {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// What works at one mistake after the other, beside others.
struct Lane {
    number: usize,
    /// What its programs find is kept apart.
    simulator: Simulator,
}

/// What has become of the mistakes so far.
#[derive(Default)]
struct Totals {
    /// How many have been taken up, in order; and how many of these do not compile.
    taken: usize,
    stillborn: usize,
    killed: usize,
    known: usize,
    survived: usize,
}

impl Totals {
    /// The next mistake, where fewer than `count` of those that compile have been taken up.
    fn next<'a>(&mut self, order: &'a [Mutant], count: usize) -> Option<&'a Mutant> {
        let wanted = self.taken - self.stillborn < count;
        let next = order.get(self.taken).filter(|_| wanted)?;
        self.taken += 1;
        Some(next)
    }

    /// Counts what became of one; in words.
    fn count(&mut self, fate: Fate, known: Option<&Survivor<'_>>) -> String {
        let (place, line) = match (fate, known) {
            (Fate::Stillborn, _) => (
                &mut self.stillborn,
                "does not compile, and is not counted".to_owned(),
            ),
            (Fate::Killed(why), _) => (&mut self.killed, format!("ok: killed: {why}")),
            (Fate::Survived, Some(entry)) => (
                &mut self.known,
                format!("known: survived: {}", entry.reason),
            ),
            (Fate::Survived, None) => (&mut self.survived, "FAILED: survived".to_owned()),
        };
        *place += 1;
        line
    }

    fn lines(&self) -> [String; 2] {
        let Totals {
            killed,
            known,
            survived,
            ..
        } = self;
        let word = if *survived == 0 { "ok" } else { "FAILED" };
        [
            format!(
                "{killed} of {} killed, {known} survived as survivors.txt has it, {survived} survived",
                killed + known + survived
            ),
            format!(
                "test result: {word}. {} passed; {survived} failed",
                killed + known
            ),
        ]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no lane has panicked")
}

/// The folder with the compiled kernels of the tests: those with a mistake, too.
fn kernels() -> PathBuf {
    root().join("target/mutants/kernels")
}

/// The kernels, and the code of the host for cards.
fn files() -> Result<Vec<String>> {
    let list = Command::new("git")
        .args(["ls-files", "tensor/src/ops", "tensor/src/cuda"])
        .args(ORDER)
        .current_dir(root())
        .output();
    let list = list.context("cannot start git")?;
    ensure!(list.status.success(), "git cannot list the files");
    let list = String::from_utf8(list.stdout)?;
    let ours = |name: &&str| {
        let path = Path::new(name);
        name.ends_with(".cu")
            || name.ends_with("/cuda.rs")
            || name.ends_with(".rs") && path.components().any(|part| part.as_os_str() == "cuda")
            || ORDER.contains(name)
    };
    Ok(list.lines().filter(ours).map(str::to_owned).collect())
}

/// Where mistakes are made.
struct Workshop<'a> {
    tree: Tree,
    /// Held while a mistake is in the tree, to be built. (Mistakes in kernels never are.)
    building: Mutex<()>,
    switch: Switch,
    simulator: Simulator,
    nvrtc: Option<PathBuf>,
    args: &'a Args,
    /// What the tests need not notice.
    survivors: Vec<Survivor<'a>>,
    /// How long the tests may take that have these words in their names; `None` before the first run of them, during which
    /// its own lock is held.
    limits: Mutex<HashMap<Words, Arc<Mutex<Option<Duration>>>>>,
}

impl Workshop<'_> {
    /// Makes a mistake, looks what comes of it, and takes it back.
    fn fate(&self, mutant: &Mutant, lane: &Lane) -> Result<Fate> {
        let switch = &self.switch;
        if let Some(number) = switch.number(mutant) {
            let told = (switch::VARIABLE, number.to_string().into());
            return self.test(&switch.program, mutant, Some(&told), lane);
        }
        if mutant.is_in_kernel() {
            let text = self.tree.read(&mutant.file)?;
            let change = kernel::change(&text, &mutant.apply(&text), lane.number)?;
            let told = (kernel::VARIABLE, change.into_os_string());
            return self.test(&switch.program, mutant, Some(&told), lane);
        }
        match self.build(mutant, lane)? {
            Some(program) => self.test(&program, mutant, None, lane),
            None => Ok(Fate::Stillborn),
        }
    }

    /// A program with a mistake in the host's code, out of the way of the next one; `None` where it does not compile.
    fn build(&self, mutant: &Mutant, lane: &Lane) -> Result<Option<PathBuf>> {
        let _turn = lock(&self.building);
        let text = self.tree.read(&mutant.file)?;
        self.tree.write(&mutant.file, &mutant.apply(&text))?;
        let built = self.tree.build();
        self.tree.write(&mutant.file, &text)?;
        let Built::Program(built) = built? else {
            return Ok(None);
        };
        let program = root().join(format!("target/mutants/program-{}", lane.number));
        fs::copy(built, &program)?;
        Ok(Some(program))
    }

    /// The entry of the list of survivors that names a mistake.
    fn known(&self, mutant: &Mutant) -> Option<&Survivor<'_>> {
        self.survivors.iter().find(|entry| entry.names(mutant))
    }

    /// Runs the tests of `program`, first those that look closest at the file that was changed, then all, but for a
    /// mistake that is known to survive them. `told` is what the environment tells the program of the mistake.
    fn test(
        &self,
        program: &Path,
        mutant: &Mutant,
        told: Option<&Told>,
        lane: &Lane,
    ) -> Result<Fate> {
        let closest = closest(&mutant.file);
        let all: &[Words] = match self.args.closest || self.known(mutant).is_some() {
            true => &[closest],
            false => &[closest, &[]],
        };
        for words in all {
            let limit = self.limit(words, lane)?;
            match self.test_some(program, words, told, limit, lane)? {
                Fate::Survived => {}
                noticed => return Ok(noticed),
            }
        }
        Ok(Fate::Survived)
    }

    /// How long tests may take. Without a mistake they must pass: that is seen at the first call.
    fn limit(&self, words: Words, lane: &Lane) -> Result<Duration> {
        // Who else wants it waits for that call.
        let limit = Arc::clone(lock(&self.limits).entry(words).or_default());
        let mut limit = lock(&limit);
        if let Some(limit) = *limit {
            return Ok(limit);
        }
        let start = Instant::now();
        match self.test_some(&self.switch.program, words, None, FIRST, lane)? {
            Fate::Survived => {}
            Fate::Killed(why) => bail!("the tests do not pass without a mistake: {why}"),
            Fate::Stillborn => bail!("a kernel does not compile without a mistake"),
        }
        // Kernels were compiled in that run, which costs more than anything else.
        // Later ones may have less of the machine than that one.
        let time = start.elapsed() * u32::try_from(2 * lanes())?;
        Ok(*limit.insert(time + Duration::from_secs(30)))
    }

    /// Runs the tests with one of `words` in their names; all of them where there is no word.
    fn test_some(
        &self,
        program: &Path,
        words: Words,
        told: Option<&Told>,
        limit: Duration,
        lane: &Lane,
    ) -> Result<Fate> {
        let mut command = Command::new(program);
        command.envs(lane.simulator.environment(1, self.nvrtc.as_deref()));
        command.env("PHALANX_KERNEL_CACHE", kernels());
        command.env("PHALANX_REQUIRE_CARDS", "1");
        // A thread that waits for what does not come is soon given up.
        command.env("PHALANX_SIMULATOR_PATIENCE", "20");
        if let Some((variable, value)) = told {
            command.env(variable, value);
        }
        command.current_dir(root().join("tensor"));
        for skip in &self.args.skip {
            command.args(["--skip", skip]);
        }
        command.args(words);
        let outcome = run_tests(&mut command, limit)?;
        let finding = lane.simulator.findings().into_iter().next();
        let found = finding.map_or(String::new(), |finding| format!(": {finding}"));
        Ok(match outcome {
            Outcome::Passed if found.is_empty() => Fate::Survived,
            Outcome::Passed => Fate::Killed(format!("a finding{found}")),
            Outcome::Refused => Fate::Stillborn,
            Outcome::Failed(test) => Fate::Killed(format!("{test}{found}")),
            Outcome::Late => Fate::Killed("the tests do not end".to_owned()),
            Outcome::Died => Fate::Killed(format!("the tests die{found}")),
        })
    }
}

/// An entry of the list of survivors.
struct Survivor<'a> {
    file: &'a str,
    kind: &'a str,
    line: &'a str,
    reason: &'a str,
}

impl Survivor<'_> {
    fn names(&self, mutant: &Mutant) -> bool {
        self.file == mutant.file
            && self.kind == mutant.kind.to_string()
            && (self.line == mutant.before
                || self.line.split_once(" -> ") == Some((&mutant.before, &mutant.after)))
    }
}

/// The entries of a list: file, kind, line and reason, with ` ## ` between them. The line may be the one before the
/// mistake, which stands for all mistakes of the kind in it, or both with ` -> ` between them.
fn survivors(text: &str) -> Result<Vec<Survivor<'_>>> {
    let entries = text.lines().filter(|line| !line.starts_with("# "));
    let entries = entries.filter(|line| !line.trim().is_empty());
    let entry = |text| {
        let parts: Vec<_> = str::split(text, " ## ").collect();
        match parts[..] {
            [file, kind, line, reason] => Ok(Survivor {
                file,
                kind,
                line,
                reason,
            }),
            _ => bail!("survivors.txt has a line that is no entry: {text}"),
        }
    };
    entries.map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_compile_is_made_up_for() {
        let text = "fn f() {\n    if a < b && c {\n        lanes.wait(lane, stamp)?;\n    }\n}\n";
        let order = mutants("cuda.rs", text);
        assert!(order.len() > 3);
        let mut totals = Totals::default();
        assert_eq!(totals.next(&order, 2), Some(&order[0]));
        assert_eq!(totals.next(&order, 2), Some(&order[1]));
        assert_eq!(totals.next(&order, 2), None); // two are under way
        totals.count(Fate::Stillborn, None);
        assert_eq!(totals.next(&order, 2), Some(&order[2]));
        assert_eq!(totals.next(&order, 2), None);
        let line = totals.count(Fate::Killed("f".into()), None);
        assert_eq!(line, "ok: killed: f");
        assert!(totals.count(Fate::Survived, None).starts_with("FAILED"));
        assert_eq!(totals.next(&order, 2), None);
        assert_eq!(totals.lines()[1], "test result: FAILED. 1 passed; 1 failed");
        // There are no more than there are.
        assert_eq!(totals.next(&order[..3], 9), None);
    }

    #[test]
    fn the_list_of_survivors_can_be_read() {
        let known = survivors(SURVIVORS).unwrap();
        let files = files().unwrap();
        for entry in known {
            assert!(
                files.iter().any(|file| file == entry.file),
                "{}",
                entry.file
            );
            let text = std::fs::read_to_string(root().join(entry.file)).unwrap();
            let all = mutants(entry.file, &text);
            let is_there = all.iter().any(|mutant| entry.names(mutant));
            assert!(is_there, "{} has no mistake {}", entry.file, entry.line);
        }
        assert!(survivors("a ## bound ## if (i < n)").is_err());
    }
}
