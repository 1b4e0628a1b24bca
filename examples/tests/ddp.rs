//! The program `ddp`, from its command line to its last line.

mod few;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use few::few;
use serde_json::Value;

fn ddp(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ddp"))
        .args(args)
        .output()
        .unwrap()
}

/// A folder with the first 600 training and 100 test images.
static FEW: LazyLock<String> = LazyLock::new(|| few("few", 600, 100));

/// A run with `args` over [`FEW`] images for one epoch.
fn short(args: &[&str]) -> Value {
    summary(&[&["--epochs", "1", "--data", &FEW], args].concat())
}

/// The line of JSON that a run with `args` ends with.
fn summary(args: &[&str]) -> Value {
    let output = ddp(&[args, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn number(summary: &Value, key: &str) -> f64 {
    summary[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no number {key} in {summary}"))
}

/// What the README promises, and what the JSON line holds.
#[test]
fn it_learns_what_clothes_look_like() {
    let summary = summary(&[]);
    for (key, value) in [
        ("example", "ddp"),
        ("model", "cnn"),
        ("backend", "local"),
        ("device", "cpu"),
    ] {
        assert_eq!(summary[key], value, "{key}");
    }
    assert_eq!(summary["world_size"], 2);
    assert_eq!(summary["epochs"], 8);
    assert_eq!(summary["steps"], 8 * 5_000_u64.div_ceil(64));
    assert!(number(&summary, "test_accuracy") >= 0.85, "{summary}");
    assert!(number(&summary, "train_loss") < 0.5, "{summary}");
    let (seconds, rate) = (
        number(&summary, "seconds"),
        number(&summary, "samples_per_second"),
    );
    assert!((seconds * rate / 40_000.0 - 1.0).abs() < 1e-6, "{summary}");
    let hash = summary["parameters_sha256"].as_str().unwrap();
    assert!(
        hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{hash}"
    );
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let run = |more: &[&str]| {
        short(more)["parameters_sha256"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let first = run(&["--seed", "3"]);
    assert_eq!(run(&["--seed", "3"]), first, "the same run twice");
    assert_eq!(
        run(&["--seed", "3", "--threads", "2"]),
        first,
        "more threads"
    );
    assert_ne!(run(&["--seed", "4"]), first, "another seed");
}

/// The batch is shared out, so training goes the same way whatever the number of ranks, but for rounding.
#[test]
fn the_number_of_ranks_changes_only_the_rounding() {
    let run = |ranks: &str, batch: &str| {
        short(&[
            "--model",
            "mlp",
            "--world-size",
            ranks,
            "--batch-size",
            batch,
        ])
    };
    let one = run("1", "60");
    for ranks in ["2", "3", "4"] {
        let many = run(ranks, "60");
        assert_eq!(many["steps"], one["steps"]);
        let (loss, alone) = (number(&many, "train_loss"), number(&one, "train_loss"));
        assert!(
            (loss / alone - 1.0).abs() < 0.01,
            "{ranks} ranks: loss {loss}, alone {alone}"
        );
    }
    // A batch that cannot be shared out evenly is rounded up: 64 on 3 ranks are 66.
    let rounded = run("3", "64");
    assert_eq!(rounded["steps"], 600_u64.div_ceil(66));
    assert_eq!(rounded["batch_size"], 66, "the summary tells what was done");
}

#[test]
fn curves_are_drawn() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("curves.svg");
    let name = path.to_str().unwrap();
    short(&["--model", "mlp", "--plot", name]);
    let picture = fs::read_to_string(&path).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("mlp on 2 ranks"));
}

#[test]
fn mistakes_are_answered_by_a_sentence() {
    let broken = Path::new(env!("CARGO_TARGET_TMPDIR")).join("broken");
    fs::create_dir_all(&broken).unwrap();
    fs::write(
        broken.join("train-images-idx3-ubyte.gz"),
        [0x1f, 0x8b, 8, 0],
    )
    .unwrap();
    fs::write(broken.join("train-labels-idx1-ubyte.gz"), []).unwrap();
    let broken = broken.to_str().unwrap();
    for (args, code, expected) in [
        (vec!["--world-size", "0"], 2, "at least 1"),
        (vec!["--batch-size", "0"], 2, "at least 1"),
        (vec!["--epochs", "many"], 2, "at least 1"),
        (vec!["--epochs", "5000000000"], 2, "less than 2^32"),
        (vec!["--lr", "NaN"], 2, "0 or more"),
        (
            vec!["--lr", "-0.1"],
            2,
            "'-0.1' for '--lr <RATE>': it should be a number, 0 or more",
        ),
        (
            vec!["--world-size", "1000"],
            1,
            "--world-size 1000 is more than one process runs",
        ),
        (
            vec!["--threads", "100000"],
            1,
            "more threads than one process runs",
        ),
        (vec!["--plot", "curves.png"], 1, "should end in .svg"),
        (
            vec!["--plot", "/no/such/folder/curves.svg"],
            1,
            "cannot write /no/such/folder/curves.svg",
        ),
        (
            vec!["--epochs", "1", "--data", &FEW, "--lr", "1e300"],
            1,
            "the training has diverged",
        ),
        (vec!["--model", "rnn"], 2, "possible values: mlp, cnn"),
        (vec!["--device", "abacus"], 2, "write cpu, cuda or cuda:1"),
        (
            vec!["--device", "cuda:63"],
            1,
            "device cuda:63 is not available",
        ),
        (vec!["--data", "/no/such/folder"], 1, "/no/such/folder"),
        (
            vec!["--data", broken],
            1,
            "train-images-idx3-ubyte.gz is cut short",
        ),
    ] {
        let output = ddp(&args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(
            said.starts_with("error: ") && said.contains(expected),
            "{args:?}: {said}"
        );
        assert!(
            !said.contains("panicked") && !said.contains("backtrace"),
            "{args:?}: {said}"
        );
    }
}

/// A picture that cannot be written is refused before the work is done, not after.
#[test]
fn nothing_is_trained_for_a_picture_that_cannot_be_written() {
    let output = ddp(&["--data", &FEW, "--plot", "/no/such/folder/curves.svg"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("epoch 1"), "{said}");
}

#[test]
fn a_batch_has_at_most_the_images_that_there_are() {
    let all = short(&["--model", "mlp", "--batch-size", "4000000000"]);
    assert_eq!(
        (&all["batch_size"], &all["steps"]),
        (&600.into(), &1.into())
    );
}
