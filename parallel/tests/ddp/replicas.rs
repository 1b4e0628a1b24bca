//! What the wrapper does about modules that are not the same on every rank.

use crate::model::{Mlp, on_ranks, values};
use phalanx_autograd::nn::{BatchNorm2d, Factory, Linear, Module, Sequential};
use phalanx_autograd::{Param, Tape, Var};
use phalanx_comm::{Error as CommError, FailureKind, LaunchConfig, LaunchError, launch};
use phalanx_parallel::{Ddp, DdpConfig, Error, Result};
use phalanx_tensor::{DType, Device, Tensor};
use std::time::Duration;

#[test]
fn differing_values_become_rank_zeros() {
    let all = on_ranks(4, |group| {
        let (rank, device) = (group.rank(), group.device());
        let model = Mlp::new(&[3, 4, 2], DType::F32, device, rank as u64);
        model.params()[1].set_requires_grad(false); // frozen ones are replicas, too
        let ddp = Ddp::new(model, group, DdpConfig::default())?;
        assert_eq!(ddp.parameters().len(), 3);
        let params = ddp.module().named_parameters();
        assert!(
            params.iter().all(|(_, p)| p.device() == device),
            "values stay on the rank's device"
        );
        Ok(params
            .iter()
            .flat_map(|(_, p)| values(&p.value().unwrap()))
            .collect::<Vec<_>>())
    });
    let zeros = Mlp::new(&[3, 4, 2], DType::F32, Device::cpu(0), 0);
    let zeros: Vec<f64> = zeros
        .params()
        .iter()
        .flat_map(|p| values(&p.value().unwrap()))
        .collect();
    assert!(all.iter().all(|v| *v == zeros));
}

/// The error that every rank of three gets where rank 2's module is another one.
fn errors(dims_of_rank_2: &'static [usize], dtype_of_rank_2: DType) -> Vec<(usize, String)> {
    on_ranks(3, |group| {
        let device = group.device();
        let model = match group.rank() {
            2 => Mlp::new(dims_of_rank_2, dtype_of_rank_2, device, 0),
            _ => Mlp::new(&[3, 4, 2], DType::F32, device, 0),
        };
        match Ddp::new(model, group, DdpConfig::default()) {
            Err(Error::ReplicasDiffer { rank, difference }) => Ok((rank, difference)),
            Err(other) => Err(other),
            Ok(_) => panic!("the modules differ"),
        }
    })
}

