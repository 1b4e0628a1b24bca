//! PTX text as tokens. Comments go; `.loc` and `.file`, which end with their line, become one token each.

/// A token, and the line of the PTX text on which it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub kind: Kind,
    pub line: u32,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A name, a number, an opcode with its dots, or a directive.
    Word(String),
    /// A string, without its quotes.
    Text(String),
    /// One character of punctuation.
    Mark(char),
    /// A `.loc` or `.file` directive: its words.
    Place(Vec<String>),
}

impl Kind {
    /// The word, where it is one.
    pub fn word(&self) -> Option<&str> {
        match self {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// Splits `text` into tokens; any text can be split.
pub fn lex(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let (mut at, mut line, mut tokens) = (0, 1, Vec::new());
    while at < bytes.len() {
        let byte = bytes[at];
        let start = at;
        if byte == b'\n' {
            line += 1;
            at += 1;
        } else if byte.is_ascii_whitespace() {
            at += 1;
        } else if bytes[at..].starts_with(b"//") {
            at = end_of_line(bytes, at);
        } else if bytes[at..].starts_with(b"/*") {
            let end = text[at..]
                .find("*/")
                .map_or(bytes.len(), |found| at + found + 2);
            line += count_lines(&bytes[at..end]);
            at = end;
        } else if byte == b'"' {
            at += 1;
            while at < bytes.len() && bytes[at] != b'"' {
                at += 1 + usize::from(bytes[at] == b'\\');
            }
            let end = at.min(bytes.len());
            tokens.push(Token {
                kind: Kind::Text(String::from_utf8_lossy(&bytes[start + 1..end]).into_owned()),
                line,
            });
            at = end + 1;
        } else if is_word(byte) {
            while at < bytes.len() && is_word(bytes[at]) {
                // `dst|pred` and `a::b`: the second is one opcode part, the first is not.
                at += 1;
                if bytes[at..].starts_with(b"::") {
                    at += 2;
                }
            }
            // `.reg.b32` is two words; only an opcode keeps its dots.
            if byte == b'.'
                && let Some(dot) = text[start + 1..at].find('.')
            {
                at = start + 1 + dot;
            }
            let word = &text[start..at];
            if word == ".loc" || word == ".file" {
                let end = end_of_line(bytes, at);
                let words = text[start..end]
                    .split([' ', '\t', ','])
                    .filter(|word| !word.is_empty())
                    .map(|word| word.trim_end_matches('\r').to_owned());
                tokens.push(Token {
                    kind: Kind::Place(words.collect()),
                    line,
                });
                at = end;
            } else {
                tokens.push(Token {
                    kind: Kind::Word(word.to_owned()),
                    line,
                });
            }
        } else {
            let mark = text[at..].chars().next().unwrap_or(' ');
            tokens.push(Token {
                kind: Kind::Mark(mark),
                line,
            });
            at += mark.len_utf8();
        }
    }
    tokens
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

fn end_of_line(bytes: &[u8], at: usize) -> usize {
    let rest = bytes[at..].iter().position(|byte| *byte == b'\n');
    rest.map_or(bytes.len(), |found| at + found)
}

fn count_lines(bytes: &[u8]) -> u32 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_end_at_the_next_dot() {
        let tokens = lex(".reg.b32 a;");
        let words: Vec<_> = tokens
            .iter()
            .filter_map(|token| token.kind.word())
            .collect();
        assert_eq!(words, [".reg", ".b32", "a"]);
    }

    #[test]
    fn instructions_become_words_and_marks() {
        let tokens = lex("@!%p1 ld.global.f32 %f1, [%rd2+-4]; // rest\n\t.loc\t1 6 28\n");
        let words: Vec<_> = tokens
            .iter()
            .filter_map(|token| token.kind.word())
            .collect();
        assert_eq!(words, ["%p1", "ld.global.f32", "%f1", "%rd2", "4"]);
        let place = [".loc", "1", "6", "28"].map(str::to_owned).to_vec();
        assert_eq!(
            tokens.last().map(|token| &token.kind),
            Some(&Kind::Place(place))
        );
    }
}
