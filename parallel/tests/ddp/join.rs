//! Ranks that run out of data, and averages with weights.

use crate::model::{Mlp, assert_close, mse, on_cpus, on_ranks, values};
use phalanx_autograd::nn::Module;
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Tape, Var};
use phalanx_comm::{Error as CommError, FailureKind, LaunchConfig, LaunchError, launch};
use phalanx_parallel::{Ddp, DdpConfig, Error};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use std::time::Duration;

const DIMS: [usize; 3] = [3, 5, 2];

/// A rank's data of a step: `rows` samples.
fn data(rank: usize, step: usize, rows: usize, device: Device) -> (Tensor, Tensor) {
    let mut rng = Rng::new((100 * rank + step) as u64);
    let x = Tensor::randn([rows, DIMS[0]], DType::F64, device, &mut rng).unwrap();
    let y = Tensor::randn([rows, DIMS[2]], DType::F64, device, &mut rng).unwrap();
    (x, y)
}

fn sgd(model: &Mlp) -> Sgd {
    Sgd::new(
        model.params(),
        SgdConfig {
            lr: 0.1,
            momentum: 0.9,
            ..Default::default()
        },
    )
    .unwrap()
}

/// One process that takes in each step the mean of the losses of the ranks in `active`.
fn reference(active: &[Vec<usize>]) -> Vec<f64> {
    let device = Device::cpu(0);
    let model = Mlp::new(&DIMS, DType::F64, device, 5);
    let mut sgd = sgd(&model);
    for (step, ranks) in active.iter().enumerate() {
        let tape = Tape::new();
        let mut total = None;
        for &rank in ranks {
            let (x, y) = data(rank, step, 4, device);
            let y = tape.constant(y);
            let loss = mse(&model.forward(&tape, &tape.constant(x)).unwrap(), &y).unwrap();
            total = Some(match total {
                None => loss,
                Some(sum) => loss.add(&sum).unwrap(),
            });
        }
        let mean = total.unwrap().mul_scalar(1.0 / ranks.len() as f64).unwrap();
        sgd.step(&tape.backward(&mean).unwrap()).unwrap();
    }
    model
        .params()
        .iter()
        .flat_map(|p| values(&p.value().unwrap()))
        .collect()
}

