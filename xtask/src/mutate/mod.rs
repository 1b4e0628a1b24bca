//! `cargo xtask mutate-cuda`: makes one small mistake at a time in the kernels and in the code of the host for cards, and
//! looks whether the tests of cards notice, on simulated ones. What they do not notice is a failure, unless
//! `survivors.txt` says why.

mod closest;
mod host;
mod kernel;
mod mistakes;
mod sites;
mod switch;
mod tree;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
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
        switch,
        simulator: Simulator::build(2)?.checking(),
        nvrtc: nvrtc.folder,
        args,
        survivors,
        limits: RefCell::default(),
    };
    report(format_args!(
        "seed {} of {} mistakes, each of which the tests must notice",
        args.seed,
        order.len()
    ))?;
    let (mut killed, mut known, mut survived, mut made) = (0, 0, 0, 0);
    for mutant in &order {
        if made == args.count {
            break;
        }
        let start = Instant::now();
        let fate = workshop.fate(mutant)?;
        let seconds = start.elapsed().as_secs();
        let (word, why) = match fate {
            Fate::Stillborn => {
                println!("test {mutant} ... does not compile, and is not counted");
                continue;
            }
            Fate::Killed(why) => ("ok", format!("killed: {why}")),
            Fate::Survived => match workshop.known(mutant) {
                Some(entry) => ("known", format!("survived: {}", entry.reason)),
                None => ("FAILED", "survived".to_owned()),
            },
        };
        made += 1;
        match word {
            "ok" => killed += 1,
            "known" => known += 1,
            _ => survived += 1,
        }
        println!("test {mutant} ... {word}: {why} ({seconds} s)");
    }
    println!(
        "{killed} of {made} killed, {known} survived as survivors.txt has it, {survived} survived"
    );
    let word = if survived == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {} passed; {survived} failed",
        killed + known
    );
    Ok(match survived {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
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
    switch: Switch,
    simulator: Simulator,
    nvrtc: Option<PathBuf>,
    args: &'a Args,
    /// What the tests need not notice.
    survivors: Vec<Survivor<'a>>,
    /// How long the tests may take that have these words in their names.
    limits: RefCell<HashMap<Words, Duration>>,
}

impl Workshop<'_> {
    /// Makes a mistake, looks what comes of it, and takes it back.
    fn fate(&self, mutant: &Mutant) -> Result<Fate> {
        let text = self.tree.read(&mutant.file)?;
        let changed = mutant.apply(&text);
        if mutant.is_in_kernel() {
            let change = kernel::change(&text, &changed)?;
            let told = (kernel::VARIABLE, change.into_os_string());
            return self.test(&self.switch.program, mutant, Some(&told));
        }
        if let Some(number) = self.switch.number(mutant) {
            let told = (switch::VARIABLE, number.to_string().into());
            return self.test(&self.switch.program, mutant, Some(&told));
        }
        self.tree.write(&mutant.file, &changed)?;
        let fate = match self.tree.build()? {
            Built::Program(program) => self.test(&program, mutant, None),
            Built::Faults(_) => Ok(Fate::Stillborn),
        };
        self.tree.write(&mutant.file, &text)?;
        fate
    }

    /// The entry of the list of survivors that names a mistake.
    fn known(&self, mutant: &Mutant) -> Option<&Survivor<'_>> {
        self.survivors.iter().find(|entry| entry.names(mutant))
    }

    /// Runs the tests of `program`, first those that look closest at the file that was changed, then all, but for a
    /// mistake that is known to survive them. `told` is what the environment tells the program of the mistake.
    fn test(&self, program: &Path, mutant: &Mutant, told: Option<&Told>) -> Result<Fate> {
        let closest = closest(&mutant.file);
        let all: &[Words] = match self.args.closest || self.known(mutant).is_some() {
            true => &[closest],
            false => &[closest, &[]],
        };
        for words in all {
            let limit = self.limit(words)?;
            match self.test_some(program, words, told, limit)? {
                Fate::Survived => {}
                noticed => return Ok(noticed),
            }
        }
        Ok(Fate::Survived)
    }

    /// How long tests may take. Without a mistake they must pass: that is seen at the first call.
    fn limit(&self, words: Words) -> Result<Duration> {
        if let Some(limit) = self.limits.borrow().get(words) {
            return Ok(*limit);
        }
        let start = Instant::now();
        match self.test_some(&self.switch.program, words, None, FIRST)? {
            Fate::Survived => {}
            Fate::Killed(why) => bail!("the tests do not pass without a mistake: {why}"),
            Fate::Stillborn => bail!("a kernel does not compile without a mistake"),
        }
        // Kernels were compiled in that run, which costs more than anything else.
        let limit = start.elapsed() * 2 + Duration::from_secs(30);
        self.limits.borrow_mut().insert(words, limit);
        Ok(limit)
    }

    /// Runs the tests with one of `words` in their names; all of them where there is no word.
    fn test_some(
        &self,
        program: &Path,
        words: Words,
        told: Option<&Told>,
        limit: Duration,
    ) -> Result<Fate> {
        let mut command = Command::new(program);
        command.envs(self.simulator.environment(1, self.nvrtc.as_deref()));
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
        let finding = self.simulator.findings().into_iter().next();
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