#[test]
fn differing_modules_are_one_error_on_every_rank() {
    let cases: [(&'static [usize], DType, &[&str]); 4] = [
        (&[3, 5, 2], DType::F32, &["0.weight", "[5, 3]", "[4, 3]"]),
        (&[3, 4, 2, 2], DType::F32, &["2.weight", "does not have"]),
        (&[3, 4], DType::F32, &["1.weight", "lacks"]),
        (&[3, 4, 2], DType::F64, &["0.weight", "f64", "f32"]),
    ];
    for (dims, dtype, words) in cases {
        let errors = errors(dims, dtype);
        assert!(errors.iter().all(|e| *e == errors[0]), "{errors:?}");
        assert_eq!(errors[0].0, 2);
        assert!(words.iter().all(|w| errors[0].1.contains(w)), "{errors:?}");
    }
}

#[test]
fn in_a_part_of_the_world_ranks_are_named_as_in_the_world() {
    on_ranks(4, |world| {
        let (rank, device) = (world.rank(), world.device());
        let group = world.split(Some((rank / 2) as u32), 0)?;
        let group = group.expect("every rank has a color");
        let dims: &[usize] = if rank == 3 { &[3, 5] } else { &[3, 4] };
        let ddp = Ddp::new(
            Mlp::new(dims, DType::F32, device, 0),
            group,
            DdpConfig::default(),
        );
        match (rank / 2, ddp.map(drop)) {
            (0, result) => result?,
            (_, Err(Error::ReplicasDiffer { rank, difference })) => {
                assert_eq!(rank, 3);
                assert!(difference.contains("rank 3 has"), "{difference}");
                assert!(difference.contains("rank 2 has"), "{difference}");
            }
            (_, other) => panic!("{other:?}"),
        }
        Ok(())
    });
}

#[test]
fn what_is_not_the_modules_has_the_ranks_own_gradient() {
    on_ranks(2, |group| {
        let (rank, device) = (group.rank(), group.device());
        let model = Mlp::new(&[2, 1], DType::F64, device, 0);
        let scale = Param::new(Tensor::full((), 1.0 + rank as f64, DType::F64, device)?);
        let alone = Mlp::new(&[2, 1], DType::F64, device, 0);
        let config = DdpConfig {
            beside: vec![scale.clone()],
            ..Default::default()
        };
        let ddp = Ddp::new(model, group, config)?;
        let run = |tape: &Tape, model: &dyn Module| -> Result<(Var, Var)> {
            let x = tape.input(Tensor::ones([1, 2], DType::F64, device)?)?;
            let y = model.forward(tape, &x)?.mul(&tape.leaf(&scale))?;
            Ok((x, y.sum_all()?))
        };
        let tape = Tape::new();
        let (x, loss) = run(&tape, &alone)?;
        let alone = tape.backward(&loss)?;
        let want = [alone.wrt(&x), alone.get(&scale)].map(|g| values(g.unwrap()));
        let (x, loss) = run(&tape, &ddp)?;
        let averaged = ddp.backward(&tape, &loss)?;
        let found = [averaged.wrt(&x), averaged.get(&scale)].map(|g| values(g.unwrap()));
        assert_eq!(found, want);
        Ok(())
    });
}

/// A loss of this rank's own.
fn loss(ddp: &Ddp<Mlp>, tape: &Tape) -> Result<Var> {
    let rank = ddp.group().rank();
    let device = ddp.module().params()[0].device();
    let x = Tensor::full([2, 3], 1.0 + rank as f64, DType::F64, device)?;
    Ok(ddp.forward(tape, &tape.constant(x))?.square()?.mean_all()?)
}

#[test]
fn a_parameter_thawed_after_new_is_an_error_and_no_drift() {
    on_ranks(2, |group| {
        let rank = group.rank();
        let model = Mlp::new(&[3, 4, 2], DType::F64, group.device(), 0);
        let late = model.params()[1].clone();
        late.set_requires_grad(false);
        let ddp = Ddp::new(model, group, DdpConfig::default())?;
        let tape = Tape::new();
        assert!(
            ddp.backward(&tape, &loss(&ddp, &tape)?)?
                .get(&late)
                .is_none()
        );

        let refused = |result: Result<()>| match result {
            Err(Error::Thawed { rank: r, parameter }) => {
                assert_eq!((r, &*parameter), (rank, "0.bias"))
            }
            other => panic!("{other:?}"),
        };
        late.set_requires_grad(true);
        refused(ddp.backward(&tape, &loss(&ddp, &tape)?).map(drop));
        refused(
            ddp.backward_weighted(&tape, &loss(&ddp, &tape)?, 1.0)
                .map(drop),
        );
        refused(ddp.accumulate(&tape, &loss(&ddp, &tape)?));
        // It was thawed when the loss was computed.
        let recorded = loss(&ddp, &tape)?;
        late.set_requires_grad(false);
        refused(ddp.backward(&tape, &recorded).map(drop));
        // Nothing was sent: the ranks are still in step.
        tape.clear();
        assert_eq!(ddp.backward(&tape, &loss(&ddp, &tape)?)?.len(), 3);
        Ok(())
    });
}

#[test]
fn a_parameter_thawed_on_one_rank_stalls_nobody() {
    let config = LaunchConfig::new(3).deadline(Duration::from_secs(20));
    let failed = launch(config, |group| {
        let rank = group.rank();
        let model = Mlp::new(&[3, 4, 2], DType::F64, group.device(), 0);
        let late = model.params()[0].clone();
        late.set_requires_grad(false);
        let ddp = Ddp::new(model, group, DdpConfig::default())?;
        late.set_requires_grad(rank == 1);
        let tape = Tape::new();
        ddp.backward(&tape, &loss(&ddp, &tape)?).map(drop)
    });
    let Err(LaunchError::Ranks { first, others }) = failed else {
        panic!("{failed:?}");
    };
    assert!(
        matches!(
            &first.kind,
            FailureKind::Error(Error::Thawed { rank: 1, .. })
        ),
        "{first:?}"
    );
    assert_eq!(others.len(), 2);
    for other in others {
        let FailureKind::Error(Error::Comm(CommError::RankFailed { rank: 1, message })) =
            &other.kind
        else {
            panic!("{other:?}");
        };
        assert!(message.contains("0.weight"), "{message}");
    }
}

#[test]
fn a_parameter_may_be_frozen_and_thawed_in_between() {
    on_ranks(2, |group| {
        let model = Mlp::new(&[3, 4, 2], DType::F64, group.device(), 0);
        let ddp = Ddp::new(model, group, DdpConfig::default())?;
        let p = &ddp.parameters()[1];
        let tape = Tape::new();
        let step = || ddp.backward(&tape, &loss(&ddp, &tape)?);
        let before = values(step()?.get(p).unwrap());
        p.set_requires_grad(false);
        let gradients = step()?;
        assert_eq!((gradients.len(), gradients.get(p).is_none()), (3, true));
        p.set_requires_grad(true);
        assert_eq!(values(step()?.get(p).unwrap()), before);
        Ok(())
    });
}

#[test]
fn ranks_that_spread_a_module_over_devices_in_other_ways_differ() {
    let split_at = |split: usize, model: &Mlp, rank: usize| -> Result<()> {
        for (i, layer) in model.0.iter().enumerate() {
            layer.to_device(Device::cpu(2 * rank + usize::from(i >= split)))?;
        }
        Ok(())
    };
    for (of_rank_1, agree) in [(1, true), (2, false), (0, false)] {
        on_ranks(2, |group| {
            let rank = group.rank();
            let model = Mlp::new(&[3, 4, 4, 2], DType::F64, group.device(), 0);
            split_at(if rank == 1 { of_rank_1 } else { 1 }, &model, rank)?;
            match (
                Ddp::new(model, group, DdpConfig::default()).map(drop),
                agree,
            ) {
                (Ok(()), true) => Ok(()),
                (
                    Err(Error::ReplicasDiffer {
                        rank: 1,
                        difference,
                    }),
                    false,
                ) => {
                    assert!(
                        difference.contains("the device of 0.weight"),
                        "{difference}"
                    );
                    Ok(())
                }
                (other, _) => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn a_module_that_moves_takes_its_gradients_and_buffers_along() {
    on_ranks(2, |group| {
        let rank = group.rank();
        let devices = [Device::cpu(rank), Device::cpu(10 + rank)];
        let mut f = Factory::new(devices[0], 0);
        let model = Sequential::new()
            .with(Linear::new(3, 4, &mut f)?)
            .with(BatchNorm2d::new(4, &mut f)?);
        let ddp = Ddp::new(model, group, DdpConfig::default())?;
        let tape = Tape::new();
        for device in devices {
            ddp.to_device(device)?;
            let x = Tensor::full([2, 3], 1.0 + rank as f64, DType::F32, device)?;
            let loss = ddp
                .forward(&tape, &tape.constant(x))?
                .square()?
                .mean_all()?;
            let gradients = ddp.backward(&tape, &loss)?;
            assert_eq!(gradients.len(), 4);
            assert!(gradients.iter().all(|(_, g)| g.device() == device));
            let buffers = ddp.named_buffers();
            assert!(buffers.iter().all(|(_, b)| b.device() == device));
        }
        assert!(ddp.buckets().unwrap().iter().any(|b| !b.is_single()));
        Ok(())
    });
}
