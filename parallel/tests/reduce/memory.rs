//! Averages are views of the buckets: the next step takes that memory back, or counts that it cannot.

use crate::model::{on_ranks, values};
use crate::support::{ALONE, SHAPES, reducer, shuffled, small, step};
use phalanx_autograd::Gradients;
use phalanx_parallel::{Average, Compress, GradReducer, ReduceConfig};
use phalanx_tensor::Tensor;
use std::sync::Arc;

fn addresses(reducer: &GradReducer, averages: &Gradients) -> Vec<usize> {
    let params = reducer.parameters().iter().enumerate();
    let together = params.filter(|(i, _)| *i != ALONE);
    let tensors = together.map(|(_, (_, p))| averages.get(p).unwrap());
    tensors
        .map(|t| t.as_bytes().unwrap().as_ptr() as usize)
        .collect()
}

/// How many buckets have several gradients.
fn flats(reducer: &GradReducer) -> u64 {
    let buckets = reducer.buckets().unwrap();
    buckets.iter().filter(|b| !b.is_single()).count() as u64
}

#[test]
fn they_lie_where_they_lay_and_no_memory_is_taken() {
    let compressed = ReduceConfig {
        hook: Some(Arc::new(Compress::Bf16)),
        ..small()
    };
    for config in [small(), compressed] {
        on_ranks(2, |group| {
            let reducer = reducer(&group, config.clone())?;
            let averages = step(&reducer, &shuffled(0), 0, &Average::EQUAL)?;
            let first = addresses(&reducer, &averages);
            drop(averages);
            let mut neighbours: Vec<usize> = first.clone();
            neighbours.sort();
            assert!(
                neighbours.windows(2).any(|w| w[1] - w[0] == 64 * 4),
                "some share a bucket: {neighbours:?}"
            );
            for i in 1..5 {
                let order = shuffled(10 * i + group.rank());
                let averages = step(&reducer, &order, i, &Average::EQUAL)?;
                assert_eq!(addresses(&reducer, &averages), first);
            }
            let stats = reducer.stats();
            assert!(flats(&reducer) > 1);
            assert_eq!(
                (stats.buckets_made, stats.buckets_held),
                (flats(&reducer), 0)
            );
            Ok(())
        });
    }
}

#[test]
fn what_somebody_holds_stays_as_it_is_and_is_counted() {
    on_ranks(2, |group| {
        let reducer = reducer(&group, small())?;
        let averages = step(&reducer, &shuffled(0), 0, &Average::EQUAL)?;
        let flats = flats(&reducer);
        // One gradient of one bucket is kept over a step, the others are not.
        let (_, first) = &reducer.parameters()[2];
        let kept: Tensor = averages.get(first).unwrap().clone();
        let noted = values(&kept);
        drop(averages);
        drop(step(&reducer, &shuffled(1), 1, &Average::EQUAL)?);
        let stats = reducer.stats();
        assert_eq!((stats.buckets_made, stats.buckets_held), (flats + 1, 1));
        assert_eq!(values(&kept), noted);
        // It is held no more by a reducer, and so not counted again.
        drop(step(&reducer, &shuffled(2), 2, &Average::EQUAL)?);
        assert_eq!(reducer.stats().buckets_held, 1);
        assert_eq!(values(&kept), noted);
        // All of them are.
        let averages = step(&reducer, &shuffled(3), 3, &Average::EQUAL)?;
        drop(step(&reducer, &shuffled(4), 4, &Average::EQUAL)?);
        let stats = reducer.stats();
        assert_eq!(stats.buckets_held, 1 + flats);
        assert_eq!(stats.buckets_made, flats + stats.buckets_held);
        drop(averages);
        Ok(())
    });
}

/// Another rank's average must not come out of what the memory held before.
#[test]
fn what_a_rank_leaves_out_counts_as_zero_in_memory_that_was_used() {
    for in_place_bytes in [1, usize::MAX] {
        on_ranks(2, |group| {
            let config = ReduceConfig {
                in_place_bytes: Some(in_place_bytes),
                ..ReduceConfig::default()
            };
            let reducer = reducer(&group, config)?;
            for i in 0..12 {
                // Everything on both ranks in every third step; else some, other ones on each.
                let use_it = |p: &usize| i % 3 == 0 || (p / 2 + i) % 2 == group.rank();
                let order: Vec<usize> = shuffled(i).into_iter().filter(use_it).collect();
                let averages = step(&reducer, &order, i, &Average::EQUAL)?;
                for (p, (name, param)) in reducer.parameters().iter().enumerate() {
                    let uses = |rank: usize| i % 3 == 0 || (p / 2 + i) % 2 == rank;
                    let share = |rank: usize| uses(rank).then_some(0.5);
                    let want = crate::support::single(p, i, param.dtype(), 2, share).unwrap();
                    let found = values(averages.get(param).unwrap());
                    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6;
                    assert!(
                        found.len() == want.len() && found.iter().zip(&want).all(near),
                        "step {i}, {name}: {found:?} is not {want:?}"
                    );
                }
            }
            let made = if in_place_bytes == 1 { 0 } else { 1 };
            assert_eq!(reducer.stats().buckets_made, made);
            assert_eq!(reducer.parameters().len(), SHAPES.len());
            Ok(())
        });
    }
}

#[test]
fn parameters_that_move_take_their_memory_along() {
    on_ranks(2, |group| {
        let reducer = reducer(&group, small())?;
        drop(step(&reducer, &shuffled(0), 0, &Average::EQUAL)?);
        let there = phalanx_tensor::Device::cpu(700 + group.rank());
        for (_, param) in reducer.parameters() {
            param.to_device(there)?;
        }
        let averages = step(&reducer, &shuffled(1), 1, &Average::EQUAL)?;
        assert!(averages.iter().all(|(_, g)| g.device() == there));
        let stats = reducer.stats();
        assert_eq!(
            (stats.buckets_made, stats.buckets_held),
            (2 * flats(&reducer), 0)
        );
        Ok(())
    });
}
