//! Mistakes in kernels, which cost no build: the program of the copy asks its environment which text of a kernel to
//! take for which, since kernels are compiled while it runs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::cargo::root;

/// Names, for the program of the copy, the folder of the two texts.
pub const VARIABLE: &str = "PHALANX_MUTANT";

/// The file in which the texts of kernels come together, and the function that does it.
pub const TEXTS: &str = "tensor/src/cuda/compile.rs";
const TEXT: &str = "fn text(variant: &Variant) -> String {";
/// Its name in the copy, and what stands there in its place, behind all else so that no line moves.
const TEXT_BEFORE: &str = "fn text_before(variant: &Variant) -> String {";
const CHANGED_TEXT: &str = r#"
fn text(variant: &Variant) -> String {
    let text = text_before(variant);
    let Some(folder) = std::env::var_os("PHALANX_MUTANT") else {
        return text;
    };
    let read = |name| std::fs::read_to_string(std::path::Path::new(&folder).join(name)).unwrap();
    text.replace(&read("before"), &read("after"))
}
"#;

/// What becomes of [`TEXTS`] in the copy.
///
/// # Errors
/// It does not have the function.
pub fn with_changed_text(file: &[u8]) -> Result<Vec<u8>> {
    let file = std::str::from_utf8(file)?;
    ensure!(
        file.matches(TEXT).count() == 1,
        "{TEXTS} has no function {TEXT}"
    );
    let changed = file.replace(TEXT, TEXT_BEFORE) + CHANGED_TEXT;
    Ok(changed.into_bytes())
}

/// Writes what the programs of a lane take for which text; answers the folder.
///
/// # Errors
/// It cannot be written.
pub fn change(before: &str, after: &str, lane: usize) -> Result<PathBuf> {
    let folder = root().join(format!("target/mutants/change-{lane}"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("before"), before)?;
    fs::write(folder.join("after"), after)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_kernels_come_together_where_it_is_believed() {
        let file = fs::read(root().join(TEXTS)).unwrap();
        let changed = String::from_utf8(with_changed_text(&file).unwrap()).unwrap();
        assert!(changed.contains(VARIABLE) && changed.contains(TEXT));
        assert!(with_changed_text(b"fn texts() {}").is_err());
    }
}
