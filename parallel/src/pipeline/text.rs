//! The printed form of a plan, and its reader.
//!
//! A line per rank, its actions separated by commas. `#` begins a comment. A rank that does
//! nothing is a `-`. Empty places between commas are allowed (PyTorch writes its bubbles so), and
//! `(1F1;0B0)OVERLAP_F_B` stands for the actions in it, in that order. The number of stages is the
//! largest that is named, plus one, and so with microbatches; a stage lives on the rank that
//! computes it. Where the stages are not a chain, one line before the ranks gives their edges:
//!
//! ```text
//! edges 0>1 1>2 0>2
//! 0F0, 0SEND_F0, 0SEND_F0>2, 0RECV_B0, 0RECV_B0>2, 0B0
//! 1RECV_F0, 1F0, 1SEND_F0, 1RECV_B0, 1B0, 1SEND_B0
//! 2RECV_F0>0, 2RECV_F0, 2F0, 2B0, 2SEND_B0, 2SEND_B0>0
//! ```
//!
//! **The reader is for text from anywhere: it never panics, and its memory is linear in the
//! text's length**, however large the numbers in it are.

use std::fmt;
use std::str::FromStr;

use super::{Action, PlanError, Schedule, StageGraph};

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.graph().is_chain() {
            f.write_str("edges")?;
            for (from, to) in self.graph().edges() {
                write!(f, " {from}>{to}")?;
            }
            f.write_str("\n")?;
        }
        for actions in self.ranks() {
            match actions.split_first() {
                None => f.write_str("-")?,
                Some((first, rest)) => {
                    write!(f, "{first}")?;
                    for action in rest {
                        write!(f, ", {action}")?;
                    }
                }
            }
            f.write_str("\n")?;
        }
        Ok(())
    }
}

/// A piece of text and where it stands.
#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    line: usize,
    /// The line it stands in, from its first character.
    context: &'a str,
}

impl<'a> Token<'a> {
    /// `text` must be a part of `context`.
    fn new(text: &'a str, line: usize, context: &'a str) -> Self {
        Self {
            text,
            line,
            context,
        }
    }

    fn trim(self) -> Self {
        Self {
            text: self.text.trim(),
            ..self
        }
    }

    fn error(self, reason: impl fmt::Display) -> PlanError {
        const SHOWN: usize = 40;
        let offset = self.text.as_ptr() as usize - self.context.as_ptr() as usize;
        let mut token: String = self.text.chars().take(SHOWN).collect();
        if self.text.chars().nth(SHOWN).is_some() {
            token.push('…');
        }
        PlanError::Parse {
            line: self.line,
            column: self.context[..offset].chars().count() + 1,
            token,
            reason: reason.to_string(),
        }
    }
}

/// Reads one place between commas into `out`: nothing, one action, or an overlapped group.
fn read_place(place: Token<'_>, out: &mut Vec<Action>) -> Result<(), PlanError> {
    let read = |token: Token<'_>| token.text.parse::<Action>().map_err(|e| token.error(e));
    if place.text.is_empty() {
        return Ok(());
    }
    let Some(inner) = place.text.strip_prefix('(') else {
        out.push(read(place)?);
        return Ok(());
    };
    let Some(inner) = inner.strip_suffix(")OVERLAP_F_B") else {
        return Err(place.error("a group is written (1F1;0B0)OVERLAP_F_B"));
    };
    for part in inner.split(';') {
        out.push(read(
            Token {
                text: part,
                ..place
            }
            .trim(),
        )?);
    }
    Ok(())
}

/// An edge and the piece of text that gives it.
type Edge<'a> = ((u16, u16), Token<'a>);

