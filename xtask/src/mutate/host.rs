//! Where the host's code for cards can be made wrong: it orders what runs on a card, so each wait, record, look at a
//! flag, free and check is left out or weakened by itself. A change is of a statement, which may have several lines.

use std::ops::Range;

use super::mistakes::{CALLS, COMPARED, NOTES, WEAKER};
use super::sites::{Kind, Mutant};
use crate::rust_code::code;

/// A file, and what of it is code, character by character.
struct File<'a> {
    name: &'a str,
    text: Vec<char>,
    code: Vec<char>,
}

/// A change, and the expression or statement that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    pub mutant: Mutant,
    /// The places of the characters that are replaced.
    pub part: Range<usize>,
    pub new: String,
    /// The places of those of the whole expression, or of the whole statement with its semicolon.
    pub whole: Range<usize>,
}

/// All changes of the file `name`, which holds `text`.
pub fn mutants(name: &str, text: &str) -> Vec<Mutant> {
    edits(name, text)
        .into_iter()
        .map(|edit| edit.mutant)
        .collect()
}

/// The same, with their places.
pub fn edits(name: &str, text: &str) -> Vec<Edit> {
    let file = File {
        name,
        text: text.chars().collect(),
        code: code(name, text).text.chars().collect(),
    };
    let mut all = Vec::new();
    for (kind, call, result) in CALLS {
        let places = file.places(call).into_iter();
        all.extend(places.filter_map(|at| file.without(*kind, at, result)));
    }
    for note in NOTES {
        let places = file.places(note).into_iter();
        all.extend(places.filter_map(|at| file.without(Kind::Record, at, "()")));
    }
    for (kind, old, new) in WEAKER.iter().chain(COMPARED) {
        for at in file.places(old) {
            if !file.line(at).contains("assert") {
                all.push(file.change(*kind, at, at + old.chars().count(), new));
            }
        }
    }
    for word in ["if ", "while "] {
        let places = file.places(word).into_iter();
        all.extend(places.filter_map(|at| file.negated(at + word.len())));
    }
    for joint in [" && ", " || "] {
        let places = file.places(joint).into_iter();
        all.extend(places.flat_map(|at| file.halves(at, joint.len())));
    }
    for least in [".min(", ".max(", ".clamp("] {
        let places = file.places(least).into_iter();
        all.extend(places.filter_map(|at| file.unlimited(at, at + least.len() - 1)));
    }
    all.sort_by_key(|edit| edit.mutant.line);
    all.dedup_by(|a, b| a.mutant == b.mutant);
    all
}

