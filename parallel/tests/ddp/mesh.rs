//! Meshes: which ranks are together, what a rank that names other axes gets, who sees which data, and replicas along an
//! axis.

use crate::model::{Mlp, device_for, has_ranks, mse, on_ranks, values};
use phalanx_autograd::nn::{BatchNorm2d, Factory, Module};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Buffer, Tape};
use phalanx_comm::{ProcessGroup, ReduceOp};
use phalanx_parallel::{
    Ddp, DdpConfig, DistributedSampler, Error, Mesh, MeshError, Result, check_replicas,
};
use phalanx_tensor::{DType, Device, Tensor};
use std::collections::BTreeSet;
use std::sync::Arc;

const SQUARE: [(&str, usize); 2] = [("data", 2), ("tensor", 2)];

/// Whether there are 4 ranks; else a loud line.
fn are_four(test: &str) -> bool {
    let are = has_ranks(4);
    if !are {
        eprintln!("SKIPPED: {test}: it wants 4 ranks");
    }
    are
}

fn sum(group: &dyn ProcessGroup, mine: i64) -> Result<i64> {
    let mine = Tensor::scalar(mine, group.device())?;
    Ok(group
        .all_reduce(mine, ReduceOp::Sum)?
        .wait()?
        .item::<i64>()?)
}

/// What a rank has along some axes: the ranks of the group, and the sum of their numbers in the world.
fn along(mesh: &Mesh, axes: &[&str]) -> Result<(Vec<usize>, i64)> {
    let group = mesh.group_of(axes)?;
    let me = mesh.ranks()[mesh.whole().rank()];
    let sum = sum(&*group, me as i64)?;
    assert_eq!(group.world_ranks()[group.rank()], me);
    Ok((group.world_ranks().to_vec(), sum))
}

#[test]
fn groups_hold_the_ranks_along_their_axes() {
    if !are_four("groups_hold_the_ranks_along_their_axes") {
        return;
    }
    for (me, found) in on_ranks(4, |group| {
        let rank = group.rank();
        let mesh = Mesh::new(group, SQUARE)?;
        assert_eq!(mesh.axes().collect::<Vec<_>>(), SQUARE);
        for axis in ["data", "tensor"] {
            assert_eq!(mesh.group(axis)?.rank(), mesh.coordinate(axis)?);
            assert_eq!(mesh.group(axis)?.size(), mesh.size(axis)?);
        }
        let table = "data  tensor 0  tensor 1\n   0         0         1\n   1         2         3";
        assert_eq!(mesh.to_string(), table);
        assert_eq!(
            format!("{mesh:?}"),
            format!("Mesh(data 2 × tensor 2, rank {rank})")
        );
        let all = [
            along(&mesh, &["data"])?,
            along(&mesh, &["tensor"])?,
            along(&mesh, &["tensor", "data"])?,
        ];
        Ok((rank, all))
    }) {
        let column = vec![me % 2, me % 2 + 2];
        let row = vec![me / 2 * 2, me / 2 * 2 + 1];
        let sum = |ranks: &[usize]| ranks.iter().sum::<usize>() as i64;
        let expected = [column, row, vec![0, 1, 2, 3]].map(|ranks| (ranks.clone(), sum(&ranks)));
        assert_eq!(found, expected, "rank {me}");
    }
}

/// A mesh of a part of the world: errors and tables name ranks by their numbers in the world.
#[test]
fn a_mesh_of_a_part_of_the_world_is_as_good() {
    if !are_four("a_mesh_of_a_part_of_the_world_is_as_good") {
        return;
    }
    on_ranks(4, |world| {
        // 3, 2, 1 in this order, and 0 alone.
        let color = u32::from(world.rank() > 0);
        let group = world.split(Some(color), -(world.rank() as i32))?.unwrap();
        if color == 0 {
            let mesh = Mesh::new(group, [("data", 1), ("pipe", 1)])?;
            assert_eq!(along(&mesh, &["pipe"])?, (vec![0], 0));
            return Ok(());
        }
        let mesh = Mesh::new(group, [("data", 1), ("pipe", 3)])?;
        assert_eq!(mesh.ranks(), [3, 2, 1]);
        assert_eq!(along(&mesh, &["pipe"])?, (vec![3, 2, 1], 6));
        let me = world.rank();
        assert_eq!(mesh.coordinate("pipe")?, 3 - me);
        assert_eq!(along(&mesh, &["data"])?, (vec![me], me as i64));
        Ok(())
    });
}

/// Eight ranks, in threads: groups over every choice of three axes.
#[test]
fn three_axes_have_groups_over_each_two() {
    if !has_ranks(8) {
        eprintln!("SKIPPED: three_axes_have_groups_over_each_two: it wants 8 ranks");
        return;
    }
    let found = on_ranks(8, |group| {
        let mesh = Mesh::new(group, [("data", 2), ("pipe", 2), ("tensor", 2)])?;
        Ok([
            along(&mesh, &["data", "pipe"])?.0,
            along(&mesh, &["data", "tensor"])?.0,
            along(&mesh, &["pipe", "tensor"])?.0,
            along(&mesh, &["data", "pipe", "tensor"])?.0,
        ])
    });
    let all: Vec<usize> = (0..8).collect();
    for (rank, found) in found.into_iter().enumerate() {
        let with = |bits: usize| all.iter().copied().filter(move |r| (r ^ rank) & bits == 0);
        let expected = [1, 2, 4, 0].map(|fixed| with(fixed).collect::<Vec<_>>());
        assert_eq!(found, expected, "rank {rank}");
    }
}

