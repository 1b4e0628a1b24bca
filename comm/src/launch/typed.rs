//! [`typed`]: a program of any types, launched by code that knows none of them. So that code is compiled once, and not once
//! for each program.

use super::error::{FailureKind, LaunchError};
use crate::group::ProcessGroup;
use crate::sync::Mutex;
use std::fmt::{Debug, Display};
use std::sync::Arc;

/// A rank's program without its types: an error is its sentence.
pub(crate) type Program<'a> = &'a (dyn Fn(Arc<dyn ProcessGroup>) -> Result<(), String> + Sync + 'a);

/// How a launch has ended of which the caller keeps the results.
pub(crate) type Ended = Result<(), LaunchError<String>>;

/// Launches `program` by `launch`: the results of the ranks that it ran here, with their numbers, in order.
///
/// # Errors
/// Those of `launch`, with the ranks' own errors.
pub(crate) fn typed<T, E>(
    program: &(impl Fn(Arc<dyn ProcessGroup>) -> Result<T, E> + Sync),
    launch: impl FnOnce(Program<'_>) -> Ended,
) -> Result<Vec<(usize, T)>, LaunchError<E>>
where
    T: Send,
    E: Display + Debug + Send,
{
    let kept = Kept::default();
    let end = launch(&|group: Arc<dyn ProcessGroup>| {
        let rank = group.rank();
        kept.keep(rank, program(group))
    });
    kept.end(end)
}

/// What the ranks of a launch have returned.
struct Kept<T, E> {
    results: Mutex<Vec<(usize, T)>>,
    errors: Mutex<Vec<(usize, E)>>,
}

impl<T, E> Default for Kept<T, E> {
    fn default() -> Self {
        Kept {
            results: Mutex::default(),
            errors: Mutex::default(),
        }
    }
}

impl<T, E: Display + Debug> Kept<T, E> {
    fn keep(&self, rank: usize, end: Result<T, E>) -> Result<(), String> {
        match end {
            Ok(result) => {
                self.results.lock().push((rank, result));
                Ok(())
            }
            Err(error) => {
                let text = format!("{error:#}");
                self.errors.lock().push((rank, error));
                Err(text)
            }
        }
    }

    fn end(self, end: Ended) -> Result<Vec<(usize, T)>, LaunchError<E>> {
        let mut errors = self.errors.lock();
        end.map_err(|error| {
            error.with_kinds(|rank, kind| {
                let at = errors.iter().position(|(who, _)| *who == rank);
                match (kind, at) {
                    (FailureKind::Error(_), Some(at)) => {
                        FailureKind::Error(errors.swap_remove(at).1)
                    }
                    // A rank that has an error has left it here.
                    (FailureKind::Error(text) | FailureKind::Panic(text), _) => {
                        FailureKind::Panic(text)
                    }
                }
            })
        })?;
        let mut results = std::mem::take(&mut *self.results.lock());
        results.sort_by_key(|(rank, _)| *rank);
        Ok(results)
    }
}
