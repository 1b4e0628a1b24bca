//! `cargo xtask drill`: a rank goes wrong, at six times and in six ways, on threads, on processes and on cards; what the
//! other ranks hold then, and how soon, as Markdown tables.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, bail};

use crate::cargo::{artifacts, of_tests, program_of};
use crate::mpi::{Outcome, cells, nothing_left};
use crate::{gpu, machine, signals};

/// How many ranks a cell has (`comm/tests/cells/table.rs`).
const RANKS: usize = 3;

/// What to drill.
#[derive(clap::Args)]
pub struct Args {
    /// Only cells whose names contain this: `between/`, `/loop`
    #[arg(long, default_value = "")]
    only: String,
    /// Only cells of this backend
    #[arg(long, value_parser = ["local", "mpi", "nccl"])]
    backend: Option<String>,
    /// The order of what is not ordered, on simulated cards
    #[arg(long, default_value = "0")]
    seed: u64,
}

impl Args {
    fn wants(&self, backend: &str) -> bool {
        self.backend.as_ref().is_none_or(|b| b == backend)
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut tables = Vec::new();
    let obstacle = machine::obstacle();
    let with_mpi = args.wants("mpi") && obstacle.is_none();
    if args.wants("local") || with_mpi {
        let program = build()?;
        if args.wants("local") {
            tables.push(("local", threads(Command::new(&program), &args.only)?));
        }
        if with_mpi {
            signals::catch();
            tables.push(("mpi", mpi(&program, &args.only)?));
        }
    }
    if let Some(why) = obstacle.filter(|_| args.wants("mpi")) {
        println!("SKIPPED: the drill on processes: {why}");
    }
    if args.wants("nccl") {
        match gpu::for_ranks(RANKS)? {
            Ok((cards, nvrtc)) => {
                let mut program = Command::new(build()?);
                program.envs(cards.environment(args.seed, &nvrtc));
                program.env("PHALANX_TEST_DEVICE", "cuda:0");
                let mut table = threads(program, &args.only)?;
                if let Some(findings) = cards.findings() {
                    table.add(
                        "the simulated device finds nothing",
                        match findings.is_empty() {
                            true => Ok(String::new()),
                            false => Err(findings.join("; ")),
                        },
                    );
                }
                println!("ON {cards}; {nvrtc}");
                tables.push(("nccl", table));
            }
            Err(why) => println!("SKIPPED: the drill on cards: {why}"),
        }
    }
    for (backend, table) in &tables {
        print!("\n{}", table.markdown(backend));
    }
    let count = |of: fn(&Table) -> usize| tables.iter().map(|(_, table)| of(table)).sum::<usize>();
    let (passed, failed) = (count(|t| t.passed), count(|t| t.failed));
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed");
    Ok(ExitCode::from(u8::from(failed > 0 || passed == 0)))
}

/// The program that plays the cells.
fn build() -> Result<PathBuf> {
    let mut build = of_tests(&["build", "--quiet", "--test=cells"]);
    program_of(&artifacts(&mut build)?, "comm", "test", "cells")
}

/// The cells on threads, which the program starts by itself.
fn threads(mut program: Command, only: &str) -> Result<Table> {
    program.args(Some(only).filter(|only| !only.is_empty()));
    let output = program.stderr(Stdio::inherit()).output()?;
    let mut table = Table::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let test = line.strip_prefix("test ");
        let Some((name, end)) = test.and_then(|test| test.split_once(" ... ")) else {
            continue;
        };
        let well = end.strip_prefix("ok (").and_then(|e| e.strip_suffix(')'));
        let why = || end.strip_prefix("FAILED: ").unwrap_or(end).to_owned();
        table.add(name, well.map(str::to_owned).ok_or_else(why));
    }
    Ok(table)
}

/// The cells on processes, a job for each.
fn mpi(program: &Path, only: &str) -> Result<Table> {
    let mut table = Table::default();
    let cells = cells::list(program)?.into_iter();
    for cell in cells.filter(|cell| cell.name.contains(only)) {
        let end = cell.run(program, None);
        if signals::seen().is_some() {
            bail!("it was interrupted");
        }
        match end {
            Ok(Outcome::Passed(text)) => table.add(&cell.name, Ok(text)),
            Ok(Outcome::Skipped(why)) => table.skip(&cell.name, &why),
            Err(error) => table.add(&cell.name, Err(error.to_string())),
        }
    }
    table.add(
        "nothing is left",
        nothing_left()
            .map_err(|e| e.to_string())
            .map(|_| String::new()),
    );
    Ok(table)
}

/// What came of each cell: rows are phases, columns are faults.
#[derive(Default)]
struct Table {
    /// By the phase and the fault.
    cells: Vec<(String, String, String)>,
    /// Said below the table.
    notes: Vec<String>,
    passed: usize,
    failed: usize,
}

impl Table {
    /// Takes in a cell, and says as libtest does what its ranks held and how soon; or what is wrong.
    fn add(&mut self, name: &str, end: Result<String, String>) {
        match end {
            Ok(text) => {
                println!("test {name} ... ok ({text})");
                self.passed += 1;
                self.put(name, text);
            }
            Err(why) => {
                println!("test {name} ... FAILED: {why}");
                self.failed += 1;
                let why = why.lines().next().unwrap_or_default();
                self.notes.push(format!("{name} fails: {why}"));
                self.put(name, "**failed**".to_owned());
            }
        }
    }

    /// Takes in a cell that does not apply.
    fn skip(&mut self, name: &str, why: &str) {
        println!("test {name} ... ignored, {why}");
        self.notes.push(format!("{name} does not apply: {why}"));
        self.put(name, "does not apply".to_owned());
    }

    fn put(&mut self, name: &str, text: String) {
        // What has no phase is no cell.
        if let Some((row, column)) = name.split_once('/') {
            self.cells.push((row.to_owned(), column.to_owned(), text));
        }
    }

    fn markdown(&self, backend: &str) -> String {
        let (mut rows, mut columns) = (Vec::new(), Vec::new());
        for (row, column, _) in &self.cells {
            if !rows.contains(&row) {
                rows.push(row);
            }
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        let cell = |row: &str, column: &str| {
            let found = self.cells.iter().find(|(r, c, _)| r == row && c == column);
            found.map_or("", |(_, _, text)| text)
        };
        let line = |first: &str, texts: Vec<&str>| format!("| {first} | {} |\n", texts.join(" | "));
        let mut text = line(backend, columns.iter().map(|c| c.as_str()).collect());
        text += &line("---", vec!["---"; columns.len()]);
        for row in rows {
            text += &line(
                row,
                columns.iter().map(|column| cell(row, column)).collect(),
            );
        }
        for note in &self.notes {
            text += &format!("\n- {note}");
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_phases_and_columns_are_faults() {
        let mut table = Table::default();
        table.add("before/panic", Ok("RankPanicked, 2 ms".into()));
        table.add("before/loop", Err("it hangs\nand more".into()));
        table.add("between/panic", Ok("RankPanicked, 1 ms".into()));
        let text = "\
| local | panic | loop |
| --- | --- | --- |
| before | RankPanicked, 2 ms | **failed** |
| between | RankPanicked, 1 ms |  |

- before/loop fails: it hangs
";
        assert_eq!(table.markdown("local"), text);
        assert_eq!(table.failed, 1);
    }
}
