//! Which tests look closest at which file: they run first, and all others only where those notice nothing.

/// Words in the names of tests.
pub type Words = &'static [&'static str];

/// The tests of order on cards.
const ORDER: Words = &[
    "order::",
    "lanes::",
    "peers::",
    "waits::",
    "transfer::",
    "host_reads::",
];

/// Words in the names of the tests that look closest at a file. The longest tests are not among them.
pub fn closest(file: &str) -> Words {
    let path = file.strip_prefix("tensor/src/").unwrap_or(file);
    let (folder, name) = path.rsplit_once('/').unwrap_or_default();
    let family = folder.strip_prefix("ops/");
    match (family.and_then(|family| family.split('/').next()), name) {
        (Some("conv"), _) => &["conv"],
        (Some("index"), "kernel.cu" | "cuda.rs") => &["index::", "families"],
        (Some("index"), _) => &["scatter_add", "index_add", "out_of_range", "sums_of_many"],
        (Some("linear"), _) => &["linear"],
        (Some("norm"), "layer_norm.cu" | "layer_norm.rs") => &["layer"],
        (Some("norm"), _) => &["batch_norm"],
        (Some("optim"), _) => &["optim"],
        (Some("pool"), _) => &["pool"],
        (Some("random"), _) => &["random"],
        (Some("reduce"), "arg.cu") => &["argm", "several_turns", "extrema"],
        (Some("reduce"), _) => &["reduc"],
        (Some("softmax"), "cross_entropy.cu" | "cross_entropy.rs") => {
            &["losses", "logits", "target"]
        }
        (Some("softmax"), _) => &["softmax::rows_of", "softmax::views_of", "softmax::extremes"],
        (Some("unary"), _) => &["unary"],
        (Some(_), _) => &["families"],
        (None, "index.cu") => &["peers"],
        (None, "rows.cu" | "rows.rs") => &["softmax::rows_of", "softmax::views_of", "layer"],
        // What stands before all kernels: these tests use the fewest of them.
        (None, name) if name.ends_with(".cu") => &["transfer", "unary"],
        (None, _) if folder == "cuda/blas" => &["linear", "matmul"],
        (None, _) => ORDER,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cargo::root;
    use crate::mutate::files;

    #[test]
    fn each_word_is_in_the_name_of_a_test() {
        let mut names = Vec::new();
        for entry in fs::read_dir(root().join("tensor/tests/cuda")).unwrap() {
            let path = entry.unwrap().path();
            let module = path.file_stem().unwrap().to_str().unwrap();
            let text = fs::read_to_string(&path).unwrap();
            let heads = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("fn "));
            let own = heads.filter_map(|head| head.split_once('('));
            names.extend(own.map(|(name, _)| format!("{module}::{name}")));
        }
        for file in files().unwrap() {
            for word in closest(&file) {
                let is_there = names.iter().any(|name| name.contains(word));
                assert!(is_there, "{file}: no test has {word} in its name");
            }
        }
    }
}
