//! Where a file can be made wrong, and how: one small change at a time, of kinds that mean something on a card.

use std::fmt;

use super::host;
use crate::rust_code::code;

/// What is made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A barrier of a block or a warp is left out.
    Barrier,
    /// A wait is left out.
    Wait,
    /// The record of an event or of a use, or a number of an operation, is left out.
    Record,
    /// What writes is taken for what reads, which orders less.
    Use,
    /// A flag is neither looked at nor cleared.
    Flag,
    /// Memory or a lock is not given back.
    Free,
    /// A lock is given back at once.
    Lock,
    /// A condition is its contrary, or a part of it is left out.
    Check,
    /// A comparison lets one more or one fewer in, or a limit is left out.
    Bound,
    /// An index is one too large.
    Index,
    /// An offset is left out.
    Offset,
}

pub const KINDS: [Kind; 11] = [
    Kind::Barrier,
    Kind::Wait,
    Kind::Record,
    Kind::Use,
    Kind::Flag,
    Kind::Free,
    Kind::Lock,
    Kind::Check,
    Kind::Bound,
    Kind::Index,
    Kind::Offset,
];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Barrier => "barrier",
            Kind::Wait => "wait",
            Kind::Record => "record",
            Kind::Use => "use",
            Kind::Flag => "flag",
            Kind::Free => "free",
            Kind::Lock => "lock",
            Kind::Check => "check",
            Kind::Bound => "bound",
            Kind::Index => "index",
            Kind::Offset => "offset",
        })
    }
}

/// A change of a line, or of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// How many lines it takes the place of.
    pub lines: usize,
    pub kind: Kind,
    /// The whole lines, before and after, without spaces at their ends, as one.
    pub before: String,
    pub after: String,
}

impl Mutant {
    pub fn is_in_kernel(&self) -> bool {
        self.file.ends_with(".cu")
    }

    /// The text of its file, changed.
    pub fn apply(&self, text: &str) -> String {
        let mut lines: Vec<&str> = text.lines().collect();
        let first = self.line - 1;
        lines.splice(first..first + self.lines, [&*self.after]);
        lines.join("\n") + "\n"
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mutant {
            file,
            line,
            kind,
            before,
            after,
            ..
        } = self;
        write!(f, "{file}:{line}: {kind}: {before} -> {after}")
    }
}

/// Words in the names of offsets.
const OFFSETS: &[&str] = &["offset", "start", "base", "first", "begin", "lead"];

/// All changes of the file `name`, which holds `text`.
pub fn mutants(name: &str, text: &str) -> Vec<Mutant> {
    if !name.ends_with(".cu") {
        return host::mutants(name, text);
    }
    let code = code(name, text).text;
    let mut all = Vec::new();
    for (at, (whole, code)) in text.lines().zip(code.lines()).enumerate() {
        // Where both are alike there is neither a comment nor a text in the line.
        if whole.trim() != code.trim() || code.trim_start().starts_with('#') {
            continue;
        }
        let make = |(kind, after): (Kind, String)| Mutant {
            file: name.to_owned(),
            line: at + 1,
            lines: 1,
            kind,
            before: whole.trim().to_owned(),
            after: after.trim().to_owned(),
        };
        all.extend(in_kernel(code).into_iter().map(make));
    }
    all
}

type Changes = Vec<(Kind, String)>;

fn in_kernel(line: &str) -> Changes {
    let mut changes = Vec::new();
    for barrier in ["__syncthreads();", "__syncwarp();"] {
        if line.contains(barrier) {
            changes.push((Kind::Barrier, line.replacen(barrier, ";", 1)));
        }
    }
    let decides = ["if (", "for (", "while (", " ? ", " && ", "return "];
    if decides.iter().any(|word| line.contains(word)) {
        changes.extend(bounds(line));
    }
    if !declares_array(line) {
        changes.extend(indices(line));
    }
    changes.extend(offsets(line));
    changes
}

/// Sizes of arrays of registers, beside numbers.
const REGISTERS: &[&str] = &[
    "N;",
    "RUN;",
    "RUN ",
    "TAPS;",
    "VECTOR;",
    "held;",
    "Chunks<N, 2>::held;",
    "(int)sizeof(T);",
];

