//! Batch norm's running statistics: those of the first rank that has data, on every rank.

use crate::model::{device_for, on_ranks, values};
use phalanx_autograd::Tape;
use phalanx_autograd::nn::{BatchNorm2d, Factory, Module};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_parallel::{Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Rng, Tensor};

const CHANNELS: usize = 3;

fn images(rank: usize, step: usize, device: Device) -> Tensor {
    let mut rng = Rng::new((100 * rank + step) as u64);
    let x = Tensor::randn([4, CHANNELS, 2, 5], DType::F32, device, &mut rng).unwrap();
    // Another mean and another variance on each rank.
    let scale = 1.0 + rank as f64;
    x.mul_scalar(scale).unwrap().add_scalar(scale).unwrap()
}

fn model(device: Device) -> BatchNorm2d {
    BatchNorm2d::new(CHANNELS, &mut Factory::new(device, 0)).unwrap()
}

fn statistics(model: &BatchNorm2d) -> Vec<(String, Vec<f64>)> {
    let buffers = model.named_buffers().into_iter();
    buffers
        .map(|(n, b)| (n, values(&b.value().unwrap())))
        .collect()
}

/// What one process tracks that sees the images of these (rank, step), in order.
fn tracked(seen: &[(usize, usize)]) -> Vec<(String, Vec<f64>)> {
    let device = device_for(1);
    let model = model(device);
    for &(rank, step) in seen {
        let tape = Tape::new();
        let x = tape.constant(images(rank, step, device));
        model.forward(&tape, &x).unwrap();
    }
    statistics(&model)
}

/// Trains with so many steps on each rank; every rank's statistics at the end.
fn train(steps_of: [usize; 2], broadcast_buffers: bool) -> Vec<Vec<(String, Vec<f64>)>> {
    on_ranks(2, |group| {
        let (rank, device) = (group.rank(), group.device());
        let config = DdpConfig {
            broadcast_buffers,
            uneven_inputs: steps_of[0] != steps_of[1],
            ..Default::default()
        };
        let uneven = config.uneven_inputs;
        let ddp = Ddp::new(model(device), group, config)?;
        let mut sgd = Sgd::new(ddp.parameters(), SgdConfig::default())?;
        for step in 0..steps_of[rank] {
            let tape = Tape::new();
            let x = tape.constant(images(rank, step, device));
            let loss = ddp.forward(&tape, &x)?.sub(&x)?.square()?.mean_all()?;
            sgd.step(&ddp.backward(&tape, &loss)?)?;
        }
        if uneven {
            ddp.join(|gradients| Ok(sgd.step(gradients)?))?;
        }
        Ok(statistics(ddp.module()))
    })
}

#[test]
fn running_statistics_are_the_leaders_on_every_rank() {
    let all = train([4, 4], true);
    let leaders = tracked(&[(0, 0), (0, 1), (0, 2), (0, 3)]);
    let names: Vec<&str> = leaders.iter().map(|(name, _)| &**name).collect();
    assert_eq!(
        names,
        ["running_mean", "running_var", "num_batches_tracked"]
    );
    assert_eq!(all, [leaders.clone(), leaders]);
}

#[test]
fn without_the_broadcast_each_rank_keeps_its_own() {
    let own = |rank| tracked(&[(rank, 0), (rank, 1), (rank, 2), (rank, 3)]);
    assert_ne!(own(0), own(1));
    assert_eq!(train([4, 4], false), [own(0), own(1)]);
}

#[test]
fn who_leads_when_rank_0_runs_out_first() {
    // Rank 0 leads while it has data; rank 1 goes on from rank 0's statistics.
    let want = tracked(&[(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)]);
    assert_eq!(train([2, 5], true), [want.clone(), want]);
    let want = tracked(&[(1, 0), (1, 1)]);
    assert_eq!(train([0, 2], true), [want.clone(), want]);
    let want = tracked(&[(0, 0), (0, 1), (0, 2)]);
    assert_eq!(train([3, 1], true), [want.clone(), want]);
}
