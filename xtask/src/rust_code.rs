//! What of a Rust file is code: neither comment nor text, nor a module of tests.

/// The code of a file.
pub struct Code {
    /// As long as the file, with spaces in the place of what is no code.
    pub text: String,
    /// The modules of tests that are files of their own, as their paths without `.rs`.
    pub test_modules: Vec<String>,
}

/// The code of the file `name` that holds `text`.
pub fn code(name: &str, text: &str) -> Code {
    let mut chars = without_comments(text);
    let test_modules = blank_tests(&mut chars);
    let folder = match name.rsplit_once('/') {
        Some((folder, "mod.rs" | "lib.rs" | "main.rs")) => folder,
        _ => name.strip_suffix(".rs").unwrap_or(name),
    };
    Code {
        text: chars.into_iter().collect(),
        test_modules: test_modules
            .into_iter()
            .map(|module| format!("{folder}/{module}"))
            .collect(),
    }
}

/// The characters, with spaces in the place of comments, and of what is in strings and character literals.
fn without_comments(text: &str) -> Vec<char> {
    let mut chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if follows(&chars, at, "//") => {
                let line = chars[at..].iter().position(|&c| c == '\n');
                line.map_or(chars.len(), |length| at + length)
            }
            '/' if follows(&chars, at, "/*") => end_of_comment(&chars, at),
            '"' => end_of_string(&chars, at),
            'r' if !is_name(before(&chars, at)) || follows_prefix(&chars, at) => {
                end_of_raw_string(&chars, at).unwrap_or(at)
            }
            '\'' => end_of_char(&chars, at).unwrap_or(at),
            _ => at,
        };
        blank(&mut chars, at, end);
        at = end.max(at + 1);
    }
    chars
}

fn follows(chars: &[char], at: usize, text: &str) -> bool {
    text.chars()
        .enumerate()
        .all(|(i, c)| chars.get(at + i) == Some(&c))
}

fn before(chars: &[char], at: usize) -> Option<char> {
    at.checked_sub(1).map(|before| chars[before])
}

fn is_name(c: Option<char>) -> bool {
    c.is_some_and(|c| c == '_' || c.is_alphanumeric())
}

/// Whether the `r` of `br"…"` or `cr"…"` is here.
fn follows_prefix(chars: &[char], at: usize) -> bool {
    matches!(before(chars, at), Some('b' | 'c')) && !is_name(before(chars, at - 1))
}

/// Where a comment that may hold others ends.
fn end_of_comment(chars: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < chars.len() {
        if follows(chars, at, "/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if follows(chars, at, "*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    chars.len()
}

fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// `r#"…"#`, with any number of `#`.
fn end_of_raw_string(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start + 1..].iter().take_while(|&&c| c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let end = (open + 1..chars.len()).find(|&at| follows(chars, at, &close));
    Some(end.map_or(chars.len(), |at| at + close.len()))
}

/// `'x'` or `'\n'`; `None` for a lifetime.
fn end_of_char(chars: &[char], start: usize) -> Option<usize> {
    match chars.get(start + 1)? {
        '\\' => {
            let close = chars.get(start + 3..)?.iter().position(|&c| c == '\'')?;
            Some(start + 4 + close)
        }
        _ => (chars.get(start + 2) == Some(&'\'')).then_some(start + 3),
    }
}

fn blank(chars: &mut [char], start: usize, end: usize) {
    for c in chars[start..end].iter_mut().filter(|c| **c != '\n') {
        *c = ' ';
    }
}

/// Blanks the modules of tests; the names of those that are files of their own.
fn blank_tests(chars: &mut [char]) -> Vec<String> {
    const MARK: &str = "#[cfg(test)]";
    let mut files = Vec::new();
    let starts: Vec<usize> = (0..chars.len())
        .filter(|&at| follows(chars, at, MARK))
        .collect();
    for start in starts {
        let Some(open) = chars[start..].iter().position(|c| matches!(c, '{' | ';')) else {
            continue;
        };
        let open = start + open;
        let head: String = chars[start + MARK.len()..open].iter().collect();
        let mut words = head.split_whitespace().rev();
        let (name, keyword) = (words.next(), words.next());
        let (Some(name), Some("mod")) = (name, keyword) else {
            continue;
        };
        if chars[open] == ';' {
            files.push(name.to_owned());
            continue;
        }
        let mut depth = 0;
        let close = chars[open..].iter().position(|c| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0
        });
        let end = close.map_or(chars.len(), |length| open + length + 1);
        blank(chars, start, end);
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        let text = code("a/src/lib.rs", text).text;
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_texts_are_no_code() {
        assert_eq!(words("a; // b\nc"), "a; c");
        assert_eq!(words("a /* b /* c */ d */ e"), "a e");
        assert_eq!(words(r#"f("b // \" c", d) // e"#), "f( , d)");
        assert_eq!(words("f(r#\"a \" b\"#, br\"c\\\", d)"), "f( , b , d)");
        assert_eq!(words("for x in '\"' { '\\'' }; b"), "for x in { }; b");
        assert_eq!(
            words("fn f<'a>(x: &'a str) {} \"b\""),
            "fn f<'a>(x: &'a str) {}"
        );
        assert_eq!(words("let car = \"b\";"), "let car = ;");
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = "a\n/* b\nc */\n\"d\ne\"\nf";
        assert_eq!(
            code("x.rs", text).text.lines().count(),
            text.lines().count()
        );
    }

    #[test]
    fn modules_of_tests_are_no_code() {
        let text = "a\n#[cfg(test)]\nmod tests { fn f() { \"}\" } }\nb\n#[cfg(test)]\n#[path = \"x\"]\nmod c;\nmod d;";
        assert_eq!(words(text), "a b #[cfg(test)] #[path = ] mod c; mod d;");
        assert_eq!(code("a/src/lib.rs", text).test_modules, ["a/src/c"]);
        assert_eq!(code("a/src/e.rs", text).test_modules, ["a/src/e/c"]);
        // Another item of tests is not looked into.
        assert_eq!(words("#[cfg(test)]\nuse a;\nb"), "#[cfg(test)] use a; b");
    }
}
