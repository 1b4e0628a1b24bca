//! [`Activity`]: what a rank says that it does between its calls.

use crate::error::Stands;
use crate::op::Name;
use crate::sync::Mutex;
use std::mem;

/// Of one rank; written by it, and read for the errors of those that wait for it.
#[derive(Default)]
pub(super) struct Activity(Mutex<Name>);

impl Activity {
    /// It says this from now on; gives what it said before.
    pub(super) fn replace(&self, name: Name) -> Name {
        mem::replace(&mut *self.0.lock(), name)
    }

    /// Where a rank stands that waits in no call.
    pub(super) fn stands(&self) -> Stands {
        Stands::Runs {
            activity: self.0.lock().as_str().into(),
        }
    }
}