/// Reads the edges after the word `edges`; each comes with its token, for later complaints.
fn read_edges(rest: Token<'_>) -> Result<Vec<Edge<'_>>, PlanError> {
    let mut edges = Vec::new();
    for part in rest.text.split([' ', ',', '\t']).filter(|p| !p.is_empty()) {
        let token = Token { text: part, ..rest };
        let edge = part
            .split_once('>')
            .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let edge = edge.ok_or_else(|| token.error("an edge is two stages, as in 0>2"))?;
        edges.push((edge, token));
    }
    Ok(edges)
}

impl FromStr for Schedule {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let mut ranks: Vec<Vec<Action>> = Vec::new();
        let mut edges = None;
        // The tokens of the largest numbers, to point at if they turn out to be too large.
        let mut top_stage: Option<(usize, Token<'_>)> = None;
        let mut top_microbatch: Option<(usize, Token<'_>)> = None;
        let mut actions = 0usize;
        let mut last_line = Token::new("", 1, "");

        for (number, line) in text.lines().enumerate() {
            let body = line.split('#').next().unwrap_or_default();
            let body = Token::new(body, number + 1, line).trim();
            if body.text.is_empty() {
                continue;
            }
            last_line = body;
            if let Some(rest) = body.text.strip_prefix("edges") {
                if edges.is_some() || !ranks.is_empty() {
                    return Err(body.error("the edges stand once, before the ranks"));
                }
                edges = Some(read_edges(Token { text: rest, ..body })?);
                continue;
            }
            if ranks.len() == usize::from(u16::MAX) {
                return Err(body.error("there are more ranks than a plan can hold"));
            }
            let mut list = Vec::new();
            if body.text != "-" {
                for place in body.text.split(',') {
                    let place = Token {
                        text: place,
                        ..body
                    }
                    .trim();
                    let first = list.len();
                    read_place(place, &mut list)?;
                    for action in &list[first..] {
                        let stage = action.stage().max(action.peer());
                        if top_stage.is_none_or(|(top, _)| stage > top) {
                            top_stage = Some((stage, place));
                        }
                        if top_microbatch.is_none_or(|(top, _)| action.microbatch() > top) {
                            top_microbatch = Some((action.microbatch(), place));
                        }
                    }
                }
            }
            actions += list.len();
            list.shrink_to_fit();
            ranks.push(list);
        }

        // A number beyond the count of actions leaves gaps, which no plan has; refusing it here
        // keeps every table that is indexed by one of them linear in the text.
        let (Some((top, stage_token)), Some((last_microbatch, microbatch_token))) =
            (top_stage, top_microbatch)
        else {
            return Err(last_line.error("there is no action"));
        };
        if top >= actions {
            let reason = format!("stage {top} is named, but there are only {actions} actions");
            return Err(stage_token.error(reason));
        }
        if last_microbatch >= actions {
            let reason = format!("microbatch {last_microbatch}, but only {actions} actions");
            return Err(microbatch_token.error(reason));
        }
        if last_microbatch == usize::from(u16::MAX) || top == usize::from(u16::MAX) {
            return Err(stage_token.error("there are more than a plan can hold"));
        }

        let stages = top + 1;
        let rank_of = place_stages(stages, &ranks).map_err(|stage| {
            stage_token.error(format!(
                "stage {top} is named, but stage {stage} has no action"
            ))
        })?;
        let graph = match edges {
            None => StageGraph::chain(stages as u16),
            Some(edges) => {
                let pairs: Vec<_> = edges.iter().map(|&(edge, _)| edge).collect();
                StageGraph::new(stages as u16, &pairs).map_err(|error| {
                    let token = match &error {
                        PlanError::Edge { from, to, .. } => {
                            edges.iter().rev().find(|&&(edge, _)| edge == (*from, *to))
                        }
                        _ => None,
                    };
                    token.map_or(last_line, |&(_, token)| token).error(error)
                })?
            }
        };
        Schedule::new(graph, rank_of, (last_microbatch + 1) as u16, ranks)
    }
}

/// The rank of each stage: the first that computes it, or else the first that names it. The error
/// is a stage that nobody names.
fn place_stages(stages: usize, ranks: &[Vec<Action>]) -> Result<Vec<u16>, usize> {
    let mut rank_of: Vec<Option<u16>> = vec![None; stages];
    for pass in [true, false] {
        for (rank, list) in ranks.iter().enumerate() {
            for action in list.iter().filter(|a| a.kind().is_compute() == pass) {
                rank_of[action.stage()].get_or_insert(rank as u16);
            }
        }
    }
    let missing = |stage: usize| rank_of[stage].ok_or(stage);
    (0..stages).map(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints_and_what_torch_prints() {
        let text = "edges 0>1 0>2 1>2\n0F0, 0B0\n1F0, 1B0\n2F0, 2B0\n";
        assert_eq!(text.parse::<Schedule>().unwrap().to_string(), text);
        let torch = "0F0,,(1F0;0B0)OVERLAP_F_B , \n";
        let read: Schedule = torch.parse().unwrap();
        assert_eq!(read.to_string(), "0F0, 1F0, 0B0\n");
        let idle: Schedule = "0F0,0B0\n-\n".parse().unwrap();
        assert_eq!(
            (idle.rank_count(), idle.to_string().as_str()),
            (2, "0F0, 0B0\n-\n")
        );
    }

    #[test]
    fn errors_name_line_column_and_token() {
        let error = |text: &str| text.parse::<Schedule>().unwrap_err().to_string();
        assert_eq!(
            error("# a plan\n0F0, 0Q0"),
            "line 2, column 6: `0Q0`: after the stage stands one of F, I, W, B, SEND_F, RECV_F, \
             SEND_B, RECV_B, UNSHARD, RESHARD, REDUCE_GRAD, REDUCE_TIED"
        );
        assert!(error("0F0,0B0\n9F0,9B0").starts_with("line 2, column 1: `9F0`: stage 9"));
        assert!(error("0F0,0B60000").starts_with("line 1, column 5: `0B60000`: microbatch"));
        assert!(error("edges 0>1 0>7\n0F0,0B0\n1F0,1B0").starts_with("line 1, column 11: `0>7`"));
        assert!(error("").contains("no action"));
        assert!(error("é, 0F0").starts_with("line 1, column 1: `é`"));
    }
}