/// Each `<` between spaces, by itself. Not below the size of an array of registers: what then goes behind it has no
/// meaning, and the compiler leaves it out. Not where the smaller of two is chosen, either: of equals it does not matter
/// which one that is.
fn bounds(line: &str) -> Changes {
    let places = line.match_indices(" < ").filter(|(at, _)| {
        let limit = &line[at + 3..];
        let is_size = limit.starts_with(|mark: char| mark.is_ascii_digit())
            || REGISTERS.iter().any(|size| limit.starts_with(size));
        !is_size && !chooses_smaller(&line[..*at], limit)
    });
    let change = |(at, _)| {
        (
            Kind::Bound,
            format!("{} <= {}", &line[..at], &line[at + 3..]),
        )
    };
    places.map(change).collect()
}

/// Whether `a < b` belongs to `a < b ? a : b`, where more may stand before the `?` behind `||`.
fn chooses_smaller(before: &str, behind: &str) -> bool {
    let Some((condition, values)) = behind.split_once(" ? ") else {
        return false;
    };
    let b = condition.split(" || ").next().unwrap_or(condition);
    let Some((a, rest)) = values.split_once(" : ") else {
        return false;
    };
    let is_whole = rest
        .strip_prefix(b)
        .is_some_and(|rest| !rest.starts_with(is_name));
    is_whole
        && before.trim_end().ends_with(a)
        && !before[..before.len() - a.len()].ends_with(is_name)
}

fn declares_array(line: &str) -> bool {
    let Some((before, _)) = line.split_once('[') else {
        return false;
    };
    let words: Vec<&str> = before.split_whitespace().collect();
    line.contains("__shared__")
        // `float left[4], right[4];`: two words that an operator does not join.
        || words.len() >= 2 && words.iter().all(|word| word.chars().all(is_name))
            && !matches!(words[0], "return" | "else")
}

fn is_name(mark: char) -> bool {
    mark.is_ascii_alphanumeric() || mark == '_'
}

/// Where the bracket closes with which `text` begins.
fn closing(text: &str, open: char, close: char) -> Option<usize> {
    let mut depth = 0;
    text.find(|mark| {
        depth += i32::from(mark == open) - i32::from(mark == close);
        depth == 0
    })
}

/// Each index in brackets, by itself; `(&v)[4]` is a parameter.
fn indices(line: &str) -> Changes {
    let mut changes = Vec::new();
    for (open, _) in line.match_indices('[') {
        let before = &line[..open];
        let is_index = before.ends_with(|mark| is_name(mark) || mark == ']' || mark == ')');
        let is_parameter = before.ends_with(')')
            && before
                .rsplit('(')
                .next()
                .is_some_and(|last| last.starts_with('&'));
        let is_index = is_index && !is_parameter;
        let close = closing(&line[open..], '[', ']');
        if let (true, Some(close)) = (is_index, close.map(|close| open + close)) {
            let after = format!("{} + 1{}", &line[..close], &line[close..]);
            changes.push((Kind::Index, after));
        }
    }
    changes
}

/// Each sum with something that is called an offset, by itself.
fn offsets(line: &str) -> Changes {
    let mut changes = Vec::new();
    for (at, _) in line.match_indices(" + ") {
        let rest = &line[at + 3..];
        let end = rest.find(|mark| !is_name(mark) && mark != '.');
        let end = end.unwrap_or(rest.len());
        let name = &rest[..end];
        // A call goes with its arguments.
        let call = match rest[end..].starts_with('(') {
            true => closing(&rest[end..], '(', ')').map_or(0, |close| close + 1),
            false => 0,
        };
        if OFFSETS.iter().any(|word| name.contains(word)) {
            let after = format!("{}{}", &line[..at], &rest[end + call..]);
            changes.push((Kind::Offset, after));
        }
    }
    changes
}

/// So many of `all`, by a seed: in turn of kernels and of the host's code.
pub fn pick(all: &[Mutant], count: usize, seed: u64) -> Vec<Mutant> {
    let parts = [true, false].map(|is_in_kernel| {
        let part = all
            .iter()
            .filter(|mutant| mutant.is_in_kernel() == is_in_kernel);
        by_kind(part.collect(), seed)
    });
    in_turn(&parts).into_iter().take(count).cloned().collect()
}

/// All of them, in turn of each kind, of each kind in an order of its own.
fn by_kind(all: Vec<&Mutant>, seed: u64) -> Vec<&Mutant> {
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    let kinds = KINDS.map(|kind| {
        let own = all.iter().copied().filter(|mutant| mutant.kind == kind);
        let mut own: Vec<&Mutant> = own.collect();
        for at in (1..own.len()).rev() {
            let other = (random() % (at as u64 + 1)) as usize;
            own.swap(at, other);
        }
        own
    });
    in_turn(&kinds)
}