#[test]
fn a_rank_without_data_stalls_nobody_and_the_average_is_right() {
    for steps_of in [[2, 5, 3], [5, 2, 0], [0, 1, 4], [3, 3, 3]] {
        let longest = *steps_of.iter().max().unwrap();
        let active: Vec<Vec<usize>> = (0..longest)
            .map(|s| (0..3).filter(|&r| s < steps_of[r]).collect())
            .collect();
        let want = reference(&active);
        let all = on_ranks(3, |group| {
            let (rank, device) = (group.rank(), group.device());
            let config = DdpConfig {
                uneven_inputs: true,
                ..Default::default()
            };
            let ddp = Ddp::new(Mlp::new(&DIMS, DType::F64, device, 5), group, config)?;
            let mut sgd = sgd(ddp.module());
            for step in 0..steps_of[rank] {
                let (x, y) = data(rank, step, 4, device);
                let tape = Tape::new();
                let loss = mse(&ddp.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
                sgd.step(&ddp.backward(&tape, &loss)?)?;
            }
            let joined = ddp.join(|gradients| Ok(sgd.step(gradients)?))?;
            assert_eq!(joined, longest - steps_of[rank]);
            Ok(ddp
                .parameters()
                .iter()
                .flat_map(|p| values(&p.value().unwrap()))
                .collect::<Vec<_>>())
        });
        for found in &all {
            assert_close(found, &want, 1e-12, &format!("{steps_of:?}"));
            assert_eq!(found, &all[0], "replicas are equal bit for bit");
        }
    }
}

#[test]
fn join_needs_its_configuration() {
    on_ranks(2, |group| {
        let model = Mlp::new(&DIMS, DType::F32, group.device(), 5);
        let ddp = Ddp::new(model, group, DdpConfig::default())?;
        assert!(matches!(
            ddp.join(|_| Ok(())),
            Err(Error::InvalidUse {
                op: "Ddp::join",
                ..
            })
        ));
        Ok(())
    });
}

#[test]
fn weights_make_the_mean_over_all_samples() {
    let rows = [1, 6, 3];
    let device = Device::cpu(0);
    let model = Mlp::new(&DIMS, DType::F64, device, 5);
    let parts: Vec<_> = (0..3).map(|r| data(r, 0, rows[r], device)).collect();
    let x = Tensor::cat(&[&parts[0].0, &parts[1].0, &parts[2].0], 0).unwrap();
    let y = Tensor::cat(&[&parts[0].1, &parts[1].1, &parts[2].1], 0).unwrap();
    let tape = Tape::new();
    let y = tape.constant(y);
    let loss = mse(&model.forward(&tape, &tape.constant(x)).unwrap(), &y).unwrap();
    let want = tape.backward(&loss).unwrap();
    let want: Vec<f64> = model
        .params()
        .iter()
        .flat_map(|p| values(want.get(p).unwrap()))
        .collect();
    on_ranks(3, |group| {
        let (rank, device) = (group.rank(), group.device());
        let ddp = Ddp::new(
            Mlp::new(&DIMS, DType::F64, device, 5),
            group,
            DdpConfig::default(),
        )?;
        let (x, y) = data(rank, 0, rows[rank], device);
        let tape = Tape::new();
        let loss = mse(&ddp.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
        let gradients = ddp.backward_weighted(&tape, &loss, rows[rank] as f64)?;
        let found: Vec<f64> = ddp
            .parameters()
            .iter()
            .flat_map(|p| values(gradients.get(p).unwrap()))
            .collect();
        assert_close(&found, &want, 1e-12, "weighted");
        Ok(())
    });
}

#[test]
fn a_bad_weight_is_an_error_on_every_rank() {
    for bad in [f64::NAN, -1.0, f64::INFINITY] {
        on_ranks(2, |group| {
            let (rank, device) = (group.rank(), group.device());
            let ddp = Ddp::new(
                Mlp::new(&DIMS, DType::F64, device, 5),
                group,
                DdpConfig::default(),
            )?;
            let (x, y) = data(rank, 0, 2, device);
            let tape = Tape::new();
            let loss = mse(&ddp.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
            let result = ddp.backward_weighted(&tape, &loss, if rank == 1 { bad } else { 1.0 });
            assert!(matches!(
                result,
                Err(Error::InvalidWeight { rank: Some(1), .. })
            ));
            Ok(())
        });
    }
}

#[test]
fn a_bad_weight_is_an_error_where_a_rank_has_joined_too() {
    on_ranks(2, |group| {
        let (rank, device) = (group.rank(), group.device());
        let config = DdpConfig {
            uneven_inputs: true,
            ..Default::default()
        };
        let ddp = Ddp::new(Mlp::new(&DIMS, DType::F64, device, 5), group, config)?;
        let result = if rank == 0 {
            let (x, y) = data(rank, 0, 2, device);
            let tape = Tape::new();
            let loss = mse(&ddp.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
            ddp.backward_weighted(&tape, &loss, -1.0).map(drop)
        } else {
            ddp.join(|_| Ok(())).map(drop)
        };
        assert!(
            matches!(result, Err(Error::InvalidWeight { rank: Some(0), .. })),
            "{result:?}"
        );
        Ok(())
    });
}

#[test]
fn join_does_not_lose_what_was_accumulated() {
    let config = LaunchConfig::new(2).deadline(Duration::from_secs(20));
    let failed = launch(config, |group| {
        let (rank, device) = (group.rank(), group.device());
        let config = DdpConfig {
            uneven_inputs: true,
            ..Default::default()
        };
        let ddp = Ddp::new(Mlp::new(&DIMS, DType::F64, device, 5), group, config)?;
        if rank == 1 {
            let (x, y) = data(rank, 0, 2, device);
            let tape = Tape::new();
            let loss = mse(&ddp.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
            ddp.accumulate(&tape, &loss)?;
        }
        ddp.join(|_| Ok(())).map(drop)
    });
    let Err(LaunchError::Ranks { first, others }) = failed else {
        panic!("{failed:?}");
    };
    assert_eq!((first.rank, others.len()), (1, 1));
    let FailureKind::Error(Error::InvalidUse {
        op: "Ddp::join",
        reason,
    }) = &first.kind
    else {
        panic!("{first:?}");
    };
    assert!(reason.contains("accumulate"), "{reason}");
    assert!(
        matches!(
            others[0].kind,
            FailureKind::Error(Error::Comm(CommError::RankFailed { rank: 1, .. }))
        ),
        "{others:?}"
    );
}

#[test]
fn a_bad_weight_in_a_part_of_the_world_names_the_rank_in_the_world() {
    on_ranks(4, |world| {
        let (rank, device) = (world.rank(), world.device());
        let group = world.split(Some((rank / 2) as u32), 0)?;
        let group = group.expect("every rank has a color");
        let model = Mlp::new(&DIMS, DType::F64, device, 5);
        let ddp = Ddp::new(model, group, DdpConfig::default())?;
        let (x, y) = data(rank, 0, 2, device);
        let tape = Tape::new();
        let loss = mse(&ddp.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
        let result = ddp.backward_weighted(&tape, &loss, if rank == 3 { -1.0 } else { 1.0 });
        match rank / 2 {
            0 => drop(result?),
            _ => assert!(
                matches!(result, Err(Error::InvalidWeight { rank: Some(3), .. })),
                "{result:?}"
            ),
        }
        Ok(())
    });
}

/// The loss of a rank's data of a step, or for a weight of 0 one without a number.
fn loss(ddp: &Ddp<Mlp>, tape: &Tape, step: usize, weight: f64) -> phalanx_parallel::Result<Var> {
    let (x, y) = data(ddp.group().rank(), step, 4, ddp.group().device());
    let x = if weight == 0.0 {
        x.mul_scalar(f64::NAN)?
    } else {
        x
    };
    Ok(mse(
        &ddp.forward(tape, &tape.constant(x))?,
        &tape.constant(y),
    )?)
}

fn model(device: Device) -> Mlp {
    Mlp::new(&DIMS, DType::F64, device, 5)
}

#[test]
fn a_rank_of_weight_zero_counts_for_nothing() {
    for in_place_bytes in [1, usize::MAX] {
        on_ranks(2, |group| {
            let (rank, device) = (group.rank(), group.device());
            let config = DdpConfig {
                in_place_bytes: Some(in_place_bytes),
                ..Default::default()
            };
            let ddp = Ddp::new(model(device), group, config)?;
            let tape = Tape::new();
            let weight = rank as f64; // rank 0 has no token
            let gradients = ddp.backward_weighted(&tape, &loss(&ddp, &tape, 0, weight)?, weight)?;
            // What rank 1 alone has.
            let alone = model(device);
            let (x, y) = data(1, 0, 4, device);
            let tape = Tape::new();
            let want = mse(&alone.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
            let want = tape.backward(&want)?;
            for (p, q) in ddp.parameters().iter().zip(alone.params()) {
                assert_eq!(
                    values(gradients.get(p).unwrap()),
                    values(want.get(&q).unwrap())
                );
            }
            Ok(())
        });
    }
}

#[test]
fn a_parameter_that_only_a_rank_of_weight_zero_uses_has_no_gradient() {
    on_ranks(2, |group| {
        let (rank, device) = (group.rank(), group.device());
        let ddp = Ddp::new(model(device), group, DdpConfig::default())?;
        let tape = Tape::new();
        let unused = &ddp.module().0[1];
        let (x, _) = data(rank, 0, 4, device);
        let mut y = ddp.module().0[0].forward(&tape, &tape.constant(x))?;
        if rank == 0 {
            y = unused.forward(&tape, &y)?;
        }
        let gradients = ddp.backward_weighted(&tape, &y.square()?.mean_all()?, rank as f64)?;
        assert_eq!(gradients.len(), 2);
        assert!(
            unused
                .parameters()
                .iter()
                .all(|p| gradients.get(p).is_none())
        );
        Ok(())
    });
}

#[test]
fn a_batch_that_counts_for_nothing_does_not_end_join() {
    on_ranks(2, |group| {
        let (rank, device) = (group.rank(), group.device());
        let config = DdpConfig {
            uneven_inputs: true,
            ..Default::default()
        };
        let ddp = Ddp::new(model(device), group, config)?;
        if rank == 0 {
            let tape = Tape::new();
            for (step, weight) in [1.0, 0.0, 3.0].into_iter().enumerate() {
                let result =
                    ddp.backward_weighted(&tape, &loss(&ddp, &tape, step, weight)?, weight);
                match result {
                    Ok(gradients) if weight > 0.0 => assert_eq!(gradients.len(), 4),
                    Err(Error::InvalidWeight { rank: None, .. }) if weight == 0.0 => tape.clear(),
                    other => panic!("{other:?}"),
                }
            }
        }
        let mut seen = 0;
        let joined = ddp.join(|gradients| {
            seen += 1;
            assert_eq!(gradients.len(), 4);
            Ok(())
        })?;
        assert_eq!((joined, seen), if rank == 0 { (0, 0) } else { (2, 2) });
        Ok(())
    });
}

#[test]
fn equal_weights_are_the_plain_average() {
    if !on_cpus(
        "equal_weights_are_the_plain_average",
        "sums are in no promised order",
    ) {
        return;
    }
    on_ranks(3, |group| {
        let device = group.device();
        let plain = Ddp::new(model(device), group.clone(), DdpConfig::default())?;
        let config = DdpConfig {
            uneven_inputs: true,
            ..Default::default()
        };
        let uneven = Ddp::new(model(device), group, config)?;
        let bits = |ddp: &Ddp<Mlp>, weight: Option<f64>| -> phalanx_parallel::Result<Vec<u64>> {
            let tape = Tape::new();
            let loss = loss(ddp, &tape, 0, 1.0)?;
            let gradients = match weight {
                None => ddp.backward(&tape, &loss)?,
                Some(weight) => ddp.backward_weighted(&tape, &loss, weight)?,
            };
            let params = ddp.parameters();
            let all = params
                .iter()
                .flat_map(|p| values(gradients.get(p).unwrap()));
            Ok(all.map(f64::to_bits).collect())
        };
        let want = bits(&plain, None)?;
        assert_eq!(bits(&uneven, None)?, want);
        assert_eq!(bits(&plain, Some(0.1))?, want);
        Ok(())
    });
}

/// The gradients of a step in which rank 1 of four has no data, and the others all have the gradient
/// `of` for each element.
fn with_three_of_four(config: DdpConfig, of: f64) -> Vec<Vec<f64>> {
    on_ranks(4, |group| {
        let (rank, device) = (group.rank(), group.device());
        let ddp = Ddp::new(
            Mlp::new(&[1, 1], DType::F32, device, 5),
            group,
            DdpConfig {
                uneven_inputs: true,
                ..config.clone()
            },
        )?;
        let read = |gradients: &phalanx_autograd::Gradients| {
            let params = ddp.parameters();
            let all = params
                .iter()
                .flat_map(|p| values(gradients.get(p).unwrap()));
            all.collect::<Vec<f64>>()
        };
        let mut found = Vec::new();
        if rank != 1 {
            let tape = Tape::new();
            let x = tape.constant(Tensor::ones([1, 1], DType::F32, device)?);
            let loss = ddp.forward(&tape, &x)?.mul_scalar(of)?.sum_all()?;
            found = read(&ddp.backward(&tape, &loss)?);
        }
        let joined = ddp.join(|gradients| {
            found = read(gradients);
            Ok(())
        })?;
        assert_eq!(joined, usize::from(rank == 1));
        Ok(found)
    })
}

#[test]
fn the_ranks_that_have_data_average_as_if_they_were_alone() {
    for in_place_bytes in [1, usize::MAX] {
        for i in 0..50 {
            let of = (0.1 + f64::from(i) * 0.37) as f32;
            // Summed, then divided, as the plain average of three ranks.
            let want = f64::from((of + of + of) / 3.0);
            let config = DdpConfig {
                in_place_bytes: Some(in_place_bytes),
                ..Default::default()
            };
            for found in with_three_of_four(config, f64::from(of)) {
                assert_eq!(found, [want, want], "{of}");
            }
        }
    }
}

#[test]
fn the_gradients_can_be_divided_by_the_number_of_all_ranks() {
    let config = DdpConfig {
        divide_by_initial_world_size: true,
        ..Default::default()
    };
    for found in with_three_of_four(config, 2.0) {
        assert_eq!(found, [1.5, 1.5]);
    }
}
