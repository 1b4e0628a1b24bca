//! Training on a card against training on the CPU, and the program `ddp` on a card. Where there is no card, each test
//! says so.
#![cfg(feature = "cuda")]

mod few;
#[path = "../../comm/tests/ports/mod.rs"]
mod ports;
#[path = "../../tensor/tests/cuda/support.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::Result;
use phalanx_autograd::nn::{Factory, Module, Sequential};
use phalanx_autograd::optim::{Sgd, SgdConfig};
use phalanx_comm::{LaunchConfig, LaunchError, launch};
use phalanx_examples::models::{image_mlp, small_cnn};
use phalanx_examples::train::step;
use phalanx_parallel::{Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use serde_json::Value;

use ports::free_port;
use support::{card, cards, distance, read};

/// The program `ddp`, or a loud line: the tests may run on another machine than they were built on.
fn program(test: &str) -> Option<&'static Path> {
    let program = Path::new(env!("CARGO_BIN_EXE_ddp"));
    if program.exists() {
        return Some(program);
    }
    eprintln!("SKIPPED: {test}: there is no program {}", program.display());
    None
}

/// What training leaves: the losses, and all parameters.
#[derive(Default)]
struct Outcome {
    losses: Vec<f64>,
    params: Vec<f64>,
}

/// Twenty steps on so many ranks, the first one on `first`, which share out a batch; what rank 0 has of it.
fn train(
    first: Device,
    ranks: usize,
    model: fn(&mut Factory) -> phalanx_autograd::Result<Sequential>,
) -> Outcome {
    const BATCH: usize = 8;
    let mut rng = Rng::new(17);
    let images =
        Tensor::randn([20, BATCH, 1, 28, 28], DType::F32, Device::cpu(0), &mut rng).unwrap();
    let labels = Tensor::from_vec((0..BATCH as i64).collect(), [BATCH], Device::cpu(0)).unwrap();
    let ends = launch(
        LaunchConfig::new(ranks).device(first),
        |group| -> Result<Outcome> {
            let (device, rank) = (group.device(), group.rank());
            let expected = match first {
                Device::Cuda(card) => Device::cuda(card + rank),
                _ => Device::cpu(rank),
            };
            assert_eq!(device, expected);
            let share = BATCH / ranks;
            let model = model(&mut Factory::new(group.device(), 3))?;
            let ddp = Ddp::new(model, group, DdpConfig::default())?;
            let config = SgdConfig {
                lr: 0.02,
                momentum: 0.9,
                weight_decay: 5e-4,
                ..SgdConfig::default()
            };
            let mut sgd = Sgd::new(ddp.parameters(), config)?;
            let mut outcome = Outcome::default();
            for index in 0..20 {
                let images = images.narrow(0, index, 1)?.reshape([BATCH, 1, 28, 28])?;
                let of_rank =
                    |batch: &Tensor| batch.narrow(0, rank * share, share)?.to_device(device);
                let (images, labels) = (of_rank(&images)?, of_rank(&labels)?);
                let loss = step(&ddp, &mut sgd, images, &labels)?;
                assert_eq!(loss.device(), device);
                outcome.losses.extend(read(&loss));
            }
            ddp.check_replicas()?;
            for param in ddp.module().parameters() {
                assert_eq!(param.device(), device);
                outcome.params.extend(read(&param.value()?));
            }
            Ok(outcome)
        },
    );
    ends.unwrap().remove(0)
}

fn trains_as_on_the_cpu(
    device: Device,
    ranks: usize,
    name: &str,
    model: fn(&mut Factory) -> phalanx_autograd::Result<Sequential>,
) {
    let (there, here) = (
        train(device, ranks, model),
        train(Device::cpu(0), ranks, model),
    );
    for (what, got, expected) in [
        ("losses", &there.losses, &here.losses),
        ("parameters", &there.params, &here.params),
    ] {
        let apart = distance(got, expected);
        eprintln!("{name} on {ranks} ranks: {what} are {apart:.1e} apart");
        assert!(
            apart <= 1e-5,
            "{name} on {ranks} ranks: {what} are {apart} apart"
        );
    }
}

