//! The mistakes that can be made in the host's code for cards, as the texts in which they are made.

use super::sites::Kind;

/// Calls without which less is ordered or checked, by the kind of the mistake; and what stands for their results.
pub const CALLS: &[(Kind, &str, &str)] = &[
    (Kind::Wait, ".wait(", "Ok(())"),
    (Kind::Wait, "wait_event(", "Ok(())"),
    (Kind::Wait, ".wait_for_all(", "Ok(())"),
    (Kind::Wait, ".before_read(", "Ok(())"),
    (Kind::Wait, ".before_write(", "Ok(())"),
    (Kind::Wait, "event::synchronize(", "Ok(())"),
    (Kind::Record, "event::record(", "Ok(())"),
    (Kind::Record, "self.record(", "Ok(())"),
    (Kind::Record, ".issued(", "Ok(())"),
    (Kind::Record, ".read(stamp)", "()"),
    (Kind::Record, ".read(self.stamp)", "()"),
    (Kind::Record, ".read(issuing, stamp)", "Ok(())"),
    (Kind::Record, ".read(source.issuing(), stamp)", "Ok(())"),
    (Kind::Record, ".written(", "()"),
    (Kind::Record, ".push_back(", "()"),
    (Kind::Record, "dead().push(", "()"),
    (Kind::Record, "uses.push(", "()"),
    (Kind::Record, "scratch.push(", "()"),
    (Kind::Record, "ops.push(", "()"),
    (Kind::Record, "known.push(", "()"),
    (Kind::Record, "busy.push(", "()"),
    (Kind::Record, "slots().push(", "()"),
    (Kind::Record, ".rewritten(", "()"),
    (Kind::Record, ".inherits(", "()"),
    (Kind::Record, ".broke_off(", "()"),
    (Kind::Record, "hand_down(", "()"),
    (Kind::Record, ".put(", "()"),
    (Kind::Flag, ".look(", "Ok(())"),
    (Kind::Flag, ".expect_written(", "Ok(())"),
    (Kind::Flag, ".expect_told(", "Ok(())"),
    (Kind::Flag, "memset_d8_async(", "Ok(())"),
    (Kind::Flag, ".arrive(", "Ok(())"),
    (Kind::Flag, "index.clear(", "Ok(())"),
    (Kind::Flag, "table.clear(", "()"),
    (Kind::Free, ".bury(", "()"),
    (Kind::Free, ".bury_in(", "()"),
    (Kind::Free, ".bury_all(", "()"),
    (Kind::Free, ".free(", "()"),
    (Kind::Free, "Staging::free(", "Ok(())"),
    (Kind::Free, "free_async(", "Ok(())"),
    (Kind::Free, "drop(issu", "()"),
    (Kind::Free, ".released(", "()"),
    (Kind::Free, "trim(", "Ok(())"),
];

/// What is put in the place of something that orders more. The other way round only more would wait.
pub const WEAKER: &[(Kind, &str, &str)] = &[
    (Kind::Use, ".before_write(", ".before_read("),
    (Kind::Use, ".written(self.stamp)", ".read(self.stamp)"),
    (Kind::Use, ".written(stamp)", ".read(stamp)"),
    (Kind::Use, "inout(to)", "&*to"),
    (Kind::Use, "mark(Lane::Copy)", "mark(Lane::Compute)"),
    (Kind::Use, "f(self.0, Use::Write)", "f(self.0, Use::Read)"),
    (Kind::Use, "f(self.0, Use::Update)", "f(self.0, Use::Read)"),
    (
        Kind::Use,
        "f(t.borrow(), Use::Update)",
        "f(t.borrow(), Use::Read)",
    ),
    (Kind::Use, "self.all()", "std::iter::once(self.write)"),
    (Kind::Record, "stream.begun += 1", "stream.begun += 0"),
    (Kind::Lock, "let _issuing = ", "let _ = "),
    (Kind::Lock, "self.lanes = None;", ""),
];

/// Numbers of operations: where they are not noted, nobody knows what was waited for or issued.
pub const NOTES: &[&str] = &["self.seen[to][from] = ", "stream.issued = ", "slot.used = "];

/// Comparisons, and those that let one more or one fewer in, or are their contrary.
pub const COMPARED: &[(Kind, &str, &str)] = &[
    (Kind::Bound, " < ", " <= "),
    (Kind::Bound, " <= ", " < "),
    (Kind::Bound, " > ", " >= "),
    (Kind::Bound, " >= ", " > "),
    (Kind::Check, " == ", " != "),
    (Kind::Check, " != ", " == "),
];
