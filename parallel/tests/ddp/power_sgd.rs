//! `PowerSgd` against PyTorch's hook, and what must hold of it for any gradients.

use crate::model::{Mlp, assert_close, mse, on_ranks, values};
use phalanx_autograd::nn::Module;
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Gradients, Param, Tape};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::{
    Average, Ddp, DdpConfig, GradReducer, PowerSgd, PowerSgdConfig, ReduceConfig, Result,
};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use std::sync::Arc;

#[derive(serde::Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    rank: usize,
    use_error_feedback: bool,
    warm_start: bool,
    /// By rank and step.
    losses: Vec<Vec<f64>>,
    /// After each step.
    parameters: Vec<Vec<f64>>,
}

/// The recipe's numbers: `(((i + 1) * 7919 + s * 104729) % 97 - 48) / 64`, times a factor.
fn fill(dims: &[usize], s: usize, factor: f64, device: Device) -> Result<Tensor> {
    let numbers = (0..dims.iter().product()).map(|i| {
        let number = ((i + 1) * 7919 + s * 104_729) % 97;
        factor * (number as f64 - 48.0) / 64.0
    });
    Ok(Tensor::from_vec(numbers.collect(), dims, device)?)
}

#[test]
fn power_sgd_reproduces_pytorch() {
    let golden = include_str!("../golden/power_sgd.json");
    let golden: Golden = serde_json::from_str(golden).unwrap();
    assert_eq!(golden.cases.len(), 6);
    for case in &golden.cases {
        let hook = PowerSgd::new(PowerSgdConfig {
            rank: case.rank,
            start_step: 2,
            min_compression_rate: 2.0,
            use_error_feedback: case.use_error_feedback,
            warm_start: case.warm_start,
            seed: 3,
        });
        let hook = Arc::new(hook.unwrap());
        let what = format!("{:?}", hook.config());
        let worst = on_ranks(2, |group| {
            let (rank, device) = (group.rank(), group.device());
            let model = Mlp::new(&[9, 8, 7], DType::F64, device, 0);
            for (k, param) in model.params().iter().enumerate() {
                param.set(fill(param.shape(), k, 1.0, device)?)?;
            }
            let config = DdpConfig {
                hook: Some(hook.clone()),
                ..Default::default()
            };
            let ddp = Ddp::new(model, group, config)?;
            let sgd = SgdConfig {
                lr: 0.1,
                momentum: 0.9,
                ..Default::default()
            };
            let mut sgd = Sgd::new(ddp.parameters(), sgd)?;
            let mut worst = 0f64;
            for (step, wanted) in case.parameters.iter().enumerate() {
                let tape = Tape::new();
                let x = fill(&[5, 9], 100 + 10 * rank + step, 2.0, device)?;
                let y = fill(&[5, 7], 500 + 10 * rank + step, 1.0, device)?;
                let loss = mse(&ddp.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
                let wanted_loss = &case.losses[rank][step..=step];
                assert_close(&[loss.item::<f64>()?], wanted_loss, 1e-10, &what);
                sgd.step(&ddp.backward(&tape, &loss)?)?;
                let params = ddp.parameters();
                let found = params.iter().map(|p| p.value());
                let found = found.collect::<Result<Vec<_>, _>>()?;
                let found: Vec<f64> = found.iter().flat_map(values).collect();
                assert_close(&found, wanted, 1e-10, &format!("{what}, step {step}"));
                let off = found.iter().zip(wanted).map(|(a, b)| (a - b).abs());
                worst = off.fold(worst, f64::max);
            }
            assert_eq!(case.parameters.len(), 6);
            Ok(worst)
        });
        eprintln!("{what}: parameters differ by at most {worst:?}");
    }
}

/// Matrices of several shapes among what is not compressed.
const SHAPES: [&[usize]; 7] = [
    &[12, 10],
    &[10],
    &[6, 2, 3, 2],
    &[],
    &[3, 2],
    &[12, 10],
    &[0, 4],
];

/// A reducer of parameters of [`SHAPES`], in buckets of so many bytes.
fn reducer(
    group: &Arc<dyn ProcessGroup>,
    dtype: DType,
    hook: Option<&Arc<PowerSgd>>,
    bytes: Option<usize>,
) -> Result<GradReducer> {
    let param = |(i, dims): (usize, &&[usize])| {
        let value = Tensor::zeros(*dims, dtype, group.device())?;
        Ok((format!("p{i}"), Param::new(value)))
    };
    let params = SHAPES.iter().enumerate().map(param);
    let params = params.collect::<Result<Vec<_>>>()?;
    let config = ReduceConfig {
        first_bucket_bytes: bytes,
        bucket_cap_bytes: bytes,
        in_place_bytes: bytes,
        hook: hook.map(|hook| Arc::clone(hook) as _),
        ..ReduceConfig::default()
    };
    GradReducer::new(params, Arc::clone(group), config)
}

/// Random gradients, times `factor`: others for each rank and step.
fn gradients(reducer: &GradReducer, step: usize, factor: f64) -> Result<Vec<Tensor>> {
    let seed = Rng::new(step as u64).fold_in(reducer.group().rank() as u64);
    let params = reducer.parameters().iter().enumerate();
    let random = params.map(|(i, (_, p))| {
        let mut rng = seed.fold_in(i as u64);
        let random = Tensor::randn(p.shape(), p.dtype(), p.device(), &mut rng)?;
        Ok(random.mul_scalar(factor)?)
    });
    random.collect()
}

fn average_of(reducer: &GradReducer, of: &[Tensor], average: &Average) -> Result<Gradients> {
    let params = reducer.parameters();
    let mut reduction = reducer.begin(params.iter().map(|(_, p)| p), average)?;
    for ((_, param), gradient) in params.iter().zip(of) {
        reduction.ready(param, gradient.copy()?)?;
    }
    reduction.finish()
}

/// Numbers of each parameter.
fn numbers(reducer: &GradReducer, averages: &Gradients) -> Vec<Vec<f64>> {
    let params = reducer.parameters().iter();
    params
        .map(|(_, p)| values(averages.get(p).unwrap()))
        .collect()
}

fn hook(rank: usize, change: impl FnOnce(&mut PowerSgdConfig)) -> Arc<PowerSgd> {
    let mut config = PowerSgdConfig {
        rank,
        start_step: 0,
        ..Default::default()
    };
    change(&mut config);
    Arc::new(PowerSgd::new(config).unwrap())
}

#[test]
fn a_full_rank_gives_the_average() {
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-5)] {
        for bytes in [None, Some(1)] {
            let full = hook(100, |config| config.min_compression_rate = 0.0);
            on_ranks(3, |group| {
                let exact = reducer(&group, dtype, None, bytes)?;
                let compressed = reducer(&group, dtype, Some(&full), bytes)?;
                for step in 0..4 {
                    // After a step without gradients, too.
                    let factor = f64::from(step != 1);
                    let gradients = gradients(&exact, step, factor)?;
                    let exact_mean = average_of(&exact, &gradients, &Average::EQUAL)?;
                    let mean = average_of(&compressed, &gradients, &Average::EQUAL)?;
                    let pairs = numbers(&compressed, &mean).into_iter();
                    for (a, b) in pairs.zip(numbers(&exact, &exact_mean)) {
                        assert_close(&a, &b, tolerance, &format!("step {step}"));
                    }
                }
                Ok(())
            });
        }
    }
}

