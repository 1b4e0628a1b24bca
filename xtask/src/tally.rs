//! Adds up what test programs say of themselves.

use std::fmt;

/// Tests passed, failed and skipped over any number of test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// What failed, with the first lines that were said of it.
    pub failures: Vec<Failure>,
    /// What did not run, and why. Its length is the number of tests and parts skipped.
    pub skipped: Vec<String>,
    /// Test programs that ran to their end.
    pub programs: u64,
    /// Tests of the running program that said they are skipped: the program counts them among those that passed.
    pub unfit: u64,
    /// The levels of instructions that test programs said they keep to.
    pub levels: Vec<String>,
    /// The level of instructions that this machine lacks, as test programs said.
    pub lacks: Option<String>,
    /// Which of the failures the lines that come tell of.
    pub telling: Option<usize>,
    /// How many failures are those of programs that have ended.
    pub told: usize,
}

/// A test that failed, or whatever else did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub name: String,
    pub lines: Vec<String>,
}

/// So many lines are kept of a failure.
const LINES: usize = 12;

impl Failure {
    fn add(&mut self, line: &str) {
        if !line.trim().is_empty() && self.lines.len() < LINES {
            self.lines.push(line.trim_end().to_owned());
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.lines
            .iter()
            .try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl Tally {
    /// Counts a failure that no test program counts.
    pub fn fail(&mut self, name: &str, why: impl fmt::Display) {
        self.failed += 1;
        let mut failure = Failure {
            name: name.to_owned(),
            lines: Vec::new(),
        };
        failure.add(&why.to_string());
        self.failures.push(failure);
    }

    /// Adds the counts of a part.
    pub fn add(&mut self, part: &Tally) {
        self.passed += part.passed;
        self.failed += part.failed;
        self.failures.extend_from_slice(&part.failures);
        self.skipped.extend_from_slice(&part.skipped);
    }

    /// What is wrong with the level of instructions of a part that wants `level`, if anything is: a program that did
    /// not hear of it tests the wrong code.
    pub fn level_fault(&self, level: &str) -> Option<String> {
        let Tally {
            programs, levels, ..
        } = self;
        let kept = levels.iter().filter(|kept| *kept == level).count();
        let good = self.lacks.is_some() || kept == levels.len() && kept as u64 >= *programs;
        (!good).then(|| {
            format!("of {programs} test programs, {kept} kept to the instructions {level}: does each include tests/level?")
        })
    }

    /// Takes in one line of a test program's output.
    pub fn read(&mut self, line: &str) {
        self.read_failure(line);
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.programs += 1;
            self.told = self.failures.len();
            let unfit = std::mem::take(&mut self.unfit);
            // ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
            let (_, counts) = counts.split_once(". ").unwrap_or_default();
            for count in counts.split("; ") {
                match count.split_once(' ').map(|(n, of)| (n.parse::<u64>(), of)) {
                    Some((Ok(n), "passed")) => self.passed += n.saturating_sub(unfit),
                    Some((Ok(n), "failed")) => self.failed += n,
                    _ => {}
                }
            }
        } else if let Some(why) = line.strip_prefix("SKIPPED: ") {
            self.skipped.push(why.to_owned());
            self.unfit += 1;
        } else if let Some(level) = line.strip_prefix("instructions: ") {
            self.levels.push(level.to_owned());
        } else if let Some(level) = line.strip_prefix("no instructions: ") {
            self.lacks = Some(level.to_owned());
        } else if let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... ignored"))
        {
            let why = outcome.strip_prefix(", ").unwrap_or("marked as ignored");
            self.skipped.push(format!("{name}: {why}"));
        }
    }

    /// Keeps the name of a test that failed, and what is said of it: our own programs say so at once, others in a section
    /// `---- name stdout ----` after their last test.
    fn read_failure(&mut self, line: &str) {
        const ENDS: &[&str] = &["test ", "---- ", "failures:", "successes:"];
        // What libtest says in the one place and not in the other.
        const KINDS: &[&str] = &[" - should panic", " - compile fail", " - compile"];
        if let Some((name, why)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... FAILED"))
        {
            let bare = KINDS.iter().find_map(|kind| name.strip_suffix(kind));
            let mut failure = Failure {
                name: bare.unwrap_or(name).to_owned(),
                lines: Vec::new(),
            };
            failure.add(why.trim_start_matches(": "));
            self.telling = Some(self.failures.len());
            self.failures.push(failure);
        } else if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            let own = self.failures.iter().skip(self.told);
            let own = own.zip(self.told..).find(|(of, _)| of.name == name);
            self.telling = own.map(|(_, at)| at);
        } else if ENDS.iter().any(|end| line.starts_with(end)) {
            self.telling = None;
        } else if let Some(failure) = self.telling.and_then(|at| self.failures.get_mut(at)) {
            failure.add(line);
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally {
            passed,
            failed,
            skipped,
            ..
        } = self;
        write!(
            f,
            "{passed} passed, {failed} failed, {} skipped",
            skipped.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_several_programs() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test layout::transposes ... ok",
            "test large ... ignored, needs 5 GiB of memory",
            "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test src/lib.rs - first (line 3) ... ignored",
            "test result: ok. 30 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            tally.read(line);
        }
        assert_eq!(tally.to_string(), "42 passed, 2 failed, 2 skipped");
        assert_eq!(tally.skipped[0], "large: needs 5 GiB of memory");
        assert_eq!(
            tally.skipped[1],
            "src/lib.rs - first (line 3): marked as ignored"
        );
    }

    /// The tally of these lines.
    fn read(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.read(line));
        tally
    }

    #[test]
    fn a_test_that_says_so_is_skipped() {
        let tally = read(&[
            "SKIPPED: cuda::transfer: there is no card",
            "test result: ok. 3 passed; 0 failed",
            "test result: ok. 4 passed; 0 failed",
        ]);
        assert_eq!(tally.to_string(), "6 passed, 0 failed, 1 skipped");
        assert_eq!(tally.skipped, ["cuda::transfer: there is no card"]);
    }

    #[test]
    fn failures_keep_what_is_said_of_them() {
        let mut total = Tally::default();
        total.fail("tsan", "it ended with signal: 9");
        total.add(&read(&[
            "test a ... FAILED",
            "test drill exit ... FAILED: code 0, not 7",
            "[1] rank 1 fails",
            "test b - should panic ... FAILED",
            "test c ... ok",
            "not of a failure",
            "---- c stdout ----",
            "this neither",
            "---- a stdout ----",
            "",
            "thread 'a' panicked at a.rs:3:4:",
            "left: 1",
            "---- b stdout ----",
            "note: test did not panic as expected",
            "failures:",
            "    a",
            "test result: FAILED. 1 passed; 3 failed",
            "the next program",
            "test a ... ok",
            "---- a stdout ----",
            "a test of the same name that passed",
            "test result: ok. 1 passed; 0 failed",
        ]));
        let told: Vec<_> = total.failures.iter().map(|of| of.to_string()).collect();
        assert_eq!(
            told,
            [
                "tsan\n  it ended with signal: 9",
                "a\n  thread 'a' panicked at a.rs:3:4:\n  left: 1",
                "drill exit\n  code 0, not 7\n  [1] rank 1 fails",
                "b\n  note: test did not panic as expected",
            ]
        );
        assert_eq!(total.failed, 4);
    }

    #[test]
    fn parts_add_up() {
        let mut total = read(&["test a ... ignored", "test result: ok. 3 passed; 1 failed"]);
        total.add(&read(&[
            "test b ... ignored",
            "test result: ok. 4 passed; 2 failed",
        ]));
        assert_eq!(total.to_string(), "7 passed, 3 failed, 2 skipped");
    }

    #[test]
    fn every_program_keeps_to_its_level() {
        let result = "test result: ok. 1 passed; 0 failed";
        let avx2 = "instructions: avx2";
        assert_eq!(
            read(&[avx2, result, avx2, result]).level_fault("avx2"),
            None
        );
        assert_eq!(read(&["no instructions: avx2"]).level_fault("avx2"), None);
        // One that died has no result, which is another fault.
        assert_eq!(read(&[avx2, avx2, result]).level_fault("avx2"), None);
        for wrong in [
            &[avx2, result, result][..],
            &[result],
            &["instructions: amx", result],
        ] {
            assert!(read(wrong).level_fault("avx2").is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn is_not_fooled_by_other_lines() {
        let mut tally = Tally::default();
        for line in [
            "",
            "5 passed; 3 failed",
            "test result: ",
            "test result: ok. x passed; y failed",
        ] {
            tally.read(line);
        }
        let Tally {
            passed,
            failed,
            skipped,
            ..
        } = tally;
        assert_eq!((passed, failed, skipped.len()), (0, 0, 0));
    }
}
