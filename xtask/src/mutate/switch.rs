//! All mistakes in the host's code in one program, of which a variable of the environment picks one: a program takes
//! longer to build than to fail.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::host::{Edit, edits};
use super::sites::Mutant;
use super::tree::{Built, Tree};
use crate::cargo::root;

/// The variable with the number of the mistake that is made.
pub const VARIABLE: &str = "PHALANX_MISTAKE";

/// The file of the copy to which [`PICK`] is added, behind all else so that no line moves.
pub const LIBRARY: &str = "tensor/src/lib.rs";
pub const PICK: &str = "
/// The number of the mistake that is made.
pub(crate) fn mistake() -> usize {
    static NUMBER: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *NUMBER.get_or_init(|| {
        let number = std::env::var(\"PHALANX_MISTAKE\").ok();
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    })
}
";

/// How often the mistakes that do not compile together are taken out.
const MOST_TRIES: usize = 12;

/// A program that makes any of some mistakes, or none.
pub struct Switch {
    pub program: PathBuf,
    /// The mistakes in the host's code, by number.
    mutants: Vec<(usize, Mutant)>,
}

impl Switch {
    /// Builds the program with those of the mistakes that are in the host's code and compile beside the others.
    ///
    /// # Errors
    /// What is left does not compile, or the tests do not.
    pub fn build(tree: &Tree, mutants: &[Mutant]) -> Result<Switch> {
        let mut texts = HashMap::new();
        let mut numbered = Vec::new();
        for mutant in mutants.iter().filter(|mutant| !mutant.is_in_kernel()) {
            if !texts.contains_key(&mutant.file) {
                texts.insert(mutant.file.clone(), tree.read(&mutant.file)?);
            }
            let all = edits(&mutant.file, &texts[&mutant.file]);
            let edit = all.into_iter().find(|edit| edit.mutant == *mutant);
            numbered.extend(edit.map(|edit| (numbered.len() + 1, edit)));
        }
        let built = together(tree, &texts, &mut numbered);
        for (file, text) in &texts {
            tree.write(file, text)?;
        }
        let mutants = numbered
            .into_iter()
            .map(|(number, edit)| (number, edit.mutant));
        Ok(Switch {
            program: built?,
            mutants: mutants.collect(),
        })
    }

    /// The number by which the program makes a mistake.
    pub fn number(&self, mutant: &Mutant) -> Option<usize> {
        let found = self.mutants.iter().find(|(_, other)| other == mutant);
        found.map(|(number, _)| *number)
    }
}

/// Builds with as many of the mistakes as compile together.
fn together(
    tree: &Tree,
    texts: &HashMap<String, String>,
    numbered: &mut Vec<(usize, Edit)>,
) -> Result<PathBuf> {
    for _ in 0..MOST_TRIES {
        let mut combined = HashMap::new();
        for (file, text) in texts {
            let own = numbered
                .iter()
                .filter(|(_, edit)| edit.mutant.file == *file);
            let text = combine(text, &own.collect::<Vec<_>>());
            tree.write(file, &text)?;
            combined.insert(&**file, text);
        }
        let faults = match tree.build()? {
            Built::Faults(faults) => faults,
            Built::Program(built) => {
                // A build with a mistake takes its place.
                let program = root().join("target/mutants/program");
                fs::copy(built, &program)?;
                return Ok(program);
            }
        };
        for (file, line) in faults {
            let Some(text) = combined.get(&*file) else {
                bail!("{file}:{line} does not compile");
            };
            let guilty = guilty(text, line);
            match guilty.is_empty() {
                // They are made one by one.
                true => numbered.retain(|(_, edit)| edit.mutant.file != file),
                false => numbered.retain(|(number, _)| !guilty.contains(number)),
            }
        }
    }
    bail!("the mistakes do not compile together")
}

/// The text with all of the changes, each behind its number.
fn combine(text: &str, edits: &[&(usize, Edit)]) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut edits = edits.to_vec();
    edits.sort_by_key(|(_, edit)| (edit.whole.start, usize::MAX - edit.whole.end));
    let (mut all, mut done, mut at) = (String::new(), 0, 0);
    while at < edits.len() {
        // Those within the same expression.
        let mut whole = edits[at].1.whole.clone();
        let mut end = at + 1;
        while edits
            .get(end)
            .is_some_and(|(_, edit)| edit.whole.start < whole.end)
        {
            whole.end = whole.end.max(edits[end].1.whole.end);
            end += 1;
        }
        let slice = |from: usize, to: usize| chars[from..to].iter().collect::<String>();
        all += &slice(done, whole.start);
        all += "match crate::mistake() {\n";
        for (number, edit) in &edits[at..end] {
            let before = slice(whole.start, edit.part.start);
            let after = slice(edit.part.end, whole.end);
            all += &format!(
                "/*M{number}*/ {number} => {{ {before}{}{after}\n}}\n",
                edit.new
            );
        }
        let same = slice(whole.start, whole.end);
        all += &format!("/*M0*/ _ => {{ {same}\n}}\n}}");
        (done, at) = (whole.end, end);
    }
    all + &chars[done..].iter().collect::<String>()
}

/// The numbers of the changes to which a line belongs; where it is of none of them, those of the expression.
fn guilty(text: &str, line: usize) -> Vec<usize> {
    let mark = |line: &str| {
        let rest = line.strip_prefix("/*M")?;
        rest.split_once('*')?.0.parse::<usize>().ok()
    };
    let above: Vec<&str> = text.lines().take(line).collect();
    let mut marks = above.iter().rev().filter_map(|line| mark(line));
    match marks.next() {
        Some(0) => marks.take_while(|number| *number != 0).collect(),
        Some(number) => vec![number],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(text: &str) -> Vec<(usize, Edit)> {
        (1..).zip(edits("cuda.rs", text)).collect()
    }

    #[test]
    fn changes_of_one_expression_are_its_arms() {
        let text = "fn f() {\n    if a < b && c {\n        lanes.wait(lane, stamp)?;\n    }\n}\n";
        let all = numbered(text);
        let combined = combine(text, &all.iter().collect::<Vec<_>>());
        let lines: Vec<&str> = combined.lines().map(str::trim).collect();
        for line in [
            "if match crate::mistake() {",
            "/*M1*/ 1 => { a <= b && c",
            "/*M2*/ 2 => { !(a < b && c)",
            "/*M3*/ 3 => { c",
            "/*M4*/ 4 => { a < b",
            "/*M0*/ _ => { a < b && c",
            "/*M5*/ 5 => {",
            "/*M0*/ _ => { lanes.wait(lane, stamp)?;",
        ] {
            assert!(lines.contains(&line), "{line} is missing:\n{combined}");
        }
        // Without a mistake it is what it was.
        assert_eq!(combine(text, &[]), text);
    }

    #[test]
    fn who_does_not_compile_is_found() {
        let text = "fn f() {\n    if a < b && c {\n        d();\n    }\n}\n";
        let all = numbered(text);
        let combined = combine(text, &all.iter().collect::<Vec<_>>());
        let line = |what: &str| {
            combined
                .lines()
                .position(|line| line.contains(what))
                .unwrap()
                + 1
        };
        assert_eq!(guilty(&combined, line("a <= b")), [1]);
        assert_eq!(guilty(&combined, line("/*M0*/")).len(), 4);
        assert!(guilty(&combined, 1).is_empty());
    }
}