#[test]
fn what_is_not_compressed_is_summed_as_without_a_hook() {
    let never = hook(1, |config| config.min_compression_rate = 1e9);
    let later = hook(1, |config| config.start_step = 3);
    for hook in [never, later] {
        on_ranks(2, |group| {
            let exact = reducer(&group, DType::F32, None, None)?;
            let hooked = reducer(&group, DType::F32, Some(&hook), None)?;
            for step in 0..3 {
                let gradients = gradients(&exact, step, 1.0)?;
                let a = average_of(&exact, &gradients, &Average::EQUAL)?;
                let b = average_of(&hooked, &gradients, &Average::EQUAL)?;
                assert_eq!(numbers(&exact, &a), numbers(&hooked, &b), "to the bit");
            }
            // Then it is compressed, but for the hook that never does.
            let gradients = gradients(&exact, 3, 1.0)?;
            let a = average_of(&exact, &gradients, &Average::EQUAL)?;
            let b = average_of(&hooked, &gradients, &Average::EQUAL)?;
            let (a, b) = (numbers(&exact, &a), numbers(&hooked, &b));
            assert_eq!(a[0] != b[0], hook.config().start_step == 3);
            assert_eq!(
                (&a[1], &a[3]),
                (&b[1], &b[3]),
                "vectors and scalars never are"
            );
            Ok(())
        });
    }
}

