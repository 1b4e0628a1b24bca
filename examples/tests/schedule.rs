//! The program `schedule` as a person meets it: its last line, its exit code, its files.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn run(args: &[&str]) -> (Output, Value) {
    let program = env!("CARGO_BIN_EXE_schedule");
    let output = Command::new(program)
        .args(args)
        .arg("--json")
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let last = stdout.lines().last().unwrap();
    let json = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"));
    (output, json)
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("phalanx-{}-{name}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_last_line_holds_all_of_it() {
    let args = ["--kind", "1f1b", "--ranks", "2", "--microbatches", "2"];
    let (output, json) = run(&args);
    assert!(output.status.success());
    assert_eq!(
        json.to_string(),
        serde_json::json!({
            "kind": "1f1b", "ranks": 2, "stages_per_rank": 1, "microbatches": 2,
            "makespan": 9, "idle_per_rank": [3, 3], "peak_live": [2, 1], "valid": true,
            "grid": [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1B0", "1F1", "1B1"]],
            "lowered": [
                ["0F0", "0SEND_F0", "0F1", "0SEND_F1", "0RECV_B0", "0B0", "0RECV_B1", "0B1",
                 "0REDUCE_GRAD"],
                ["1RECV_F0", "1F0", "1RECV_F1", "1B0", "1SEND_B0", "1F1", "1B1", "1SEND_B1",
                 "1REDUCE_GRAD"],
            ],
        })
        .to_string()
    );
}

#[test]
fn what_is_wrong_has_a_reason_and_an_exit_code() {
    let plan = file("circle.txt", "0F0, 0B0, 0F1, 0B1\n1F0, 1F1, 1B0, 1B1\n");
    let text = file("text.txt", "0F0, what\n");
    let cases: [(&[&str], &str); 6] = [
        (
            &["--kind", "dualpipev", "--ranks", "4", "--microbatches", "2"],
            "makes no sense",
        ),
        (&["--kind", "nothing"], "`nothing` is no schedule"),
        (
            &["--file", plan.to_str().unwrap()],
            "wait for each other in a circle",
        ),
        (
            &["--file", text.to_str().unwrap()],
            "line 1, column 6: `what`",
        ),
        (&["--kind", "gpipe", "--memory", "3"], "the limit is 3"),
        (
            &["--optimize", "--memory", "0", "--seconds", "0"],
            "the smallest peak found is 1",
        ),
    ];
    for (args, words) in cases {
        let (output, json) = run(args);
        assert!(!output.status.success(), "{args:?}");
        assert_eq!(json["valid"], false, "{args:?}");
        let reason = json["reason"].as_str().unwrap();
        assert!(reason.contains(words), "{args:?}: {reason}");
    }
    let _ = (std::fs::remove_file(plan), std::fs::remove_file(text));
}

#[test]
fn numbers_that_cannot_be_are_refused_at_once_and_by_name() {
    let cases: [(&[&str], &str); 8] = [
        (&["--kind", "1f1b", "--ranks", "0"], "--ranks is 0"),
        (
            &["--kind", "1f1b", "--microbatches", "0"],
            "--microbatches is 0",
        ),
        (
            &["--kind", "1f1b", "--stages-per-rank", "0"],
            "--stages-per-rank is 0",
        ),
        (
            &["--kind", "1f1b", "--ranks", "1000000000000"],
            "--ranks is 1000000000000",
        ),
        (
            &[
                "--kind",
                "1f1b",
                "--ranks",
                "60000",
                "--microbatches",
                "60000",
            ],
            "--ranks, --microbatches and --stages-per-rank make 3600000000 pairs",
        ),
        (
            &["--optimize", "--ranks", "5000", "--microbatches", "5000"],
            "make 25000000 pairs",
        ),
        (&["--optimize", "--seconds", "nan"], "--seconds is NaN"),
        (&["--optimize", "--seconds", "inf"], "--seconds is inf"),
    ];
    for (args, words) in cases {
        let (output, json) = run(args);
        assert!(!output.status.success(), "{args:?}");
        let reason = json["reason"].as_str().unwrap();
        assert!(reason.contains(words), "{args:?}: {reason}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_found_before_the_work() {
    for option in ["--svg", "--trace"] {
        let (output, json) = run(&["--kind", "gpipe", option, "/no/such/folder/file"]);
        assert!(!output.status.success());
        let reason = json["reason"].as_str().unwrap();
        assert!(
            reason.contains("cannot write /no/such/folder/file"),
            "{reason}"
        );
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(stdout.lines().count(), 1, "nothing was planned: {stdout}");
    }
}

#[test]
fn a_plan_from_a_file_has_its_own_extent() {
    for option in ["--ranks", "--microbatches", "--stages-per-rank"] {
        let program = env!("CARGO_BIN_EXE_schedule");
        let mut command = Command::new(program);
        let output = command.args(["--file", "plan.txt", option, "4"]).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("cannot be used with"), "{option}: {said}");
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn a_printed_plan_is_read_again() {
    let (_, named) = run(&["--kind", "zbv", "--ranks", "3", "--microbatches", "6"]);
    let lines = |grid: &Value| {
        let line = |list: &Value| {
            let actions: Vec<_> = list
                .as_array()
                .unwrap()
                .iter()
                .map(|a| a.as_str().unwrap())
                .collect();
            actions.join(", ") + "\n"
        };
        grid.as_array()
            .unwrap()
            .iter()
            .map(line)
            .collect::<String>()
    };
    for which in ["grid", "lowered"] {
        let path = file(which, &lines(&named[which]));
        let (output, read) = run(&["--file", path.to_str().unwrap()]);
        assert!(output.status.success());
        assert_eq!(read["grid"], named[which]);
        assert_eq!(read["lowered"], named["lowered"]);
        for same in [
            "ranks",
            "stages_per_rank",
            "microbatches",
            "makespan",
            "peak_live",
        ] {
            assert_eq!(read[same], named[same], "{which}: {same}");
        }
        let _ = std::fs::remove_file(path);
    }
}

#[test]
fn costs_from_a_file_are_searched_and_drawn() {
    let costs = file(
        "costs.json",
        r#"{"stages": [{"forward": 1, "input": 1, "weight": 1, "transfer": 0.5},
                       {"forward": [2, 1, 2], "input": 2, "weight": 1, "activation": 3}]}"#,
    );
    let picture = file("picture.svg", "");
    let trace = file("trace.json", "");
    let (output, json) = run(&[
        "--optimize",
        "--costs",
        costs.to_str().unwrap(),
        "--ranks",
        "2",
        "--microbatches",
        "3",
        "--seconds",
        "1",
        "--svg",
        picture.to_str().unwrap(),
        "--trace",
        trace.to_str().unwrap(),
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(json["makespan"].as_f64() >= json["lower_bound"].as_f64());
    assert!(
        std::fs::read_to_string(&picture)
            .unwrap()
            .starts_with("<svg")
    );
    let drawn: Value = serde_json::from_str(&std::fs::read_to_string(&trace).unwrap()).unwrap();
    assert!(drawn["traceEvents"].is_array());
    for path in [costs, picture, trace] {
        let _ = std::fs::remove_file(path);
    }
}
