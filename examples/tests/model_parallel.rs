//! The program `model_parallel`, from its command line to its last line.

use std::process::{Command, Output};

use phalanx_autograd::Tape;
use phalanx_autograd::nn::{Factory, Linear, Module, mse};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_examples::report::fingerprint;
use phalanx_tensor::{DType, Device, Rng, Tensor};
use serde_json::{Value, json};

fn program(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_model_parallel"))
        .args(args)
        .output()
        .unwrap()
}

/// What a run with `args` says on stdout.
fn said(args: &[&str]) -> String {
    let output = program(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The line of JSON that a run with `args` ends with.
fn summary(args: &[&str]) -> Value {
    let text = said(&[args, &["--json"]].concat());
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn losses(summary: &Value) -> Vec<f64> {
    let losses = summary["losses"].as_array().unwrap();
    losses.iter().map(|loss| loss.as_f64().unwrap()).collect()
}

/// What the README promises, and what the line of JSON holds.
#[test]
fn it_learns_with_a_layer_on_each_device() {
    let summary = summary(&[]);
    assert_eq!(summary["example"], "model_parallel");
    assert_eq!(summary["devices"], json!(["cpu:0", "cpu:1"]));
    // 10 × 10 weights and 10 biases, 10 × 5 and 5, of 4 bytes.
    assert_eq!(summary["bytes_per_device"], json!([440, 220]));
    for (peak, least) in summary["peak_bytes_per_device"]
        .as_array()
        .unwrap()
        .iter()
        .zip([440, 220])
    {
        assert!(peak.as_u64().unwrap() > least, "{summary}");
    }
    let losses = losses(&summary);
    assert_eq!(losses.len(), 200);
    assert!(losses[199] < 0.5 * losses[0], "{summary}");
}

/// The same training without the program, in one piece on one device: the same losses and parameters, bit for bit.
#[test]
fn the_model_in_one_piece_ends_with_the_same_bits() {
    let found = summary(&["--steps", "30", "--seed", "5", "--lr", "0.05"]);
    let device = Device::cpu(9);
    let mut f = Factory::new(device, 5);
    let (first, second) = (
        Linear::new(10, 10, &mut f).unwrap(),
        Linear::new(10, 5, &mut f).unwrap(),
    );
    let mut rng = Rng::new(5).fold_in(1);
    let mut randn = |shape: [usize; 2]| Tensor::randn(shape, DType::F32, device, &mut rng).unwrap();
    let (x, y) = (randn([20, 10]), randn([20, 5]));
    let parameters = [first.parameters(), second.parameters()].concat();
    let config = SgdConfig {
        lr: 0.05,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(parameters.clone(), config).unwrap();
    let mut expected = Vec::new();
    for _ in 0..30 {
        let tape = Tape::new();
        let hidden = first.forward(&tape, &tape.constant(x.clone())).unwrap();
        let output = second.forward(&tape, &hidden.relu().unwrap()).unwrap();
        let loss = mse(&output, &tape.constant(y.clone())).unwrap();
        expected.push(loss.item::<f64>().unwrap());
        sgd.step(&tape.backward(&loss).unwrap()).unwrap();
    }
    // JSON has the shortest decimal of each f32.
    let found_losses: Vec<f32> = losses(&found).into_iter().map(|l| l as f32).collect();
    let expected: Vec<f32> = expected.into_iter().map(|l| l as f32).collect();
    assert_eq!(found_losses, expected);
    assert_eq!(
        found["parameters_sha256"],
        fingerprint(&parameters).unwrap()
    );
}

#[test]
fn a_summary_tells_what_each_device_holds() {
    let text = said(&["--steps", "3"]);
    assert!(
        text.starts_with("two layers on cpu:0 and cpu:1: 3 steps\n"),
        "{text}"
    );
    assert!(
        text.contains("  cpu:1          220 bytes of parameters, "),
        "{text}"
    );
    assert!(!text.contains('{'), "{text}");
}

#[test]
fn mistakes_are_answered_by_a_sentence() {
    for (args, code, expected) in [
        (vec!["--steps", "0"], 2, "at least 1"),
        (vec!["--lr", "-1"], 2, "0 or more"),
        (vec!["--device", "abacus"], 2, "write cpu, cuda or cuda:1"),
        (
            vec!["--device", "cuda:63"],
            1,
            "device cuda:63 is not available",
        ),
        (vec!["--lr", "1e30"], 1, "the training has diverged"),
    ] {
        let output = program(&args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(
            said.starts_with("error: ") && said.contains(expected) && !said.contains("panicked"),
            "{args:?}: {said}"
        );
    }
}