#[test]
fn all_ranks_get_the_same_bits() {
    for bytes in [None, Some(300)] {
        let hook = hook(2, |_| ());
        let all = on_ranks(3, |group| {
            let reducer = reducer(&group, DType::F32, Some(&hook), bytes)?;
            let steps = (0..5).map(|step| {
                let gradients = gradients(&reducer, step, 1.0)?;
                let averages = average_of(&reducer, &gradients, &Average::EQUAL)?;
                Ok(numbers(&reducer, &averages))
            });
            steps.collect::<Result<Vec<_>>>()
        });
        assert!(all.iter().all(|ranks| *ranks == all[0]));
    }
}

/// With a new *Q* in each step, steps without gradients empty what is kept: then all has arrived.
#[test]
fn what_is_lost_arrives_later_with_its_weight() {
    for weighted in [false, true] {
        for feedback in [true, false] {
            let hook = hook(2, |config| {
                config.min_compression_rate = 1.0;
                config.warm_start = false;
                config.use_error_feedback = feedback;
            });
            on_ranks(2, |group| {
                let exact = reducer(&group, DType::F64, None, None)?;
                let compressed = reducer(&group, DType::F64, Some(&hook), None)?;
                let mut sums = [vec![], vec![]];
                for step in 0..12 {
                    let factor = f64::from(step < 4);
                    let gradients = gradients(&exact, step, factor)?;
                    let average = match weighted {
                        true => Average::weighted(&*group, [1.0, 3.0][(group.rank() + step) % 2])?,
                        false => Average::EQUAL,
                    };
                    for (reducer, sum) in [&exact, &compressed].iter().zip(&mut sums) {
                        let averages = average_of(reducer, &gradients, &average)?;
                        let averages = numbers(reducer, &averages).concat();
                        sum.resize(averages.len(), 0.0);
                        sum.iter_mut().zip(averages).for_each(|(s, a)| *s += a);
                    }
                }
                let off = sums[0].iter().zip(&sums[1]).map(|(a, b)| (a - b).abs());
                let worst = off.fold(0.0, f64::max);
                match feedback {
                    true => assert!(worst < 1e-12, "{worst}"),
                    false => assert!(worst > 0.1, "{worst}"),
                }
                Ok(())
            });
        }
    }
}

#[test]
fn a_bucket_travels_as_two_short_messages() {
    let hook = hook(2, |_| ());
    on_ranks(2, |group| {
        let reducer = reducer(&group, DType::F32, Some(&hook), None)?;
        average_of(&reducer, &gradients(&reducer, 0, 1.0)?, &Average::EQUAL)?;
        let calls = group.recent().into_iter().map(|record| record.call);
        let sums: Vec<String> = calls.filter(|c| c.contains("all_reduce")).collect();
        // Two matrices of 12 × 10 are compressed; the one of 6 × 12 would not even be half as long.
        let (p, q, others) = (2 * 2 * 12, 2 * 2 * 10, 10 + 72 + 1 + 6);
        let lengths = [p + others, q];
        assert_eq!(sums.len(), lengths.len(), "{sums:?}");
        for (sum, length) in sums.iter().zip(lengths) {
            assert!(sum.contains(&format!("[{length}]")), "{sums:?}");
        }
        Ok(())
    });
}