/// The first of each list, then the second of each that has one, and so on.
fn in_turn<'a>(lists: &[Vec<&'a Mutant>]) -> Vec<&'a Mutant> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    let turns = (0..longest).flat_map(|at| lists.iter().filter_map(move |own| own.get(at)));
    turns.copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a line, by kinds.
    fn after(name: &str, line: &str) -> Vec<(Kind, String)> {
        let all = mutants(name, &format!("{line}\n"));
        all.into_iter().map(|m| (m.kind, m.after)).collect()
    }

    #[test]
    fn kernels_are_changed() {
        let cu = |line| after("kernel.cu", line);
        assert_eq!(cu("    __syncthreads();"), [(Kind::Barrier, ";".into())]);
        assert_eq!(
            cu("if (r < m && d < k) c = a[r];"),
            [
                (Kind::Bound, "if (r <= m && d < k) c = a[r];".into()),
                (Kind::Bound, "if (r < m && d <= k) c = a[r];".into()),
                (Kind::Index, "if (r < m && d < k) c = a[r + 1];".into()),
            ]
        );
        assert_eq!(
            cu("p = x + rows.lead.at(row, f(2)) * 3;"),
            [(Kind::Offset, "p = x * 3;".into())]
        );
        assert_eq!(
            cu("y[x[i]] = p + offset * 2 + view.start();"),
            [
                (
                    Kind::Index,
                    "y[x[i] + 1] = p + offset * 2 + view.start();".into()
                ),
                (
                    Kind::Index,
                    "y[x[i + 1]] = p + offset * 2 + view.start();".into()
                ),
                (Kind::Offset, "y[x[i]] = p * 2 + view.start();".into()),
                (Kind::Offset, "y[x[i]] = p + offset * 2;".into()),
            ]
        );
        for line in [
            "__shared__ R tile[16][17];",
            "R left[4], right[4];",
            "void read(i64 first, R (&v)[N], R pad) const {",
            "// if (a < b) x[0] = 1;",
            "#define LESS(a, b) a < b ? 1 : 0",
            "Compute<T> x = widen<T>(y);",
            "for (int j = 0; j < 4; j++) sum += j;",
            "for (int j = 0; j < N; j++) sum += j;",
            "for (int k = 0; k < RUN; k++) sum += k;",
            "i64 min_of(i64 a, i64 b) { return a < b ? a : b; }",
            "R combine(R a, R b) { return a < b || a != a ? a : b; }",
            "to = from + length < count ? from + length : count;",
        ] {
            assert_eq!(cu(line), [], "{line}");
        }
    }

    #[test]
    fn what_is_not_the_smaller_of_two_is_a_bound() {
        for line in [
            "x = a < b ? a : b2;",
            "x = a < b ? c : b;",
            "x = a < b ? 1 : 0;",
            "x = la < b ? a : b;",
        ] {
            let changes = after("kernel.cu", line);
            assert_eq!(
                changes,
                [(Kind::Bound, line.replacen(" < ", " <= ", 1))],
                "{line}"
            );
        }
    }

    #[test]
    fn a_change_is_of_one_line() {
        let text = "a\nif (i < n) b;\nc\n";
        let all = mutants("kernel.cu", text);
        assert_eq!(all[0].apply(text), "a\nif (i <= n) b;\nc\n");
    }

    #[test]
    fn each_kind_has_its_turn() {
        let text = "__syncthreads();\nif (i < n) a[i] = 1;\nif (j < n) b[j] = 2;\n";
        let all = mutants("kernel.cu", text);
        let some = pick(&all, 3, 7);
        let kinds: Vec<Kind> = some.iter().map(|mutant| mutant.kind).collect();
        assert_eq!(kinds, [Kind::Barrier, Kind::Bound, Kind::Index]);
        assert_eq!(pick(&all, 3, 7), some);
        assert_eq!(pick(&all, 99, 7).len(), all.len());
    }

    #[test]
    fn kernels_and_the_host_have_their_turns() {
        let kernel = mutants("kernel.cu", "__syncthreads();\nif (i < n) a[i] = 1;\n");
        let host = mutants("lanes.rs", "lanes.wait(lane, stamp)?;\n");
        let some = pick(&[&kernel[..], &host].concat(), 3, 7);
        let files: Vec<&str> = some.iter().map(|mutant| &*mutant.file).collect();
        assert_eq!(files, ["kernel.cu", "lanes.rs", "kernel.cu"]);
        assert_eq!(some[2], pick(&kernel, 2, 7)[1]);
    }
}
