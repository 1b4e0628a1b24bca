//! A rank with an empty batch takes part in the step: its gradients are zeros, and no rank waits.

use crate::model::{assert_close, on_ranks, values};
use phalanx_autograd::nn::{
    AdaptiveAvgPool2d, BatchNorm2d, Conv2d, Conv2dConfig, Factory, Flatten, Linear, Module,
    Sequential, cross_entropy,
};
use phalanx_autograd::{Param, Tape};
use phalanx_parallel::{Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Rng, Tensor};

/// A small detector's head: convolution, batch norm, pooling, classes.
fn model(device: Device) -> Sequential {
    let mut f = Factory::new(device, 5);
    let same = Conv2dConfig::default().with_padding(1);
    Sequential::new()
        .with(Conv2d::new(2, 4, [3, 3], same, &mut f).unwrap())
        .with(BatchNorm2d::new(4, &mut f).unwrap().with_relu())
        .with(AdaptiveAvgPool2d([1, 1]))
        .with(Flatten)
        .with(Linear::new(4, 3, &mut f).unwrap())
}

fn batch(rows: usize, device: Device) -> (Tensor, Tensor) {
    let mut rng = Rng::new(9);
    let x = Tensor::randn([rows, 2, 4, 4], DType::F32, device, &mut rng).unwrap();
    let y = Tensor::randint(0, 3, [rows], device, &mut rng).unwrap();
    (x, y)
}

fn gradients_of(all: &phalanx_autograd::Gradients, params: &[Param]) -> Vec<Vec<f64>> {
    params.iter().map(|p| values(all.get(p).unwrap())).collect()
}

#[test]
fn a_rank_without_samples_adds_zeros() {
    let (alone, alone_statistics) = {
        let device = Device::cpu(0);
        let model = model(device);
        let (x, y) = batch(6, device);
        let tape = Tape::new();
        let loss = cross_entropy(&model.forward(&tape, &tape.constant(x)).unwrap(), &y).unwrap();
        let all = tape.backward(&loss).unwrap();
        let buffers = model.named_buffers().into_iter();
        (
            gradients_of(&all, &model.parameters()),
            buffers
                .map(|(_, b)| values(&b.value().unwrap()))
                .collect::<Vec<_>>(),
        )
    };
    for empty in [0, 1] {
        let ends = on_ranks(2, |group| {
            let (rank, device) = (group.rank(), group.device());
            let config = DdpConfig {
                broadcast_buffers: false,
                ..DdpConfig::default()
            };
            let ddp = Ddp::new(model(device), group, config)?;
            let (x, y) = batch(if rank == empty { 0 } else { 6 }, device);
            let tape = Tape::new();
            let loss = cross_entropy(&ddp.forward(&tape, &tape.constant(x))?, &y)?;
            assert_eq!(loss.item::<f64>()?.is_nan(), rank == empty);
            let all = ddp.backward(&tape, &loss)?;
            let buffers = ddp.module().named_buffers().into_iter();
            let statistics: Vec<_> = buffers.map(|(_, b)| values(&b.value().unwrap())).collect();
            Ok((rank, gradients_of(&all, &ddp.parameters()), statistics))
        });
        for (rank, gradients, statistics) in ends {
            for (got, want) in gradients.iter().zip(&alone) {
                let half: Vec<f64> = want.iter().map(|v| v / 2.0).collect();
                assert_close(got, &half, 1e-7, &format!("rank {rank}, {empty} empty"));
            }
            let kept = vec![vec![0.0; 4], vec![1.0; 4], vec![0.0]];
            let want = if rank == empty {
                &kept
            } else {
                &alone_statistics
            };
            assert_eq!(&statistics, want, "rank {rank}, {empty} empty");
        }
    }
}