#[test]
fn the_mlp_trains_as_on_the_cpu() {
    let Some((device, _turn)) = card("the_mlp_trains_as_on_the_cpu") else {
        return;
    };
    trains_as_on_the_cpu(device, 1, "mlp", image_mlp);
}

#[test]
fn the_cnn_trains_as_on_the_cpu() {
    let Some((device, _turn)) = card("the_cnn_trains_as_on_the_cpu") else {
        return;
    };
    trains_as_on_the_cpu(device, 1, "cnn", small_cnn);
}

/// Ranks that are threads, each with a card of its own.
#[test]
fn several_cards_train_as_as_many_cpus() {
    const TEST: &str = "several_cards_train_as_as_many_cpus";
    for ranks in [2, 4] {
        let Some(_turn) = cards(TEST, ranks) else {
            return;
        };
        trains_as_on_the_cpu(Device::cuda(0), ranks, "mlp", image_mlp);
        trains_as_on_the_cpu(Device::cuda(0), ranks, "cnn", small_cnn);
    }
}

/// More ranks than there are cards are refused by one sentence, in the library and in the programs.
#[test]
fn more_ranks_than_cards_are_refused() {
    let Some((device, _turn)) = card("more_ranks_than_cards_are_refused") else {
        return;
    };
    let cards = (0..).find(|card| Device::cuda(*card).memory().is_err());
    let ranks = cards.expect("a machine has so many cards") + 1;
    let end = launch(LaunchConfig::new(ranks).device(device), |_| -> Result<()> {
        panic!("it runs")
    });
    let Err(error @ LaunchError::World(_)) = end else {
        panic!("{end:?}");
    };
    let Some(program) = program("more_ranks_than_cards_are_refused") else {
        return;
    };
    let output = Command::new(program)
        .args(["--world-size", &ranks.to_string(), "--device", "cuda:0"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said, format!("error: {error}\n"));
}

/// The line of JSON with which a program ends well.
fn summary_of(output: Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// The program, from its command line to its line of JSON.
#[test]
fn the_program_trains_on_a_card() {
    let Some(_card) = card("the_program_trains_on_a_card") else {
        return;
    };
    let Some(program) = program("the_program_trains_on_a_card") else {
        return;
    };
    let few = few::few("few-for-cards", 96, 40);
    let summary = |device: &str| -> Value {
        let args = [
            "--world-size",
            "1",
            "--device",
            device,
            "--epochs",
            "2",
            "--batch-size",
            "16",
            "--data",
            &few,
            "--json",
        ];
        summary_of(Command::new(program).args(args).output().unwrap())
    };
    let (here, there) = (summary("cpu"), summary("cuda:0"));
    assert_eq!(there["device"], "cuda");
    for key in ["world_size", "steps", "batch_size"] {
        assert_eq!(here[key], there[key], "{key}");
    }
    let loss = |summary: &Value| summary["train_loss"].as_f64().unwrap();
    let apart = (loss(&there) / loss(&here) - 1.0).abs();
    assert!(apart < 1e-4, "{here} and {there}");
    assert!(there["peak_bytes"].as_u64().unwrap() > 1 << 20, "{there}");
}

/// The program with a layer on each of two cards computes what it computes on the CPU.
#[test]
fn the_split_model_trains_on_two_cards() {
    const TEST: &str = "the_split_model_trains_on_two_cards";
    let (Some(_turn), Some(_)) = (cards(TEST, 2), program(TEST)) else {
        return;
    };
    let summary = |device: &str| -> Value {
        let args = ["--device", device, "--steps", "20", "--json"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_model_parallel"));
        summary_of(command.args(args).output().unwrap())
    };
    let (here, there) = (summary("cpu"), summary("cuda"));
    assert_eq!(there["devices"], serde_json::json!(["cuda:0", "cuda:1"]));
    assert_eq!(there["bytes_per_device"], here["bytes_per_device"]);
    let losses = |summary: &Value| -> Vec<f64> {
        let losses = summary["losses"].as_array().unwrap();
        losses.iter().map(|loss| loss.as_f64().unwrap()).collect()
    };
    let apart = distance(&losses(&there), &losses(&here));
    assert!(apart < 1e-5, "{here} and {there}");
}

/// A pipeline over two cards trains as over two CPUs.
#[test]
fn a_pipeline_trains_on_two_cards() {
    const TEST: &str = "a_pipeline_trains_on_two_cards";
    let (Some(_turn), Some(_)) = (cards(TEST, 2), program(TEST)) else {
        return;
    };
    let few = few::few("few-for-pipelines", 64, 16);
    let summary = |device: &str| -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.args(["--device", device, "--ranks", "2", "--epochs", "1"]);
        command.args(["--batch-size", "32", "--data", &few, "--json"]);
        summary_of(command.output().unwrap())
    };
    let (here, there) = (summary("cpu"), summary("cuda"));
    assert_eq!(
        (&there["backend"], &there["device"]),
        (&"nccl".into(), &"cuda".into())
    );
    let loss = |summary: &Value| summary["train_loss"].as_f64().unwrap();
    let apart = (loss(&there) / loss(&here) - 1.0).abs();
    assert!(apart < 1e-5, "{here} and {there}");
}

/// Two processes, started in torchrun's manner and without MPI, train as two threads do, and as two CPUs.
#[test]
fn processes_train_as_threads() {
    const TEST: &str = "processes_train_as_threads";
    let (Some(_turn), Some(program)) = (cards(TEST, 2), program(TEST)) else {
        return;
    };
    let few = few::few("few-for-processes", 96, 40);
    let command = |device: &str| {
        let mut command = Command::new(program);
        command.args(["--world-size", "2", "--device", device, "--model", "mlp"]);
        command.args([
            "--epochs",
            "2",
            "--batch-size",
            "16",
            "--data",
            &few,
            "--json",
        ]);
        command
    };
    let port = free_port().to_string();
    let process = |rank: &str| {
        let mut command = command("cuda");
        command.env("WORLD_SIZE", "2").env("RANK", rank);
        command.env("LOCAL_WORLD_SIZE", "2").env("LOCAL_RANK", rank);
        command
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", &port);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let [first, second] = ["0", "1"].map(process);
    let (first, second) = (first.wait_with_output(), second.wait_with_output());
    let other = second.unwrap();
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(other.status.success(), "{said}");
    let processes = summary_of(first.unwrap());
    let threads = summary_of(command("cuda").output().unwrap());
    let cpus = summary_of(command("cpu").output().unwrap());
    assert_eq!(processes["backend"], "nccl");
    assert_eq!(threads["backend"], "nccl");
    let loss = |summary: &Value| summary["train_loss"].as_f64().unwrap();
    for other in [&threads, &cpus] {
        let apart = (loss(&processes) / loss(other) - 1.0).abs();
        assert!(apart < 1e-5, "{processes} and {other}");
    }
}

/// A rank alone meets nobody, on a card too; plans are made on the CPU.
#[test]
fn the_other_programs_take_a_device() {
    const TEST: &str = "the_other_programs_take_a_device";
    let (Some(_card), Some(_)) = (card(TEST), program(TEST)) else {
        return;
    };
    let run = |program: &str, args: &[&str]| Command::new(program).args(args).output().unwrap();
    let collectives = |device| {
        let args = ["--world-size", "1", "--device", device];
        let output = run(env!("CARGO_BIN_EXE_collectives"), &args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{device}: {said}");
        output.stdout
    };
    assert_eq!(collectives("cuda:0"), collectives("cpu"));
    let schedule = |device| {
        run(
            env!("CARGO_BIN_EXE_schedule"),
            &["--kind", "1f1b", "--device", device],
        )
    };
    assert!(schedule("cpu").status.success());
    let refused = schedule("cuda:0");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("error: a plan is made and predicted on the cpu"),
        "{said}"
    );
}
