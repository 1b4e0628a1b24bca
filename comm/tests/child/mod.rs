//! Tests that need a process of their own: the test program, started once more for one test.

use std::process::Command;

/// Names, in the process that was started once more, the test for which it was.
const CHILD: &str = "PHALANX_TEST_CHILD";

/// This test program, to be started once more for `test` alone; `None` where it has been. (It has one
/// memory arena, however many threads and cores there are, where the allocator is glibc's.)
pub fn again(test: &str) -> Option<Command> {
    if std::env::var_os(CHILD).is_some_and(|name| name == test) {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().expect("a program has a path"));
    command.args([test, "--exact", "--nocapture"]);
    command.env(CHILD, test).env("MALLOC_ARENA_MAX", "1");
    Some(command)
}
