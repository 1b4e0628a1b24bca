//! Adds up what test programs say of themselves.

use std::fmt;

/// Tests passed, failed and skipped over any number of test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// What did not run, and why. Its length is the number of tests and parts skipped.
    pub skipped: Vec<String>,
}

impl Tally {
    /// Takes in one line of a test program's output.
    pub fn read(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            // ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
            let (_, counts) = counts.split_once(". ").unwrap_or_default();
            for count in counts.split("; ") {
                match count.split_once(' ').map(|(n, of)| (n.parse::<u64>(), of)) {
                    Some((Ok(n), "passed")) => self.passed += n,
                    Some((Ok(n), "failed")) => self.failed += n,
                    _ => {}
                }
            }
        } else if let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... ignored"))
        {
            let why = outcome.strip_prefix(", ").unwrap_or("marked as ignored");
            self.skipped.push(format!("{name}: {why}"));
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally {
            passed,
            failed,
            skipped,
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
        assert_eq!(tally, Tally::default());
    }
}
