//! The end of `cargo xtask test`: what ran, with counts and times, and what did not.

use std::fmt;
use std::time::Duration;

use crate::tally::Tally;

/// How the parts went.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    total: Tally,
}

struct Row {
    name: String,
    what: String,
    /// Passed, failed, skipped; those of a part that did not run are a single skip.
    counts: [u64; 3],
    /// `None` where the part did not run.
    time: Option<Duration>,
}

impl Report {
    /// Adds a part, which took `time`, if it ran.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        what: impl Into<String>,
        tally: &Tally,
        time: Option<Duration>,
    ) {
        let counts = [tally.passed, tally.failed, tally.skipped.len() as u64];
        let name = name.into();
        let known = self.total.failures.len();
        self.total.add(tally);
        for failure in &mut self.total.failures[known..] {
            failure.name = format!("{name}: {}", failure.name);
        }
        self.rows.push(Row {
            name,
            what: what.into(),
            counts,
            time,
        });
    }

    /// Whether nothing failed.
    pub fn is_good(&self) -> bool {
        self.total.failed == 0
    }

    /// The last line of all, which programs read.
    pub fn totals(&self) -> String {
        self.total.to_string()
    }
}

impl fmt::Display for Report {
    /// A table of parts, then what was skipped, and last what failed: who sees the end alone sees that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.rows.iter().map(|row| row.name.len());
        let width = names.max().unwrap_or(0).max(12);
        writeln!(
            f,
            "{:<width$}  passed  failed  skipped  seconds  what",
            "part"
        )?;
        let row = |f: &mut fmt::Formatter<'_>,
                   name: &str,
                   [passed, failed, skipped]: [u64; 3],
                   time,
                   what: &str| {
            writeln!(
                f,
                "{name:<width$}  {passed:>6}  {failed:>6}  {skipped:>7}  {time:>7}  {what}"
            )
        };
        for Row {
            name,
            what,
            counts,
            time,
        } in &self.rows
        {
            let (time, run) = match time {
                Some(time) => (format!("{:.1}", time.as_secs_f64()), ""),
                None => ("-".to_owned(), "not run: "),
            };
            row(f, name, *counts, time, &format!("{run}{what}"))?;
        }
        let time: Duration = self.rows.iter().filter_map(|row| row.time).sum();
        let counts = [
            self.total.passed,
            self.total.failed,
            self.total.skipped.len() as u64,
        ];
        row(
            f,
            "all",
            counts,
            format!("{:.1}", time.as_secs_f64()),
            "builds included",
        )?;
        for skipped in &self.total.skipped {
            writeln!(f, "SKIPPED {skipped}")?;
        }
        for failure in &self.total.failures {
            writeln!(f, "FAILED {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Failure;

    #[test]
    fn says_what_ran_and_what_did_not() {
        let mut report = Report::default();
        let ran = Tally {
            passed: 120,
            failed: 1,
            skipped: vec!["large: needs 5 GiB of memory".to_owned()],
            failures: vec![Failure {
                name: "sums".to_owned(),
                lines: vec!["left: 1".to_owned()],
            }],
            ..Tally::default()
        };
        let not = Tally {
            skipped: vec!["amx (with the matrix unit): this processor lacks it".to_owned()],
            ..Tally::default()
        };
        report.add(
            "avx2",
            "with AVX2",
            &ran,
            Some(Duration::from_millis(61_260)),
        );
        report.add("amx", "with the matrix unit", &not, None);
        let text = "\
part          passed  failed  skipped  seconds  what
avx2             120       1        1     61.3  with AVX2
amx                0       0        1        -  not run: with the matrix unit
all              120       1        2     61.3  builds included
SKIPPED large: needs 5 GiB of memory
SKIPPED amx (with the matrix unit): this processor lacks it
FAILED avx2: sums
  left: 1
";
        assert_eq!(report.to_string(), text);
        assert_eq!(report.totals(), "120 passed, 1 failed, 2 skipped");
        assert!(!report.is_good());
    }
}
