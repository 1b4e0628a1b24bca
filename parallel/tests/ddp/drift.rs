//! Replicas that would drift apart without a sign: other configurations, other arguments, other values.

use crate::model::{Mlp, on_ranks, values};
use phalanx_autograd::nn::{BatchNorm2d, Factory, Linear, Module, Sequential};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Tape, Var};
use phalanx_comm::{FailureKind, LaunchConfig, LaunchError, launch};
use phalanx_parallel::{Compress, Ddp, DdpConfig, Error, Result, ddp};
use phalanx_tensor::{DType, Device, Tensor};
use std::sync::Arc;
use std::time::Duration;

fn model(device: Device) -> Mlp {
    Mlp::new(&[3, 4, 2], DType::F32, device, 0)
}

fn loss(ddp: &Ddp<Mlp>, tape: &Tape) -> Result<Var> {
    let (rank, device) = (ddp.group().rank(), ddp.group().device());
    let x = Tensor::full([2, 3], 1.0 + rank as f64, DType::F32, device)?;
    Ok(ddp.forward(tape, &tape.constant(x))?.square()?.mean_all()?)
}

#[test]
fn ranks_with_other_configurations_differ() {
    type Change = fn(&mut DdpConfig);
    let cases: [(&str, Change); 7] = [
        ("first_bucket_bytes: 5", |c| c.first_bucket_bytes = Some(5)),
        ("bucket_cap_bytes: 5", |c| c.bucket_cap_bytes = Some(5)),
        ("in_place_bytes: 5", |c| c.in_place_bytes = Some(5)),
        ("broadcast_buffers: false", |c| c.broadcast_buffers = false),
        ("uneven_inputs: true", |c| c.uneven_inputs = true),
        ("divide_by_initial_world_size: true", |c| {
            c.divide_by_initial_world_size = true;
        }),
        ("hook: Compress::Bf16", |c| {
            c.hook = Some(Arc::new(Compress::Bf16));
        }),
    ];
    for (words, change) in cases {
        let errors = on_ranks(3, |group| {
            let mut config = DdpConfig::default();
            if group.rank() == 1 {
                change(&mut config);
            }
            match Ddp::new(model(group.device()), group, config).map(drop) {
                Err(Error::ReplicasDiffer { rank, difference }) => Ok((rank, difference)),
                other => panic!("{other:?}"),
            }
        });
        for (rank, difference) in errors {
            assert_eq!(rank, 1);
            assert!(difference.contains(words), "{difference}");
        }
    }
    // What is recorded, and what stands beside the module, is each rank's own.
    on_ranks(2, |group| {
        let mut config = DdpConfig::default();
        if group.rank() == 1 {
            config.trace = true;
            config.beside = model(group.device()).params();
        }
        Ddp::new(model(group.device()), group, config).map(drop)
    });
}

#[test]
fn arguments_that_differ_are_one_error_on_every_rank() {
    let ends = on_ranks(3, |group| {
        let lr = if group.rank() == 2 { 0.01 } else { 0.05 };
        let text = format!("--epochs 4\n--lr {lr}\n");
        Ok(ddp::agree(&*group, "arguments", &text).map_err(|e| e.to_string()))
    });
    let want =
        "the ranks have different arguments: rank 2 has --lr 0.01, where rank 0 has --lr 0.05";
    assert!(
        ends.iter()
            .all(|end| end.as_ref().is_err_and(|e| e == want)),
        "{ends:?}"
    );
    on_ranks(2, |group| ddp::agree(&*group, "arguments", "--lr 0.05\n"));
}

#[test]
fn replicas_that_have_drifted_apart_are_found() {
    let errors = on_ranks(3, |group| {
        let rank = group.rank();
        let ddp = Ddp::new(model(group.device()), group, DdpConfig::default())?;
        ddp.check_replicas()?;
        let lr = if rank == 2 { 0.01 } else { 0.05 };
        let mut sgd = Sgd::new(
            ddp.parameters(),
            SgdConfig {
                lr,
                ..Default::default()
            },
        )
        .unwrap();
        let tape = Tape::new();
        sgd.step(&ddp.backward(&tape, &loss(&ddp, &tape)?)?)?;
        Ok(ddp.check_replicas().map_err(|e| e.to_string()))
    });
    let want = "the ranks hold different replicas: \
                rank 2 has other values of 0.weight (f32 [4, 3]) than rank 0";
    assert!(
        errors.iter().all(|e| e.as_ref().is_err_and(|e| e == want)),
        "{errors:?}"
    );
}

#[test]
fn every_value_of_a_replica_is_compared() {
    for broadcast_buffers in [true, false] {
        on_ranks(2, |group| {
            let (rank, device) = (group.rank(), group.device());
            let mut f = Factory::new(device, 0);
            let model = Sequential::new()
                .with(Linear::new(3, 4, &mut f)?)
                .with(BatchNorm2d::new(4, &mut f)?);
            let frozen = model.parameters()[1].clone();
            frozen.set_requires_grad(false);
            let config = DdpConfig {
                broadcast_buffers,
                ..Default::default()
            };
            let ddp = Ddp::new(model, group, config)?;
            // Not a number on all of them is no difference.
            let first = &ddp.parameters()[0];
            first.set(first.value()?.mul_scalar(f64::NAN)?)?;
            ddp.check_replicas()?;
            for p in ddp.parameters().iter().chain([&frozen]) {
                let before = p.value()?;
                if rank == 1 {
                    p.set(before.add_scalar(1.0)?)?;
                }
                let nan = values(&before).iter().all(|v| v.is_nan());
                assert_eq!(ddp.check_replicas().is_ok(), nan, "{p:?}");
                p.set(before)?;
            }
            let (_, buffer) = &ddp.named_buffers()[0];
            if rank == 1 {
                buffer.set(buffer.value()?.add_scalar(1.0)?)?;
            }
            // Buffers that nobody keeps equal may differ.
            assert_eq!(ddp.check_replicas().is_ok(), !broadcast_buffers);
            Ok(())
        });
    }
}

#[test]
fn a_rank_that_ends_early_is_told_of_join() {
    let config = LaunchConfig::new(2).deadline(Duration::from_secs(20));
    let ended = launch(config, |group| {
        let steps = if group.rank() == 0 { 3 } else { 2 };
        let ddp = Ddp::new(model(group.device()), group, DdpConfig::default())?;
        let tape = Tape::new();
        for _ in 0..steps {
            ddp.backward(&tape, &loss(&ddp, &tape)?)?;
        }
        Ok(())
    });
    let Err(LaunchError::Ranks { first, .. }) = ended else {
        panic!("{ended:?}");
    };
    let FailureKind::Error(error @ Error::EndedEarly { .. }) = &first.kind else {
        panic!("{first:?}");
    };
    let text = error.to_string();
    for words in ["rank 1 returned", "uneven_inputs", "Ddp::join"] {
        assert!(text.contains(words), "{text}");
    }
}
