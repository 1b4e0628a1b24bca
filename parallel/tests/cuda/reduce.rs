//! A step of [`GradReducer`] on a card: what it launches, and that it neither allocates nor waits.

use crate::counts::Counts;
use crate::support::{read, values};
use phalanx_autograd::Param;
use phalanx_comm::{LaunchConfig, launch};
use phalanx_parallel::{Average, Compress, GradReducer, ReduceConfig, Result};
use phalanx_tensor::{DType, Tensor};
use std::sync::Arc;

/// All in one bucket, with gaps between them.
const SHAPES: [&[usize]; 5] = [&[3, 5], &[70], &[2, 3, 4], &[1], &[40, 9]];

/// Which gradients a step gives, and how often it may launch a kernel.
type Step = (&'static [usize], u64);

const ALL: &[usize] = &[4, 2, 3, 0, 1];

/// Runs these steps of a reducer of parameters of a type, after one that warms it up.
fn steps(test: &str, config: &ReduceConfig, dtype: DType, steps: &[Step]) {
    let Some((device, _turn)) = crate::support::card(test) else {
        return;
    };
    let end = launch(LaunchConfig::new(1).device(device), |group| -> Result<()> {
        let param = |(i, shape): (usize, &&[usize])| {
            let value = Tensor::zeros(*shape, dtype, device)?;
            Ok((format!("p{i}"), Param::new(value)))
        };
        let params = SHAPES.iter().enumerate().map(param);
        let params = params.collect::<Result<Vec<_>>>()?;
        let reducer = GradReducer::new(params, group, config.clone())?;
        let params = reducer.parameters();
        for (i, &(order, launches)) in [(ALL, u64::MAX)].iter().chain(steps).enumerate() {
            let gradient = |p: usize| values(SHAPES[p], dtype, (10 * i + p) as u64);
            let there = order.iter().map(|&p| gradient(p).to_device(device));
            let there = there.collect::<Result<Vec<Tensor>, _>>()?;
            device.synchronize()?;
            let before = Counts::now();
            let mut step = reducer.begin(order.iter().map(|&p| &params[p].1), &Average::EQUAL)?;
            for (&p, gradient) in order.iter().zip(there) {
                step.ready(&params[p].1, gradient)?;
            }
            let averages = step.finish()?;
            match before {
                Some(before) if i > 0 => {
                    let made = Counts::now().unwrap().since(before);
                    assert_eq!((made.waits, made.pageable), (0, 0), "step {i}: {made:?}");
                    assert_eq!(made.launches, launches, "step {i}: {made:?}");
                    if config.hook.is_none() {
                        assert_eq!(made.allocations, 0, "step {i}: {made:?}");
                    }
                }
                Some(_) => {}
                None => eprintln!("SKIPPED: {test}: a real card does not count"),
            }
            for (p, (name, param)) in params.iter().enumerate() {
                let found = averages.get(param);
                assert_eq!(found.is_some(), order.contains(&p), "step {i}, {name}");
                if let Some(found) = found {
                    let wide = gradient(p).cast(DType::F32)?;
                    let want = match config.hook.is_some() {
                        true => wide.cast(DType::BF16)?.cast(DType::F32)?,
                        false => wide,
                    };
                    assert_eq!(read(found), read(&want), "step {i}, {name}");
                }
            }
        }
        assert_eq!(reducer.stats().buckets_made, 1);
        Ok(())
    });
    end.unwrap();
}

fn one_bucket() -> ReduceConfig {
    ReduceConfig {
        in_place_bytes: Some(usize::MAX),
        ..ReduceConfig::default()
    }
}

#[test]
fn a_step_copies_and_launches_nothing() {
    let name = "a_step_copies_and_launches_nothing";
    steps(name, &one_bucket(), DType::F32, &[(ALL, 0); 3]);
}

#[test]
fn what_is_left_out_is_zeroed_by_one_launch_a_hole_and_once() {
    let some: &[usize] = &[2, 3, 1];
    let cases: [Step; 5] = [(some, 2), (some, 0), (ALL, 0), (&[2], 2), (&[2], 0)];
    let name = "what_is_left_out_is_zeroed_by_one_launch_a_hole_and_once";
    steps(name, &one_bucket(), DType::F32, &cases);
}

#[test]
fn gradients_of_a_half_type_are_converted_into_the_bucket() {
    let name = "gradients_of_a_half_type_are_converted_into_the_bucket";
    steps(name, &one_bucket(), DType::BF16, &[(ALL, 5); 2]);
}

#[test]
fn a_compressed_bucket_is_converted_there_and_back() {
    let config = ReduceConfig {
        hook: Some(Arc::new(Compress::Bf16)),
        ..one_bucket()
    };
    let name = "a_compressed_bucket_is_converted_there_and_back";
    steps(name, &config, DType::F32, &[(ALL, 2); 2]);
}
