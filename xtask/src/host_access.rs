//! Where code may touch the elements of a tensor on the host: in the CPU and CUDA code of an operation's family, and
//! nowhere in the crates above, which work on every device. `cargo xtask check` asks.

use crate::rust_code::{Code, code};

/// Whose files are looked at, and what must not be in them.
struct Rule {
    folders: &'static [&'static str],
    /// Whether a file is of one device, so that it may.
    is_free: fn(&str) -> bool,
    patterns: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        folders: &["tensor/src/ops/"],
        is_free: is_of_one_device,
        patterns: &[
            "as_slice",
            "as_bytes",
            "make_mut",
            "bytes_mut",
            ".item(",
            ".item::<",
            "to_vec::<",
            "Memory::Cpu",
            "dispatch_",
            "on_real!",
        ],
        why: "of a family, only cpu.rs, cpu/, cuda.rs and cuda/ are of one device",
    },
    Rule {
        folders: &["autograd/src/", "parallel/src/"],
        is_free: |_| false,
        patterns: &[
            "as_slice",
            "as_bytes",
            "make_mut",
            "bytes_mut",
            ".item(",
            ".item::<",
            "to_vec::<",
        ],
        why: "these crates work on every device, and elements are not always on the host",
    },
];

/// What may be there nevertheless: the file, the pattern, and why.
const ALLOWED: &[(&str, &str, &str)] = &[
    (
        "autograd/src/nn/init.rs",
        ".item::<",
        "values are drawn again until all are within the limit, once",
    ),
    (
        "autograd/src/state.rs",
        "as_bytes",
        "what is saved was moved to the host",
    ),
    (
        "autograd/src/state.rs",
        "bytes_mut",
        "what is loaded is not on its device yet",
    ),
    (
        "autograd/src/state.rs",
        ".item(",
        "a number of an optimizer's saved state",
    ),
    (
        "autograd/src/var.rs",
        ".item(",
        "the caller asks for the number",
    ),
    (
        "parallel/src/replicas/mod.rs",
        "as_bytes",
        "what is hashed was moved to the host, once",
    ),
    (
        "parallel/src/replicas/mod.rs",
        "to_vec::<",
        "hashes that the ranks compare, once",
    ),
    (
        "parallel/src/pipeline/runtime/finish.rs",
        ".item::<",
        "the loss, where a rank wants it, and the squares that make the norm of the whole model",
    ),
    (
        "parallel/src/reduce/average.rs",
        "to_vec::<",
        "the weights of the ranks, which decide what the host does: small talk",
    ),
    (
        "parallel/src/reduce/uses.rs",
        "to_vec::<",
        "which parameters any rank uses: small talk",
    ),
    (
        "parallel/src/talk.rs",
        "to_vec::<",
        "small talk is in the host's memory",
    ),
];

/// Whether a file of a family is of one device: `cpu.rs`, and all below `cpu/`.
fn is_of_one_device(name: &str) -> bool {
    let mut parts = name.split('/');
    parts.any(|part| matches!(part, "cpu.rs" | "cpu" | "cuda.rs" | "cuda"))
}

/// A pattern that is where it must not be.
#[derive(Debug, PartialEq, Eq)]
struct Hit<'a> {
    file: &'a str,
    line: usize,
    pattern: &'static str,
    why: &'static str,
}

/// What is wrong in these files, of which each is a name and a text. What the table allows and is not there is wrong, too.
pub fn faults(files: &[(String, String)]) -> Vec<String> {
    judge(&hits(files), ALLOWED)
}

