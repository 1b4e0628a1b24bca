//! `cargo xtask test`: every test that this machine can run, in parts, with a table of them and the totals at the end.
//!
//! A part that cannot run here is skipped, and the end of the output says so and why. `--require PART` makes
//! that a failure. The tests of another backend are one more row in [`PARTS`].

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::cargo::watch;
use crate::lines;
use crate::parts::{PARTS, Part};
use crate::report::Report;
use crate::tally::Tally;

/// What to test.
#[derive(clap::Args)]
pub struct Args {
    /// Fail when this part cannot run here (may be repeated).
    #[arg(long, value_name = "PART", value_parser = names())]
    require: Vec<String>,
    /// Leave this part out (may be repeated).
    #[arg(long, value_name = "PART", value_parser = names())]
    without: Vec<String>,
    /// Run this part and no other (may be repeated).
    #[arg(long, value_name = "PART", value_parser = names())]
    only: Vec<String>,
    /// Run the parts that take long, too.
    #[arg(long)]
    full: bool,
    /// Spread the ranks over hosts, which are network namespaces: the part `hosts`, required.
    #[arg(long, value_name = "N", value_parser = ["2"])]
    hosts: Option<String>,
}

impl Args {
    /// Why this part does not run, if it does not.
    fn obstacle(&self, part: &Part) -> Option<String> {
        if self.without.iter().any(|without| without == part.name) {
            Some("left out by --without".to_owned())
        } else if part.long && !self.full && !self.requires(part) && self.only.is_empty() {
            Some("it takes long, and --full runs it".to_owned())
        } else {
            (part.obstacle)()
        }
    }

    fn wants(&self, part: &Part) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part.name)
    }

    fn requires(&self, part: &Part) -> bool {
        let named = self.require.iter().any(|required| required == part.name);
        named || self.hosts.is_some() && part.name == "hosts"
    }
}

fn names() -> clap::builder::PossibleValuesParser {
    PARTS
        .iter()
        .map(|part| part.name)
        .collect::<Vec<_>>()
        .into()
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut report = Report::default();
    let mut missing = Vec::new();
    for part in PARTS.iter().filter(|part| args.wants(part)) {
        let Part { name, what, .. } = part;
        let start = Instant::now();
        let (tally, obstacle) = match args.obstacle(part) {
            Some(why) => (Tally::default(), Some(why)),
            None => try_part(part)?,
        };
        if let Some(why) = obstacle {
            if args.requires(part) {
                missing.push(format!("--require {name}, but {why}"));
            }
            let skipped = vec![format!("{name} ({what}): {why}")];
            let skip = Tally {
                skipped,
                ..Tally::default()
            };
            report.add(*name, *what, &skip, None);
        } else {
            report.add(*name, *what, &tally, Some(start.elapsed()));
        }
    }
    print!("\n{report}");
    for missing in &missing {
        println!("MISSING {missing}");
    }
    println!("{}", report.totals());
    let good = report.is_good() && missing.is_empty();
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs a part: what came of it, and the obstacle that only its own programs could find.
fn try_part(part: &Part) -> Result<(Tally, Option<String>)> {
    let Part { name, what, .. } = part;
    println!("\n== {name}: {what}");
    let mut tally = Tally::default();
    let status = watch(&mut (part.command)(), |line| tally.read(line))?;
    if !status.success() && tally.failed == 0 {
        // It did not build, or a test program died before it could count.
        lines::report(format_args!("error: {name} ended with {status}"))?;
        tally.fail(name, format_args!("it ended with {status}"));
    }
    if let Some(fault) = part.level.and_then(|level| tally.level_fault(level)) {
        lines::report(format_args!("error: {name}: {fault}"))?;
        tally.fail(name, fault);
    }
    let lacks = tally
        .lacks
        .as_ref()
        .filter(|_| tally.programs == 0 && tally.failed == 0);
    let obstacle =
        lacks.map(|level| format!("this processor does not have the instructions {level}"));
    Ok((tally, obstacle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_runs_where_it_is_asked_for() {
        let long = PARTS.iter().find(|part| part.long).unwrap();
        let part = Part {
            obstacle: || None,
            ..*long
        };
        let args = |full, require: &[&str], without: &[&str]| Args {
            require: require.iter().map(|&name| name.to_owned()).collect(),
            without: without.iter().map(|&name| name.to_owned()).collect(),
            only: Vec::new(),
            full,
            hosts: None,
        };
        assert!(args(false, &[], &[]).obstacle(&part).is_some());
        assert_eq!(args(true, &[], &[]).obstacle(&part), None);
        assert_eq!(args(false, &[part.name], &[]).obstacle(&part), None);
        assert!(args(true, &[], &[part.name]).obstacle(&part).is_some());
        let only = Args {
            only: vec![part.name.to_owned()],
            ..args(false, &[], &[])
        };
        assert_eq!(only.obstacle(&part), None);
        assert_eq!(PARTS.iter().filter(|part| only.wants(part)).count(), 1);
    }
}