#[test]
fn ranks_that_name_other_axes_are_named() {
    type Axes = Vec<(&'static str, usize)>;
    let cases: [(Axes, &str); 4] = [
        (
            vec![("data", 2), ("pipe", 1)],
            "rank 1 has axis 0 \"data\" of size 2, where rank 0 has axis 0 \"data\" of size 1",
        ),
        (
            vec![("pipe", 2), ("data", 1)],
            "rank 1 has axis 0 \"pipe\" of size 2, where rank 0 has axis 0 \"data\" of size 1",
        ),
        (
            vec![("data", 1)],
            "rank 1 lacks axis 1 \"pipe\" of size 2, which rank 0 has",
        ),
        // Wrong on that rank alone, and still every rank's error.
        (
            vec![("data", 1), ("pipe", 0)],
            "rank 1 has axis 1 \"pipe\" of size 0, where rank 0 has axis 1 \"pipe\" of size 2",
        ),
    ];
    for (axes, sentence) in cases {
        for error in on_ranks(2, |group| {
            let axes = match group.rank() {
                0 => vec![("data", 1), ("pipe", 2)],
                _ => axes.clone(),
            };
            let error = Mesh::new(group, axes).unwrap_err();
            assert!(matches!(error, Error::RanksDiffer { rank: 1, .. }));
            Ok(error.to_string())
        }) {
            assert_eq!(
                error,
                format!("the ranks have different meshes: {sentence}")
            );
        }
    }
}

#[test]
fn axes_that_make_no_mesh_are_an_error_of_every_rank_and_the_group_goes_on() {
    on_ranks(2, |group| {
        let error = Mesh::new(group.clone(), [("data", 2), ("pipe", 2)]).unwrap_err();
        assert!(matches!(
            error,
            Error::Mesh(MeshError::WrongSize { ranks: 2, .. })
        ));
        assert_eq!(
            error.to_string(),
            "a mesh of data 2 × pipe 2: 2 × 2 = 4 places, but the group has 2 ranks"
        );
        assert_eq!(sum(&*group, 1)?, 2);
        Ok(())
    });
}

#[test]
fn ranks_that_ask_for_groups_over_other_axes_are_named() {
    for error in on_ranks(2, |group| {
        let mesh = Mesh::new(group, [("data", 1), ("pipe", 2), ("tensor", 1)])?;
        let axes = match mesh.whole().rank() {
            0 => ["data", "pipe"],
            _ => ["pipe", "tensor"],
        };
        Ok(mesh.group_of(&axes).map(drop).unwrap_err().to_string())
    }) {
        assert_eq!(
            error,
            "the ranks have different axes of a group of the mesh: rank 1 has axis \"pipe\", \
             where rank 0 has axis \"data\""
        );
    }
}

/// Ranks that hold the parts of one replica see the same samples. By the numbers of ranks in the world they would not,
/// and a replica's parts would compute with the samples of several batches.
#[test]
fn the_parts_of_a_replica_see_the_same_samples() {
    if !are_four("the_parts_of_a_replica_see_the_same_samples") {
        return;
    }
    on_ranks(4, |group| {
        let mesh = Mesh::new(group, SQUARE)?;
        let right = DistributedSampler {
            len: 20,
            shuffle: true,
            seed: 3,
            ..DistributedSampler::over(&mesh, "data")?
        };
        let mistaken = DistributedSampler {
            world_size: mesh.whole().size(),
            rank: mesh.whole().rank(),
            ..right
        };
        // What the ranks along an axis have, one after the other.
        let of_all = |axis, sampler: &DistributedSampler| -> Result<Vec<Vec<usize>>> {
            let mine: Vec<i64> = sampler.indices(1)?.iter().map(|&i| i as i64).collect();
            let (n, group) = (mine.len(), mesh.group(axis)?);
            let mine = Tensor::from_vec(mine, n, group.device())?;
            let all = group.all_gather(mine)?.wait()?.to_vec::<i64>()?;
            let all = all.chunks(n);
            Ok(all
                .map(|of| of.iter().map(|&i| i as usize).collect())
                .collect())
        };
        let parts = of_all("tensor", &right)?;
        assert_eq!(parts[0], parts[1]);
        let parts = of_all("tensor", &mistaken)?;
        assert!(parts[0].iter().all(|sample| !parts[1].contains(sample)));
        // The replicas share the data out, and miss none of it.
        let replicas = of_all("data", &right)?.concat();
        assert_eq!(replicas.len(), 20);
        assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), 20);
        let error = DistributedSampler::over(&mesh, "batch").unwrap_err();
        assert!(matches!(error, Error::Mesh(MeshError::UnknownAxis { .. })));
        Ok(())
    });
}