fn judge(hits: &[Hit<'_>], allowed: &[(&str, &str, &str)]) -> Vec<String> {
    let is_of =
        |hit: &Hit<'_>, entry: &(&str, &str, &str)| (hit.file, hit.pattern) == (entry.0, entry.1);
    let wrong = hits
        .iter()
        .filter(|hit| !allowed.iter().any(|entry| is_of(hit, entry)));
    let wrong = wrong.map(
        |Hit {
             file,
             line,
             pattern,
             why,
         }| format!("{file}: has {pattern} in line {line}: {why}"),
    );
    let unused = allowed
        .iter()
        .filter(|entry| !hits.iter().any(|hit| is_of(hit, entry)));
    let unused = unused.map(|(file, pattern, _)| {
        format!(
            "xtask/src/host_access.rs: allows {pattern} in {file}, where there is none any more"
        )
    });
    wrong.chain(unused).collect()
}

fn hits(files: &[(String, String)]) -> Vec<Hit<'_>> {
    let mut hits = Vec::new();
    for Rule {
        folders,
        is_free,
        patterns,
        why,
    } in RULES
    {
        let is_here = |name: &str| folders.iter().any(|folder| name.starts_with(folder));
        let of_rule = files
            .iter()
            .filter(|(name, _)| is_here(name) && name.ends_with(".rs") && !is_free(name));
        let read: Vec<(&str, Code)> = of_rule
            .map(|(name, text)| (name.as_str(), code(name, text)))
            .collect();
        let is_test = |name: &str| {
            let mut modules = read.iter().flat_map(|(_, code)| &code.test_modules);
            modules.any(|module| {
                name.strip_prefix(module.as_str())
                    .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
            })
        };
        for (file, code) in read.iter().filter(|(name, _)| !is_test(name)) {
            for (number, line) in code.text.lines().enumerate() {
                let found = patterns.iter().filter(|pattern| line.contains(**pattern));
                hits.extend(found.map(|pattern| Hit {
                    file,
                    line: number + 1,
                    pattern,
                    why,
                }));
            }
        }
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<String> {
        judge(&hits(&[(name.to_owned(), text.to_owned())]), &[])
    }

    #[test]
    fn a_planted_line_is_found() {
        for pattern in RULES[0].patterns {
            let text = format!("//! Sums.\nlet x = y{pattern};\n");
            let faults = found("tensor/src/ops/reduce/mod.rs", &text);
            assert!(
                matches!(&*faults, [fault] if fault.contains(pattern) && fault.contains("line 2")),
                "{pattern}: {faults:?}"
            );
        }
        for pattern in RULES[1].patterns {
            let text = format!("let x = y{pattern};\n");
            assert_eq!(found("autograd/src/nn/init.rs", &text).len(), 1);
            assert_eq!(found("parallel/src/ddp/mod.rs", &text).len(), 1);
        }
    }

    #[test]
    fn what_is_of_one_device_may() {
        let text = "x.as_slice::<f32>()?";
        for name in ["cpu.rs", "cpu/rows.rs", "cuda.rs", "cuda/launch.rs"] {
            assert!(found(&format!("tensor/src/ops/reduce/{name}"), text).is_empty());
        }
        for name in ["cpu_rows.rs", "mod.rs", "kernel.rs"] {
            assert_eq!(
                found(&format!("tensor/src/ops/reduce/{name}"), text).len(),
                1
            );
        }
        assert!(found("tensor/src/tensor.rs", text).is_empty());
        assert!(found("autograd/tests/optim.rs", text).is_empty());
    }

    #[test]
    fn comments_and_tests_may() {
        let text = "//! x.as_slice()\n/* x.make_mut() */ let a = 1; // x.item()\n\
            #[cfg(test)]\nmod tests {\n    fn f() { x.as_bytes(); }\n}\n#[cfg(test)]\nmod addresses;\n";
        let files = [
            ("autograd/src/optim/mod.rs", text),
            ("autograd/src/optim/addresses.rs", "x.as_bytes()"),
            ("autograd/src/optim/addresses_of.rs", "x.as_bytes()"),
        ];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let hits = hits(&files);
        assert_eq!(hits.len(), 1, "{hits:?}");
        assert_eq!(hits[0].file, "autograd/src/optim/addresses_of.rs");
    }

    #[test]
    fn the_table_holds_what_is_needed() {
        let files = [(
            "tensor/src/ops/fill/mod.rs".to_owned(),
            "Memory::Cpu".to_owned(),
        )];
        let (hits, file) = (hits(&files), files[0].0.as_str());
        let (needed, unused) = ((file, "Memory::Cpu", ""), (file, "as_slice", ""));
        assert_eq!(judge(&hits, &[]).len(), 1);
        assert!(judge(&hits, &[needed]).is_empty());
        assert_eq!(judge(&hits, &[needed, unused]).len(), 1);
        assert_eq!(judge(&[], &[needed]).len(), 1);
    }
}
