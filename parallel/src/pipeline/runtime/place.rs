//! [`Place`]: the action that a rank is in. Its own errors name it, and so do those of ranks that wait for it in vain.

use crate::pipeline::Action;
use phalanx_comm::{Name, ProcessGroup};
use std::cell::Cell;

/// In a pass, until this is dropped.
pub(super) struct Place<'a> {
    action: Cell<Option<Action>>,
    group: &'a dyn ProcessGroup,
    step: u64,
}

impl<'a> Place<'a> {
    pub(super) fn new(group: &'a dyn ProcessGroup, step: u64) -> Self {
        Place {
            action: Cell::new(None),
            group,
            step,
        }
    }

    /// The action; none at the end of the pass.
    pub(super) fn get(&self) -> Option<Action> {
        self.action.get()
    }

    /// Enters an action, or the end of the pass; gives where it was before.
    pub(super) fn enter(&self, action: impl Into<Option<Action>>) -> Option<Action> {
        let (action, step) = (action.into(), self.step);
        self.group.set_activity(match action {
            Some(action) => Name::new(format_args!("{action} of step {step}")),
            None => Name::new(format_args!("the end of step {step}")),
        });
        self.action.replace(action)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.group.set_activity(Name::EMPTY);
    }
}
