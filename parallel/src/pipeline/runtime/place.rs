//! [`Place`]: the action that a rank is in. Its own errors name it, and so do those of ranks that wait for it in vain.

use crate::pipeline::Action;
use phalanx_comm::{Name, ProcessGroup};
use std::cell::{Cell, OnceCell};

/// In a pass, until this is dropped: then the rank says again what its program has said before.
pub(super) struct Place<'a> {
    action: Cell<Option<Action>>,
    /// What the program has said; nothing where no action was entered.
    before: OnceCell<Name>,
    group: &'a dyn ProcessGroup,
    step: u64,
}

impl<'a> Place<'a> {
    pub(super) fn new(group: &'a dyn ProcessGroup, step: u64) -> Self {
        Place {
            action: Cell::new(None),
            before: OnceCell::new(),
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
        let action = action.into();
        let said = self.group.set_activity(name(self.step, action));
        self.before.get_or_init(|| said);
        self.action.replace(action)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            self.group.set_activity(before);
        }
    }
}

/// What the others hear. The step is first: where there is no room for all of it, the action is cut.
fn name(step: u64, action: Option<Action>) -> Name {
    match action {
        Some(action) => Name::new(format_args!("step {step}, {action}")),
        None => Name::new(format_args!("step {step}, the end")),
    }
}

#[cfg(test)]
mod tests {
    use super::name;
    use crate::pipeline::Action;

    #[test]
    fn the_step_is_never_cut() {
        let longest: Action = "65535REDUCE_TIED>65534".parse().unwrap();
        assert_eq!(
            name(0, Some(longest)).as_str(),
            "step 0, 65535REDUCE_TIED>65534"
        );
        assert_eq!(name(7, None).as_str(), "step 7, the end");
        let last = u64::MAX;
        let cut = name(last, Some(longest));
        assert_eq!(cut.as_str(), format!("step {last}, 6553"));
        assert_eq!(name(last, None).as_str(), format!("step {last}, the "));
    }
}
