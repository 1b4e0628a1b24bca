//! Whether a cell went as the table wants it, by what its ranks said and how their process or job ended.

use crate::site::WRONG;
use crate::table::{Backend, CULPRIT, Cell, END_AFTER, Fault, JOB_ENDS_WITHIN, Must, RANKS, START};
use std::time::Duration;

/// How a cell ended.
#[derive(Debug, Default)]
pub struct End {
    /// All lines, of all ranks and of whoever started them.
    pub said: String,
    /// The code of the process or job; none where a signal ended it.
    pub code: Option<i32>,
    /// Whether it did not end by itself.
    pub by_force: bool,
    /// When it had ended, in nanoseconds since 1970.
    pub at: u64,
}

/// What came of a cell: a word or two, or what is wrong.
pub type Judgement = Result<String, String>;

impl End {
    /// The cell itself.
    pub fn judge(&self, cell: Cell, backend: Backend) -> Judgement {
        if self.by_force {
            return Err("it does not end, and was killed".into());
        }
        let first_run = |line: &&str| line.contains(WRONG) && !line.starts_with(SECOND);
        if let Some(line) = self.said.lines().find(first_run) {
            return Err(line.to_owned());
        }
        match cell.must(backend) {
            Must::NotApply(why) => Ok(format!("not applicable: {why}")),
            Must::Hold(_) => {
                let text = self.errors(cell, backend, cell.holders())?;
                match self.code {
                    Some(code) if code == i32::from(cell.code(backend)) => Ok(text),
                    code => Err(format!("it ends with code {code:?}")),
                }
            }
            Must::EndTheJob => {
                if cell.fault == Fault::Gone {
                    self.says(&format!("rank {CULPRIT} was ended by signal: 9"))?;
                }
                self.ends(JOB_ENDS_WITHIN)
            }
            Must::EndTheStart => {
                // A process that has ended before MPI, and well, is noticed by mpirun where others have started it by then.
                let noticed = cell.fault == Fault::Gone && self.said.contains("exiting improperly");
                if !noticed {
                    let why = "another process has not called MPI_Init";
                    self.says(&format!("for MPI to start, and ends: {why}"))?;
                }
                self.ends(START + JOB_ENDS_WITHIN)
            }
            Must::EndByPolicy => {
                let others = cell.holders().filter(|&rank| rank != CULPRIT);
                self.errors(cell, backend, others)?;
                let who = format!("rank {CULPRIT} has not ended {END_AFTER:?}");
                self.says(&format!("{who} after the world has failed, so "))?;
                self.ends(cell.limit(backend) + END_AFTER + JOB_ENDS_WITHIN)
            }
        }
    }

    /// The second run of the same process or processes, where there is one.
    pub fn judge_second(&self, cell: Cell, backend: Backend) -> Option<Judgement> {
        let Must::Hold(_) = cell.must(backend) else {
            return None;
        };
        let lines = || self.said.lines().filter(|line| line.starts_with(SECOND));
        let well =
            |rank: &usize| lines().any(|line| line == format!("{SECOND} rank {rank} is well"));
        let bad = lines().find(|line| !line.ends_with("is well"));
        Some(match (bad, (0..RANKS).find(|rank| !well(rank))) {
            (Some(line), _) => Err(line.to_owned()),
            (None, Some(rank)) => Err(format!("rank {rank} says nothing of a second run")),
            (None, None) => Ok("well".into()),
        })
    }

    fn says(&self, part: &str) -> Result<(), String> {
        match self.said.contains(part) {
            true => Ok(()),
            false => Err(format!("nobody says `{part}`")),
        }
    }

    /// All these ranks hold the error, and the same one, in time; the longest time of those that did nothing wrong.
    fn errors(
        &self,
        cell: Cell,
        backend: Backend,
        holders: impl Iterator<Item = usize>,
    ) -> Judgement {
        let held = cell.must(backend).held();
        let held = held.map_or_else(String::new, |held| held.to_string());
        let (mut longest, mut all) = (0, Vec::new());
        for rank in holders {
            let start = format!("rank {rank} holds {held} after ");
            let mut lines = self.said.lines();
            let rest = lines.find_map(|line| line.strip_prefix(&start));
            let parts = rest.and_then(|rest| rest.split_once(" ms: "));
            let Some((millis, sentence)) = parts else {
                return Err(format!("rank {rank} does not hold {held}"));
            };
            if rank != CULPRIT {
                longest = longest.max(millis.parse().unwrap_or(u64::MAX));
            }
            all.push(sentence);
        }
        if all.iter().any(|sentence| *sentence != all[0]) {
            return Err(format!("the ranks hold different errors: {all:?}"));
        }
        let (took, limit) = (Duration::from_millis(longest), cell.limit(backend));
        match took <= limit {
            true => Ok(format!("{held}, {longest} ms")),
            false => Err(format!("{held} after {took:?}, not within {limit:?}")),
        }
    }

    /// The job has ended, and not well, so soon after the fault.
    fn ends(&self, limit: Duration) -> Judgement {
        let fault = self.said.lines().find_map(|l| l.strip_prefix("fault at "));
        let fault: Option<u64> = fault.and_then(|fault| fault.parse().ok());
        let Some(fault) = fault else {
            return Err(format!("rank {CULPRIT} tells of no fault"));
        };
        let took = Duration::from_nanos(self.at.saturating_sub(fault));
        let code = self
            .code
            .map_or("a signal".into(), |code| format!("code {code}"));
        if self.code == Some(0) {
            return Err("it ends with code 0".into());
        }
        match took <= limit {
            true => Ok(format!("ended, {code}, {} ms", took.as_millis())),
            false => Err(format!("it ends after {took:?}, not within {limit:?}")),
        }
    }
}

/// Begins what is said of the second run.
pub const SECOND: &str = "second run:";
