//! Parameters that not every rank uses.

use crate::model::{Mlp, assert_close, on_ranks, values};
use phalanx_autograd::nn::{Module, Visitor};
use phalanx_autograd::{Tape, Var};
use phalanx_parallel::{Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Tensor};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A trunk, and one of three heads on top of it.
struct Branches {
    trunk: Mlp,
    heads: [Mlp; 3],
    chosen: AtomicUsize,
}

impl Branches {
    fn new(device: Device) -> Branches {
        let mlp = |seed| Mlp::new(&[4, 4], DType::F64, device, seed);
        Branches {
            trunk: mlp(1),
            heads: [mlp(2), mlp(3), mlp(4)],
            chosen: AtomicUsize::new(0),
        }
    }
}

impl Module for Branches {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        self.heads[self.chosen.load(Relaxed)].forward(tape, &self.trunk.forward(tape, x)?)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("trunk", &self.trunk);
        for (i, head) in self.heads.iter().enumerate() {
            v.child(&format!("head{i}"), head);
        }
    }
}

/// The gradients of one sweep without any wrapper, by a rank's choice.
fn alone(rank: usize, choice: usize, step: usize) -> Vec<Option<Vec<f64>>> {
    let device = Device::cpu(rank);
    let model = Branches::new(device);
    model.chosen.store(choice, Relaxed);
    let tape = Tape::new();
    let loss = loss(&model, &tape, rank, step).unwrap();
    let gradients = tape.backward(&loss).unwrap();
    let params = model.named_parameters();
    params
        .iter()
        .map(|(_, p)| gradients.get(p).map(values))
        .collect()
}

fn loss(
    model: &impl Module,
    tape: &Tape,
    rank: usize,
    step: usize,
) -> phalanx_autograd::Result<Var> {
    let x = Tensor::full(
        [2, 4],
        (1 + rank + 3 * step) as f64,
        DType::F64,
        Device::cpu(rank),
    )?;
    model.forward(tape, &tape.constant(x))?.square()?.mean_all()
}

#[test]
fn gradients_are_sums_over_the_users_divided_by_the_world() {
    const WORLD: usize = 3;
    // What each rank's forward uses, step by step: head 2 is never used in the first steps.
    let choices = [[0, 1, 0], [1, 1, 1], [0, 0, 0], [2, 0, 1]];
    for in_place_bytes in [1, usize::MAX].map(Some) {
        let all = on_ranks(WORLD, |group| {
            let rank = group.rank();
            let config = DdpConfig {
                in_place_bytes,
                first_bucket_bytes: Some(200),
                ..Default::default()
            };
            let ddp = Ddp::new(Branches::new(Device::cpu(rank)), group, config)?;
            let mut seen = Vec::new();
            for (step, choice) in choices.iter().enumerate() {
                ddp.module().chosen.store(choice[rank], Relaxed);
                let tape = Tape::new();
                let gradients = ddp.backward(&tape, &loss(&ddp, &tape, rank, step)?)?;
                let found = ddp
                    .parameters()
                    .iter()
                    .map(|p| gradients.get(p).map(values))
                    .collect::<Vec<_>>();
                seen.push(found);
            }
            Ok(seen)
        });
        for (step, choice) in choices.iter().enumerate() {
            let local: Vec<_> = (0..WORLD).map(|r| alone(r, choice[r], step)).collect();
            for seen in &all {
                for (i, found) in seen[step].iter().enumerate() {
                    let users: Vec<_> = local.iter().filter_map(|l| l[i].as_ref()).collect();
                    match found {
                        None => assert!(users.is_empty(), "step {step}: parameter {i} has users"),
                        Some(found) => {
                            assert!(
                                !users.is_empty(),
                                "step {step}: parameter {i} is used nowhere"
                            );
                            let want: Vec<f64> = (0..found.len())
                                .map(|k| users.iter().map(|u| u[k]).sum::<f64>() / WORLD as f64)
                                .collect();
                            assert_close(
                                found,
                                &want,
                                1e-12,
                                &format!("step {step}, parameter {i}"),
                            );
                        }
                    }
                }
            }
            assert!(
                all.iter().all(|seen| seen[step] == all[0][step]),
                "equal everywhere, bit for bit"
            );
        }
    }
}

#[test]
fn what_an_earlier_micro_step_used_is_averaged_too() {
    let all = on_ranks(2, |group| {
        let rank = group.rank();
        let ddp = Ddp::new(
            Branches::new(Device::cpu(rank)),
            group,
            DdpConfig::default(),
        )?;
        let tape = Tape::new();
        ddp.module().chosen.store(1, Relaxed);
        ddp.accumulate(&tape, &loss(&ddp, &tape, rank, 0)?)?;
        ddp.module().chosen.store(0, Relaxed);
        let gradients = ddp.backward(&tape, &loss(&ddp, &tape, rank, 0)?)?;
        Ok(ddp
            .parameters()
            .iter()
            .map(|p| gradients.get(p).map(values))
            .collect::<Vec<_>>())
    });
    for i in 0..8 {
        let parts = (0..2).flat_map(|r| [alone(r, 0, 0), alone(r, 1, 0)]);
        let parts: Vec<Vec<f64>> = parts.filter_map(|l| l[i].clone()).collect();
        match &all[0][i] {
            None => assert!(parts.is_empty() && i >= 6),
            Some(found) => {
                let want: Vec<f64> = (0..found.len())
                    .map(|k| parts.iter().map(|p| p[k]).sum::<f64>() / 2.0)
                    .collect();
                assert_close(found, &want, 1e-12, "accumulated");
            }
        }
        assert_eq!(all[0][i], all[1][i]);
    }
}