/// Four ranks train two models, each of them on two ranks along `data`: what happens is what the two models do alone.
#[test]
fn replicas_along_an_axis_train_as_alone() {
    const TEST: &str = "replicas_along_an_axis_train_as_alone";
    if !are_four(TEST) {
        return;
    }
    // A card rounds as another card does, and not as a CPU does.
    if device_for(2).is_cpu() != device_for(4).is_cpu() {
        eprintln!("SKIPPED: {TEST}: there are cards for two ranks, and not for four");
        return;
    }
    let train = |group: Arc<dyn ProcessGroup>, part: usize| -> Result<Vec<f64>> {
        let (device, data) = (group.device(), group.rank());
        let model = Mlp::new(&[3, 4, 2], DType::F64, device, part as u64);
        let ddp = Ddp::new(model, group, DdpConfig::default())?;
        let mut sgd = Sgd::new(
            ddp.parameters(),
            SgdConfig {
                lr: 0.1,
                ..SgdConfig::default()
            },
        )?;
        for step in 0..3 {
            let tape = Tape::new();
            let x = Tensor::full([2, 3], (1 + data + 2 * step) as f64, DType::F64, device)?;
            let y = tape.constant(Tensor::ones([2, 2], DType::F64, device)?);
            let loss = mse(&ddp.forward(&tape, &tape.constant(x))?, &y)?;
            sgd.step(&ddp.backward(&tape, &loss)?)?;
        }
        Ok(ddp
            .parameters()
            .iter()
            .flat_map(|p| values(&p.value().unwrap()))
            .collect())
    };
    let alone = [0, 1].map(|part| on_ranks(2, |group| train(group, part)).into_iter().next());
    for (part, found) in on_ranks(4, |group| {
        let mesh = Mesh::new(group, SQUARE)?;
        let part = mesh.coordinate("tensor")?;
        Ok((part, train(mesh.group("data")?, part)?))
    }) {
        // Under mpirun, this process may not have been one of the two.
        if let Some(alone) = &alone[part] {
            assert_eq!(&found, alone);
        }
    }
}

/// A module with a buffer.
fn normed(device: Device) -> BatchNorm2d {
    BatchNorm2d::new(3, &mut Factory::new(device, 0)).unwrap()
}

/// Adds to the last element of a buffer what changes its last bits alone.
fn nudge(buffer: &Buffer) -> Result<()> {
    let mut values = values(&buffer.value()?);
    *values.last_mut().unwrap() += 1e-6;
    let values = Tensor::from_vec(values, buffer.shape(), Device::cpu(0))?;
    Ok(buffer.set(values.cast(buffer.dtype())?)?)
}

#[test]
fn replicas_that_differ_along_an_axis_are_named() {
    if !are_four("replicas_that_differ_along_an_axis_are_named") {
        return;
    }
    on_ranks(4, |group| {
        let device = group.device();
        let rank = group.rank();
        let mesh = Mesh::new(group, SQUARE)?;
        let module = normed(device);
        mesh.check_replicas("data", &module)?;
        mesh.check_replicas("tensor", &module)?;
        check_replicas(&**mesh.whole(), &module)?;
        // Each part has its own bits: replicas along data, and not along tensor.
        let parts = module.named_parameters();
        let (name, weight) = &parts[0];
        let part = mesh.coordinate("tensor")?;
        weight.set(Tensor::full(3, part as f64, weight.dtype(), device)?)?;
        mesh.check_replicas("data", &module)?;
        let sentence = |other: usize, name: &str, first: usize| {
            format!(
                "the ranks hold different replicas: rank {other} has other values of {name} (f32 [3]) \
                 than rank {first}"
            )
        };
        let row = rank / 2 * 2;
        let error = mesh.check_replicas("tensor", &module).unwrap_err();
        assert_eq!(error.to_string(), sentence(row + 1, name, row));
        // A buffer of rank 3, by a little: ranks 1 and 3 are replicas no more, 0 and 2 still are.
        let (name, buffer) = &module.named_buffers()[1];
        if rank == 3 {
            nudge(buffer)?;
        }
        let found = mesh.check_replicas("data", &module);
        match part {
            0 => found?,
            _ => assert_eq!(found.unwrap_err().to_string(), sentence(3, name, 1)),
        }
        // Other parameters altogether.
        let other = Mlp::new(&[2, 2], DType::F32, device, 0);
        let found = match rank {
            2 => mesh.check_replicas("data", &other),
            _ => mesh.check_replicas("data", &module),
        };
        match part {
            1 => assert!(found.is_err()), // rank 3's buffer
            _ => {
                let Err(Error::ReplicasDiffer {
                    rank: 2,
                    difference,
                }) = &found
                else {
                    panic!("{found:?}");
                };
                assert!(
                    difference.starts_with("rank 2 has parameter 0.weight: f32 [2, 2]"),
                    "{difference}"
                );
            }
        }
        Ok(())
    });
}
