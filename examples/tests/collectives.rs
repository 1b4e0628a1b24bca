//! The lesson runs as it is printed in the documentation, whatever the number of ranks.

use std::process::{Command, Output};

fn lesson(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_collectives"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn three_ranks_get_what_they_should() {
    let output = lesson(&["--world-size", "3"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    for (title, ranks) in [
        ("the ranks begin with", ["[1, 10]", "[2, 20]", "[3, 30]"]),
        ("all_reduce(sum)", ["[6, 60]"; 3]),
        ("all_reduce(avg)", ["[2, 20]"; 3]),
        ("all_reduce(max)", ["[3, 30]"; 3]),
        ("reduce(sum, root 0)", ["[6, 60]", "nothing", "nothing"]),
        ("broadcast(root 0)", ["[1, 10]"; 3]),
        ("all_gather", ["[[1, 10], [2, 20], [3, 30]]"; 3]),
        (
            "gather(root 0)",
            ["[[1, 10], [2, 20], [3, 30]]", "nothing", "nothing"],
        ),
        (
            "the ranks now",
            [
                "[[11], [12], [13]]",
                "[[21], [22], [23]]",
                "[[31], [32], [33]]",
            ],
        ),
        ("scatter(root 0)", ["[11]", "[12]", "[13]"]),
        ("reduce_scatter(sum)", ["[63]", "[66]", "[69]"]),
        (
            "all_to_all:",
            [
                "[[11], [21], [31]]",
                "[[12], [22], [32]]",
                "[[13], [23], [33]]",
            ],
        ),
        ("all_to_all_v:", ["[]", "[1, 2, 3]", "[1, 1, 2, 2, 3, 3]"]),
        ("send and recv", ["[3, 30]", "[1, 10]", "[2, 20]"]),
        ("split(rank mod 2)", ["[4, 40]", "[2, 20]", "[4, 40]"]),
    ] {
        let start = text.lines().position(|line| line.starts_with(title));
        let start = start.unwrap_or_else(|| panic!("no heading {title:?} in:\n{text}"));
        let lines: Vec<_> = text.lines().skip(start + 1).take(3).collect();
        let expected = [0, 1, 2].map(|rank| format!("  rank {rank}: {}", ranks[rank]));
        assert_eq!(lines, expected, "below {title:?}");
    }
    assert!(
        text.ends_with("barrier: nobody gets here before everybody has come\n"),
        "{text}"
    );
}

#[test]
fn any_number_of_ranks_will_do() {
    // One rank alone has nobody to send to: it shows one thing less.
    for (ranks, shown) in [(1, 14), (2, 15), (4, 15), (8, 15)] {
        let output = lesson(&["--world-size", &ranks.to_string()]);
        assert!(
            output.status.success(),
            "{ranks}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let said = text
            .lines()
            .filter(|line| line.starts_with("  rank "))
            .count();
        assert_eq!(said, shown * ranks, "{ranks} ranks");
    }
}

#[test]
fn nonsense_is_answered_by_a_sentence() {
    for args in [
        ["--world-size", "0"],
        ["--world-size", "two"],
        ["--backend", "pigeons"],
    ] {
        let output = lesson(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.starts_with("error: ") && !said.contains("panicked"),
            "{args:?}: {said}"
        );
    }
}