impl File<'_> {
    /// Where `word` stands in code, and is no part of a longer word or of a function's head.
    fn places(&self, word: &str) -> Vec<usize> {
        let word: Vec<char> = word.chars().collect();
        let found = self.code.windows(word.len()).enumerate();
        let found = found.filter(|(at, there)| {
            let part = at.checked_sub(1).map(|before| self.code[before]);
            *there == word && !(is_name(word[0]) && part.is_some_and(is_name))
        });
        let found = found.map(|(at, _)| at);
        let is_head = |at: &usize| {
            let line = self.line(*at);
            let head = ["fn ", "use ", "macro_rules", "#["];
            head.iter().any(|word| line.contains(word))
        };
        found.filter(|at| !is_head(at)).collect()
    }

    fn slice(&self, from: usize, to: usize) -> String {
        self.code[from..to].iter().collect()
    }

    /// The text, without its comments.
    fn words(&self, from: usize, to: usize) -> String {
        let text: String = self.text[from..to].iter().collect();
        let mut at = from;
        let mut lines = Vec::new();
        for line in text.split('\n') {
            let code = self.slice(at, at + line.chars().count());
            let whole = match line.find("//") {
                // Not in a text, which is blank in the code.
                Some(_) if code.trim_end().chars().count() < line.trim_end().chars().count() => {
                    code
                }
                _ => line.to_owned(),
            };
            at += line.chars().count() + 1;
            lines.push(whole);
        }
        lines.join("\n")
    }

    /// The code of the line in which `at` is.
    fn line(&self, at: usize) -> String {
        let start = self.code[..at].iter().rposition(|&mark| mark == '\n');
        let end = self.code[at..].iter().position(|&mark| mark == '\n');
        let end = end.map_or(self.code.len(), |end| at + end);
        self.slice(start.map_or(0, |start| start + 1), end)
    }

    /// The statement around `at`, with its semicolon; or the expression, where it is an arm, an argument or the last
    /// of a block. An `unsafe` block counts as what is in it.
    fn statement(&self, at: usize) -> (usize, usize) {
        let (mut start, mut end) = (self.start(at), self.end(at));
        while self.slice(0, start).trim_end().ends_with("unsafe {") {
            let block = self.slice(0, start).trim_end().chars().count() - "unsafe {".len();
            let close = self.code[end..].iter().position(|&mark| mark == '}');
            (start, end) = (self.start(block), self.end(end + close.unwrap_or(0) + 1));
        }
        (start, end)
    }

    /// Where the statement begins, or the expression, that goes on at `at`.
    fn start(&self, at: usize) -> usize {
        let (mut depth, mut place) = (0_i32, at);
        while place > 0 {
            let mark = self.code[place - 1];
            match mark {
                ')' | ']' => depth += 1,
                '}' if depth == 0 && self.begins_anew(place) => break,
                '}' => depth += 1,
                '(' | '[' | '{' if depth == 0 => break,
                '(' | '[' | '{' => depth -= 1,
                ';' | ',' if depth == 0 => break,
                '>' if depth == 0 && self.code[place - 2] == '=' => break,
                // The head of a closure; not `||`.
                '|' if depth == 0 && self.code[place] == ' ' && self.code[place - 2] != '|' => {
                    break;
                }
                _ => {}
            }
            place -= 1;
        }
        let space = self.code[place..]
            .iter()
            .position(|mark| !mark.is_whitespace());
        place + space.unwrap_or(0)
    }

    /// Whether a new statement follows the block that ends before `place`.
    fn begins_anew(&self, place: usize) -> bool {
        let rest = self.slice(place, self.code.len().min(place + 200));
        let rest = rest.trim_start();
        rest.starts_with(|mark: char| is_name(mark) || mark == '*') && !rest.starts_with("else")
    }

    /// Where the statement ends, or the expression, that has begun before `at`.
    fn end(&self, at: usize) -> usize {
        let mut depth = 0_i32;
        for place in at..self.code.len() {
            match self.code[place] {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => return self.trimmed(place),
                ')' | ']' | '}' => depth -= 1,
                ',' if depth == 0 => return self.trimmed(place),
                ';' if depth == 0 => return place + 1,
                _ => {}
            }
        }
        self.code.len()
    }

    /// `end` without the spaces before it.
    fn trimmed(&self, end: usize) -> usize {
        let space = self.code[..end]
            .iter()
            .rposition(|mark| !mark.is_whitespace());
        space.map_or(0, |last| last + 1)
    }

    /// The length of the name, with its colon, of a structure's field that is at `start`.
    fn field(&self, start: usize) -> Option<usize> {
        let rest = &self.code[start..];
        let len = rest.iter().position(|&mark| !is_name(mark))?;
        (len > 0 && rest[len..].starts_with(&[':', ' '])).then_some(len + ": ".len())
    }

    /// The whole lines from `from` to `to`, where that part is replaced.
    fn change(&self, kind: Kind, from: usize, to: usize, new: &str) -> Edit {
        let first = self.code[..from].iter().rposition(|&mark| mark == '\n');
        let first = first.map_or(0, |first| first + 1);
        let rest = self.code[to.max(from)..]
            .iter()
            .position(|&mark| mark == '\n');
        let last = rest.map_or(self.code.len(), |rest| to + rest);
        let join = |parts: &[&str]| {
            let text = parts.concat();
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            lines.collect::<Vec<_>>().join(" ")
        };
        // Comments are left out, so that the lines can be joined.
        let count = |to: usize| self.code[..to].iter().filter(|&&mark| mark == '\n').count();
        let mutant = Mutant {
            file: self.name.to_owned(),
            line: count(from) + 1,
            lines: count(last) - count(from) + 1,
            kind,
            before: join(&[&self.words(first, last)]),
            after: join(&[&self.words(first, from), new, &self.words(to, last)]),
        };
        let whole = self.whole(from, to);
        Edit {
            mutant,
            part: from..to,
            new: new.to_owned(),
            whole: whole.start.min(from)..whole.end.max(to),
        }
    }

    /// The expression, or the whole statement, in which the characters from `from` to `to` are.
    fn whole(&self, from: usize, to: usize) -> Range<usize> {
        let (start, end) = self.statement(from);
        let before = self.slice(start, from);
        let choice = ["if ", "while ", "match "].iter();
        let choice = choice
            .filter_map(|word| Some(before.rfind(word)? + word.len()))
            .max();
        if let Some(choice) = choice {
            // A condition, a guard, or what is matched.
            let ends = |place: &usize| {
                matches!(self.code[*place], '{') || self.code[*place..].starts_with(&['=', '>'])
            };
            let end = (to..end).find(ends).unwrap_or(end);
            return start + choice..self.trimmed(end);
        }
        let named = match before.starts_with("let ") {
            true => before.find(" = ").map(|at| at + " = ".len()),
            false => self.field(start),
        };
        match named {
            Some(named) if self.code[end - 1] == ';' => start + named..end - 1,
            Some(named) => start + named..end,
            None => start..end,
        }
    }

    /// The call at `at` is left out: its statement, or what stands for its result.
    fn without(&self, kind: Kind, at: usize, result: &str) -> Option<Edit> {
        let (start, end) = self.statement(at);
        let words = self.slice(start, end);
        let is_statement = words.ends_with(';');
        let is_named = words.starts_with("let ") && !words.starts_with("let _ =");
        match is_named {
            true => {
                let equals = words.find(" = ")? + " = ".len();
                let value = words[equals..].trim();
                // A closure that is called later, or a choice, is changed where it is.
                let is_other = ["|", "match ", "if "]
                    .iter()
                    .any(|word| value.starts_with(word));
                (is_statement && !is_other)
                    .then(|| self.change(kind, start + equals, end - 1, result))
            }
            false
                if ["for ", "if ", "match ", "while "]
                    .iter()
                    .any(|word| words.starts_with(word)) =>
            {
                None
            }
            false if words.starts_with("return ") => {
                Some(self.change(kind, start, end, &format!("return {result};")))
            }
            false if is_statement => Some(self.change(kind, start, end, "")),
            false if words.ends_with('?') => Some(self.change(kind, start, end, "()")),
            false => Some(self.change(kind, start, end, result)),
        }
    }

    /// The contrary of the condition that begins at `at`.
    fn negated(&self, at: usize) -> Option<Edit> {
        let mut depth = 0_i32;
        let end = (at..self.code.len()).find(|&place| {
            let mark = self.code[place];
            let arrow = mark == '=' && self.code.get(place + 1) == Some(&'>');
            depth += i32::from(mark == '(') - i32::from(mark == ')');
            depth == 0 && (mark == '{' || arrow)
        })?;
        let end = self.trimmed(end);
        let condition = self.words(at, end);
        // Equality has its contrary as a comparison, and a pattern has none.
        let is_other = ["let ", " == ", " != ", "unsafe"]
            .iter()
            .any(|word| condition.contains(word));
        (!is_other).then(|| self.change(Kind::Check, at, end, &format!("!({condition})")))
    }

    /// Each side of the joint at `at` is left out.
    fn halves(&self, at: usize, len: usize) -> Vec<Edit> {
        if self.slice(0, at).ends_with(['=', '(', ',']) {
            return Vec::new(); // the head of a closure
        }
        let (start, mut depth) = (self.start(at), 0_i32);
        let left = (start..at).rev().find(|&place| {
            let mark = self.code[place];
            depth += i32::from(mark == ')') - i32::from(mark == '(');
            let before = self.slice(start, place);
            let words = [" && ", " || ", "if ", " = ", "return ", "while "];
            depth == 0 && words.iter().any(|word| before.ends_with(word))
        });
        let left = left.unwrap_or(start + self.field(start).unwrap_or(0));
        let mut depth = 0_i32;
        let right = (at + len..self.code.len()).find(|&place| {
            let mark = self.code[place];
            let next = self.slice(place, self.code.len().min(place + 4));
            let ends = [" && ", " || ", " =>"]
                .iter()
                .any(|word| next.starts_with(word));
            let closes = depth == 0 && (matches!(mark, '{' | ';' | ',' | ')' | '}') || ends);
            depth += i32::from(mark == '(') - i32::from(mark == ')');
            closes
        });
        let Some(right) = right.map(|right| self.trimmed(right)) else {
            return Vec::new();
        };
        vec![
            self.change(Kind::Check, left, at + len, ""),
            self.change(Kind::Check, at, right, ""),
        ]
    }

    /// The limit of a number, from `at` on, with its bracket at `open`, is left out.
    fn unlimited(&self, at: usize, open: usize) -> Option<Edit> {
        let mut depth = 0_i32;
        let close = (open..self.code.len()).find(|&place| {
            let mark = self.code[place];
            depth += i32::from(mark == '(') - i32::from(mark == ')');
            depth == 0
        })?;
        let is_extremum = close == open + 1; // of an iterator
        (!is_extremum).then(|| self.change(Kind::Bound, at, close + 1, ""))
    }
}

