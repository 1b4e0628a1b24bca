//! A group of one rank, on any device. The test programs of both kinds of device call this.

use phalanx_comm::{DType, Device, Error, LaunchConfig, ReduceOp, Tensor, launch};

/// Nothing is copied for a rank alone: its tensor comes back, in the shape that the collective promises.
pub fn it_gets_its_own_tensor_back(device: Device) {
    launch(LaunchConfig::new(1).device(device), |group| {
        assert_eq!(group.device(), device);
        let make = |shape: &[usize]| Tensor::full(shape, 2.5, DType::F32, device);
        type Collective<'a> = (
            &'a str,
            [usize; 2],
            &'a dyn Fn(Tensor) -> Result<Tensor, Error>,
            &'a [usize],
        );
        let collectives: [Collective<'_>; 8] = [
            (
                "all_reduce",
                [1, 3],
                &|t| group.all_reduce(t, ReduceOp::Avg)?.wait(),
                &[1, 3],
            ),
            (
                "reduce",
                [1, 3],
                &|t| Ok(group.reduce(t, ReduceOp::Sum, 0)?.wait()?.unwrap()),
                &[1, 3],
            ),
            (
                "broadcast",
                [1, 3],
                &|t| group.broadcast(t, 0)?.wait(),
                &[1, 3],
            ),
            (
                "all_gather",
                [2, 3],
                &|t| group.all_gather(t)?.wait(),
                &[1, 2, 3],
            ),
            (
                "gather",
                [2, 3],
                &|t| Ok(group.gather(t, 0)?.wait()?.unwrap()),
                &[1, 2, 3],
            ),
            (
                "scatter",
                [1, 3],
                &|t| group.scatter(Some(t), 3.into(), DType::F32, 0)?.wait(),
                &[3],
            ),
            (
                "reduce_scatter",
                [1, 3],
                &|t| group.reduce_scatter(t, ReduceOp::Sum)?.wait(),
                &[3],
            ),
            (
                "all_to_all_v",
                [2, 3],
                &|t| group.all_to_all_v(t, &[2], &[2])?.wait(),
                &[2, 3],
            ),
        ];
        for (name, given, call, wanted) in collectives {
            let t = make(&given)?;
            let before = t.address();
            let out = call(t)?;
            assert_eq!((out.dims(), out.address()), (wanted, before), "{name}");
            assert!(
                out.is_unique() && out.to_vec::<f32>()?.iter().all(|&v| v == 2.5),
                "{name}"
            );
        }
        // Arguments are checked as in any group.
        let wrong = group.broadcast(make(&[2])?, 1).unwrap_err();
        assert!(
            matches!(wrong, Error::RankOutOfRange { value: 1, .. }),
            "{wrong}"
        );
        let ints = Tensor::zeros([2], DType::I64, device)?;
        let wrong = group.all_reduce(ints, ReduceOp::Avg).unwrap_err();
        assert!(
            matches!(wrong, Error::UnsupportedReduction { .. }),
            "{wrong}"
        );
        group.barrier()?.wait()?;
        // Names say which call a group comes from: nine collectives were before.
        assert_eq!(
            group.split(Some(7), 0)?.expect("a color").name(),
            "world/9:7"
        );
        assert_eq!(
            group.split(Some(7), 0)?.expect("a color").name(),
            "world/10:7"
        );
        group.abort("enough");
        let end = group.barrier().unwrap_err();
        assert!(matches!(end, Error::Aborted { .. }), "{end}");
        Ok::<_, Error>(())
    })
    .unwrap();
}
