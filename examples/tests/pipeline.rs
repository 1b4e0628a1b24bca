//! The program `pipeline`, from its command line to its last line.

mod few;

use std::fs;
use std::process::{Command, Output};
use std::sync::LazyLock;

use few::few;
use serde_json::Value;

fn pipeline(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .args(args)
        .output()
        .unwrap()
}

/// A folder with the first 600 training and 100 test images.
static FEW: LazyLock<String> = LazyLock::new(|| few("pipeline", 600, 100));

/// The line of JSON that a run over [`FEW`] images for one epoch ends with.
fn short(args: &[&str]) -> Value {
    let output = pipeline(
        &[
            &["--epochs", "1", "--data", &FEW, "--model", "mlp", "--json"],
            args,
        ]
        .concat(),
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn no_cut_and_no_schedule_changes_a_bit() {
    let one = short(&["--ranks", "1", "--schedule", "gpipe"]);
    assert_eq!(one["example"], "pipeline");
    assert_eq!(one["peak_bytes"].as_array().unwrap().len(), 1);
    for args in [
        ["--ranks", "2", "--schedule", "1f1b"],
        ["--ranks", "2", "--schedule", "zbv"],
        ["--ranks", "4", "--schedule", "zbh1"],
    ] {
        let other = short(&args);
        assert_eq!(
            other["parameters_sha256"], one["parameters_sha256"],
            "{args:?}"
        );
        assert_eq!(other["train_loss"], one["train_loss"], "{args:?}");
        assert_eq!(other["test_accuracy"], one["test_accuracy"], "{args:?}");
        assert_eq!(other["schedule"], args[3]);
        let ranks: usize = args[1].parse().unwrap();
        assert_eq!(other["ranks"], ranks);
        assert_eq!(other["peak_bytes"].as_array().unwrap().len(), ranks);
        assert!(other["step_seconds"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn replicas_see_the_whole_batch() {
    let one = short(&["--ranks", "2"]);
    let output = Command::new(env!("CARGO_BIN_EXE_ddp_pipeline"))
        .args(["--epochs", "1", "--data", &FEW, "--model", "mlp", "--json"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mesh: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(mesh["example"], "ddp_pipeline");
    assert_eq!(
        (&mesh["ranks"], &mesh["replicas"]),
        (&Value::from(4), &Value::from(2))
    );
    assert_eq!(mesh["peak_bytes"].as_array().unwrap().len(), 4);
    let loss = |run: &Value| run["train_loss"].as_f64().unwrap();
    assert!((loss(&one) - loss(&mesh)).abs() < 0.02, "{one} {mesh}");
    let refused = pipeline(&["--ranks", "3", "--replicas", "2", "--data", &FEW]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("but the group has 3 ranks"), "{said}");
}

#[test]
fn a_plan_from_a_file_is_run_and_drawn() {
    let folder = std::env::temp_dir().join(format!("phalanx-pipeline-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (plan, svg, trace) = (path("plan.txt"), path("step.svg"), path("step.json"));
    fs::write(&plan, "0F0, 0F1, 0B0, 0B1\n1F0, 1B0, 1F1, 1B1\n").unwrap();
    let run = short(&["--plan", &plan, "--svg", &svg, "--trace", &trace]);
    assert_eq!(run["microbatches"], 2);
    let picture = fs::read_to_string(&svg).unwrap();
    assert!(picture.contains(">predicted<") && picture.contains(">measured<"));
    let trace: Value = serde_json::from_str(&fs::read_to_string(&trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let computed: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert_eq!(computed.len(), 8);
    assert!(
        computed
            .iter()
            .all(|event| event["dur"].as_f64().unwrap() > 0.0)
    );
    fs::write(&plan, "0F0, 0B0, 0F1, 0B1\n1F0, 1F1, 1B0, 1B1\n").unwrap();
    let refused = pipeline(&["--plan", &plan, "--data", &FEW]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("wait for each other in a circle"), "{said}");
    fs::remove_dir_all(&folder).unwrap();
    // Said once, before there are ranks.
    let refused = pipeline(&["--plan", &plan, "--data", &FEW]);
    let said = String::from_utf8_lossy(&refused.stderr);
    let start = format!("error: cannot read {plan}: ");
    assert!(said.starts_with(&start), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
