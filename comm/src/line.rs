//! [`report`]: a line on stderr, whole.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes a line on stderr, as `eprintln!` does, but in one piece: so the lines of several ranks do not
/// mix, which are processes with one stderr. (`eprintln!` writes each piece of its format by itself; so
/// does Rust, where `main` returns an error.) Where it cannot be written, nothing happens.
///
/// ```
/// use phalanx_comm::{Ranks, report, run};
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     let end = run(Ranks::OrAlone(2), |group| group.barrier()?.wait());
///     match end {
///         Ok(_) => ExitCode::SUCCESS,
///         Err(error) => {
///             report(format_args!("error: {error}"));
///             ExitCode::FAILURE
///         }
///     }
/// }
/// ```
pub fn report(line: impl Display) {
    let _ = write(&mut io::stderr(), line);
}

/// A line, in one write.
fn write(to: &mut impl Write, line: impl Display) -> io::Result<()> {
    to.write_all(format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts writes.
    #[derive(Default)]
    struct Pieces(Vec<Vec<u8>>);

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_write() {
        let mut pieces = Pieces::default();
        let (rank, why) = (1, "no such file");
        write(&mut pieces, format_args!("rank {rank} failed: {why}")).unwrap();
        assert_eq!(pieces.0, [b"rank 1 failed: no such file\n"]);
    }
}