fn is_name(mark: char) -> bool {
    mark.is_ascii_alphanumeric() || mark == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a text, by kinds.
    fn after(text: &str) -> Vec<(Kind, String)> {
        let all = mutants("lanes.rs", &format!("{text}\n"));
        all.into_iter().map(|m| (m.kind, m.after)).collect()
    }

    #[test]
    fn calls_are_left_out() {
        for (text, kind, changed) in [
            ("    lanes.wait(lane, self.write)?;", Kind::Wait, ""),
            ("    lanes.wait(lane, self.write)", Kind::Wait, "Ok(())"),
            (
                "let seen = gpu.wait(op, stamp);",
                Kind::Wait,
                "let seen = Ok(());",
            ),
            ("return gpu.wait(op, stamp);", Kind::Wait, "return Ok(());"),
            (
                "all.try_for_each(|s| lanes.wait(lane, s))",
                Kind::Wait,
                "all.try_for_each(|s| Ok(()))",
            ),
            (
                "unsafe { result::event::record(event.0, stream) }?;",
                Kind::Record,
                "",
            ),
            (
                "let _ = unsafe { result::free_async(at, stream) };",
                Kind::Free,
                "",
            ),
            (
                "Use::Read => storage.read(self.stamp),",
                Kind::Record,
                "Use::Read => (),",
            ),
            (
                "true => gpu.index.look(note),",
                Kind::Flag,
                "true => Ok(()),",
            ),
            (
                "n if n => gpu.wait(op, oldest)?,",
                Kind::Wait,
                "n if n => (),",
            ),
            ("self.seen[to][from] = number;", Kind::Record, ""),
            ("drop(issue);", Kind::Free, ""),
        ] {
            let all = after(text);
            assert!(all.contains(&(kind, changed.to_owned())), "{text}: {all:?}");
        }
    }

    #[test]
    fn what_orders_more_is_weakened() {
        assert_eq!(
            after("Use::Write => storage.written(self.stamp),"),
            [
                (Kind::Record, "Use::Write => (),".into()),
                (Kind::Use, "Use::Write => storage.read(self.stamp),".into()),
            ]
        );
        assert_eq!(
            after("let _issuing = self.lock();"),
            [(Kind::Lock, "let _ = self.lock();".into())]
        );
    }

    #[test]
    fn conditions_are_changed() {
        assert_eq!(
            after("if n >= most && (a || b) {"),
            [
                (Kind::Bound, "if n > most && (a || b) {".into()),
                (Kind::Check, "if !(n >= most && (a || b)) {".into()),
                (Kind::Check, "if (a || b) {".into()),
                (Kind::Check, "if n >= most {".into()),
                (Kind::Check, "if n >= most && (b) {".into()),
                (Kind::Check, "if n >= most && (a) {".into()),
            ]
        );
        assert_eq!(
            after("let found = all.find(|x| *x == y);"),
            [(Kind::Check, "let found = all.find(|x| *x != y);".into())]
        );
        assert_eq!(
            after("let each = pixels.min(most - 1).max(f(1));"),
            [
                (Kind::Bound, "let each = pixels.max(f(1));".into()),
                (Kind::Bound, "let each = pixels.min(most - 1);".into()),
            ]
        );
    }

    #[test]
    fn statements_may_have_lines() {
        let text = "if a {\n    b();\n}\nflags\n    .own // of this card\n    .before_write(lanes)?;\nc();\n";
        let all = mutants("index.rs", text);
        let wait = all.iter().find(|mutant| mutant.kind == Kind::Wait).unwrap();
        assert_eq!((wait.line, wait.lines), (4, 3));
        assert_eq!(wait.before, "flags .own .before_write(lanes)?;");
        assert_eq!(wait.apply(text), "if a {\n    b();\n}\n\nc();\n");
    }

    #[test]
    fn other_code_stays() {
        for text in [
            "fn wait(&self, stamp: Stamp) -> Vec<u8> {",
            "// lanes.wait(lane, stamp)?;",
            "assert!(a == b);",
            "let write = || write(a);",
            "#[cfg(test)]\nmod tests {\n    fn f() {\n        lanes.wait(a)?;\n    }\n}",
        ] {
            assert_eq!(after(text), [], "{text}");
        }
    }
}
