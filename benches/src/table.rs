//! What a benchmark prints: a table for people, a line of JSON per row for machines.

use std::fmt::Write as _;

use anyhow::Result;
use phalanx_examples::cli::say;
use serde::Serialize;

/// A table with right-aligned columns, printed row by row as the figures come in.
pub struct Table {
    widths: Vec<usize>,
    json: Option<Vec<String>>,
}

impl Table {
    /// Starts a table: prints `title` and the names of the columns. With `json`, [`finish`](Self::finish) prints
    /// the rows as JSON as well.
    ///
    /// # Errors
    /// Nobody reads stdout any more.
    pub fn new(title: &str, columns: &[&str], json: bool) -> Result<Self> {
        say(format_args!("# {title}"))?;
        let widths = columns
            .iter()
            .map(|name| name.chars().count().max(10))
            .collect();
        let table = Table {
            widths,
            json: json.then(Vec::new),
        };
        say(table.line(columns))?;
        Ok(table)
    }

    /// Prints a row; `figures` is the same row for machines.
    ///
    /// # Errors
    /// `figures` cannot be written as JSON, or nobody reads stdout any more.
    pub fn row(&mut self, cells: &[String], figures: &impl Serialize) -> Result<()> {
        say(self.line(cells))?;
        if let Some(json) = &mut self.json {
            json.push(serde_json::to_string(figures)?);
        }
        Ok(())
    }

    /// Ends the table.
    ///
    /// # Errors
    /// Nobody reads stdout any more.
    pub fn finish(self) -> Result<()> {
        self.json.unwrap_or_default().into_iter().try_for_each(say)
    }

    fn line<S: AsRef<str>>(&self, cells: &[S]) -> String {
        let mut line = String::new();
        for (cell, &width) in cells.iter().zip(&self.widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{:>width$}  ", cell.as_ref());
        }
        line.trim_end().to_owned()
    }
}

/// A figure with about four significant digits, or a dash for none.
pub fn figure(value: impl Into<Option<f64>>) -> String {
    match value.into() {
        None => "-".to_owned(),
        Some(value) => match value.abs() {
            0.0 => "0".to_owned(),
            size if size >= 1000.0 => format!("{value:.0}"),
            size if size >= 100.0 => format!("{value:.1}"),
            size if size >= 1.0 => format!("{value:.2}"),
            _ => format!("{value:.4}"),
        },
    }
}

/// A ratio, as in `2.35x`, or a dash for none.
pub fn ratio(value: impl Into<Option<f64>>) -> String {
    value
        .into()
        .map_or_else(|| "-".to_owned(), |value| format!("{value:.2}x"))
}
