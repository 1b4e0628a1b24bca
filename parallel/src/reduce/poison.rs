//! [`Poison`]: whether what lasts from step to step can still be trusted.

use crate::{Error, Result};
use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard};

/// The reason why a step was left half done, if one was. Until the step is whole again there is one, so
/// that a panic leaves it behind.
#[derive(Debug, Default)]
pub(crate) struct Poison(Mutex<Option<Cow<'static, str>>>);

/// Something that must be done as a whole. Dropped before it is [`done`](Attempt::done), it poisons.
#[derive(Debug)]
#[must_use]
pub(crate) struct Attempt<'a> {
    poison: &'a Poison,
    failed: bool,
}

impl Poison {
    fn reason(&self) -> MutexGuard<'_, Option<Cow<'static, str>>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// # Errors
    /// [`Error::Poisoned`], of this rank and step, if a step was left half done or is under way.
    pub(crate) fn expect_whole(&self, rank: usize, step: u64) -> Result<()> {
        match &*self.reason() {
            None => Ok(()),
            Some(reason) => Err(Error::Poisoned {
                rank,
                step,
                reason: reason.to_string(),
            }),
        }
    }

    /// Starts what must be done as a whole.
    pub(crate) fn attempt(&self) -> Attempt<'_> {
        *self.reason() = Some(Cow::Borrowed("a panic ended it, or it is under way"));
        Attempt {
            poison: self,
            failed: false,
        }
    }
}

impl Attempt<'_> {
    /// Hands a result of a part of it on. An error is why it will never be whole.
    pub(crate) fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && !self.failed
        {
            self.failed = true;
            *self.poison.reason() = Some(error.to_string().into());
        }
        result
    }

    /// Whether a part of it has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// It is whole, unless a part of it has failed.
    pub(crate) fn done(mut self) {
        if !self.failed {
            self.failed = true; // the drop has nothing to add
            *self.poison.reason() = None;
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.failed && !std::thread::panicking() {
            *self.poison.reason() = Some(Cow::Borrowed("it was given up before its end"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(poison: &Poison) -> Option<String> {
        match poison.expect_whole(3, 7) {
            Ok(()) => None,
            Err(Error::Poisoned {
                rank: 3,
                step: 7,
                reason,
            }) => Some(reason),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn only_what_is_done_is_whole() {
        let poison = Poison::default();
        assert_eq!(reason(&poison), None);
        let attempt = poison.attempt();
        assert!(reason(&poison).unwrap().contains("under way"));
        attempt.done();
        assert_eq!(reason(&poison), None);
        drop(poison.attempt());
        assert!(reason(&poison).unwrap().contains("given up"));
    }

    #[test]
    fn the_first_error_is_the_reason() {
        let poison = Poison::default();
        let mut attempt = poison.attempt();
        for words in ["first", "second"] {
            let error = phalanx_autograd::Error::other(words);
            assert!(attempt.note::<()>(Err(error.into())).is_err());
        }
        assert!(attempt.has_failed());
        attempt.done();
        assert_eq!(reason(&poison).unwrap(), "first");
    }

    #[test]
    fn a_panic_poisons() {
        let poison = Poison::default();
        let inside = std::panic::AssertUnwindSafe(|| {
            let _attempt = poison.attempt();
            panic!("on purpose");
        });
        assert!(std::panic::catch_unwind(inside).is_err());
        assert!(reason(&poison).unwrap().contains("a panic ended it"));
    }
}
