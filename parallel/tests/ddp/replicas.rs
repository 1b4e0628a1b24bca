//! What the wrapper does about modules that are not the same on every rank.

use crate::model::{Mlp, on_ranks, values};
use phalanx_autograd::nn::Module;
use phalanx_autograd::{Param, Tape, Var};
use phalanx_parallel::{Ddp, DdpConfig, Error, Result};
use phalanx_tensor::{DType, Device, Tensor};

#[test]
fn differing_values_become_rank_zeros() {
    let all = on_ranks(4, |group| {
        let (rank, device) = (group.rank(), Device::cpu(group.rank()));
        let model = Mlp::new(&[3, 4, 2], DType::F32, device, rank as u64);
        model.params()[1].set_requires_grad(false); // frozen ones are replicas, too
        let ddp = Ddp::new(model, group, DdpConfig::default())?;
        assert_eq!(ddp.parameters().len(), 3);
        let params = ddp.module().named_parameters();
        assert!(
            params.iter().all(|(_, p)| p.value().device() == device),
            "values stay on the rank's device"
        );
        Ok(params
            .iter()
            .flat_map(|(_, p)| values(&p.value()))
            .collect::<Vec<_>>())
    });
    let zeros = Mlp::new(&[3, 4, 2], DType::F32, Device::cpu(0), 0);
    let zeros: Vec<f64> = zeros
        .params()
        .iter()
        .flat_map(|p| values(&p.value()))
        .collect();
    assert!(all.iter().all(|v| *v == zeros));
}

/// The error that every rank of three gets where rank 2's module is another one.
fn errors(dims_of_rank_2: &'static [usize], dtype_of_rank_2: DType) -> Vec<(usize, String)> {
    on_ranks(3, |group| {
        let device = Device::cpu(group.rank());
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
        let group = world.split((rank / 2) as u32, 0)?;
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
        let (rank, device) = (group.rank(), Device::cpu(group.rank()));
        let model = Mlp::new(&[2, 1], DType::F64, device, 0);
        let ddp = Ddp::new(model, group, DdpConfig::default())?;
        let scale = Param::new(Tensor::full((), 1.0 + rank as f64, DType::F64, device)?);
        let run = |tape: &Tape| -> Result<(Var, Var)> {
            let x = tape.input(Tensor::ones([1, 2], DType::F64, device)?)?;
            let y = ddp.forward(tape, &x)?.mul(&tape.leaf(&scale))?;
            Ok((x, y.sum_all()?))
        };
        let tape = Tape::new();
        let (x, loss) = run(&tape)?;
        let alone = tape.backward(&loss)?;
        let want = [alone.wrt(&x), alone.get(&scale)].map(|g| values(g.unwrap()));
        let (x, loss) = run(&tape)?;
        let averaged = ddp.backward(&tape, &loss)?;
        let found = [averaged.wrt(&x), averaged.get(&scale)].map(|g| values(g.unwrap()));
        assert_eq!(found, want);
        Ok(())
    });
}
