//! What the ranks of a job write, line by line: mpirun passes on pieces, of several ranks at once, and tags each.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

/// Writes a line on stderr, in one piece: others write there too.
///
/// # Errors
/// It cannot be written.
pub fn report(line: impl fmt::Display) -> io::Result<()> {
    io::stderr().write_all(format!("{line}\n").as_bytes())
}

/// All that comes from a stream, if there is one, as far as it can be read.
pub fn read_all(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _ = stream.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A line that a rank, or somebody else, has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub rank: Option<usize>,
    pub is_error: bool,
    pub text: String,
}

impl Line {
    /// What the launcher itself has to say.
    pub fn ours(text: String) -> Line {
        Line {
            rank: None,
            is_error: true,
            text,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "[{rank}] {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// The lines of both streams of `mpirun --tag-output`, as they come; the end, when nobody has the streams any more.
pub fn lines(child: &mut Child) -> Receiver<Line> {
    let (sender, receiver) = channel();
    let streams: [(bool, Option<Box<dyn Read + Send>>); 2] = [
        (false, child.stdout.take().map(|s| Box::new(s) as _)),
        (true, child.stderr.take().map(|s| Box::new(s) as _)),
    ];
    for (is_error, stream) in streams {
        let sender = sender.clone();
        thread::spawn(move || {
            let mut open = Open::default();
            for line in BufReader::new(stream.into_iter().next()?).split(b'\n') {
                let line = line.ok()?;
                let line = open.take(&String::from_utf8_lossy(&line), is_error);
                sender.send(line).ok()?;
            }
            Some(())
        });
    }
    receiver
}

/// Lines that have begun and not ended: what a rank has written without a line break before another one wrote.
#[derive(Default)]
struct Open(HashMap<(usize, bool), String>);

impl Open {
    /// Takes in what mpirun has put on one line, `[1,2]<stderr>:text` for rank 2, perhaps with pieces of others before
    /// it; the line break is that of the last piece.
    fn take(&mut self, line: &str, is_error: bool) -> Line {
        let (mut rest, mut last) = (line, None);
        while let Some((before, rank, is_error, after)) = next_tag(rest) {
            self.add(last, before);
            (rest, last) = (after, Some((rank, is_error)));
        }
        let Some((rank, is_error)) = last else {
            return Line {
                rank: None,
                is_error,
                text: rest.to_owned(),
            };
        };
        let text = self.0.remove(&(rank, is_error)).unwrap_or_default() + rest;
        Line {
            rank: Some(rank),
            is_error,
            text,
        }
    }

    fn add(&mut self, of: Option<(usize, bool)>, piece: &str) {
        if let Some(of) = of {
            self.0.entry(of).or_default().push_str(piece);
        }
    }
}

/// The first tag in `text`: what stands before it, whose it is, and what follows.
fn next_tag(text: &str) -> Option<(&str, usize, bool, &str)> {
    text.match_indices('[').find_map(|(at, _)| {
        let (tag, rest) = text[at + 1..].split_once("]<")?;
        let (job, rank) = tag.split_once(',')?;
        job.parse::<u32>().ok()?;
        let (stream, after) = rest.split_once(">:")?;
        let is_error = match stream {
            "stdout" => false,
            "stderr" => true,
            _ => return None,
        };
        Some((&text[..at], rank.parse().ok()?, is_error, after))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(rank: Option<usize>, text: &str) -> Line {
        Line {
            rank,
            is_error: true,
            text: text.to_owned(),
        }
    }

    #[test]
    fn pieces_find_their_rank() {
        let mut open = Open::default();
        let taken = open.take("[1,2]<stderr>:a whole [line]<of>:text", true);
        assert_eq!(taken, line(Some(2), "a whole [line]<of>:text"));
        let both = "[1,1]<stderr>:rank [1,0]<stderr>:rank [1,1]<stderr>:1[1,1]<stderr>: fails";
        assert_eq!(open.take(both, true), line(Some(1), "rank 1 fails"));
        let rest = open.take("[1,0]<stderr>:0 too", true);
        assert_eq!(rest, line(Some(0), "rank 0 too"));
        assert!(open.0.is_empty());
    }

    #[test]
    fn what_has_no_tag_is_mpiruns() {
        let mut open = Open::default();
        for text in ["", "-----", "mpirun noticed [[7059,1],1]", "[host:12] what"] {
            assert_eq!(open.take(text, true), line(None, text));
        }
    }
}
