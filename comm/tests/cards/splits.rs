//! Groups that are split off from a group of cards: by NCCL's own split where the cards of all ranks are idle, and by
//! ranks that find each other anew where they are not.

use super::config;
use crate::counts::{Count, counted};
use crate::support::cards;
use phalanx_comm::{DType, Error, ReduceOp, Tensor, launch};

/// How many communicators of a rank were split since `before`, which is `None` on a real card.
fn splits_since(test: &str, before: Option<u64>) -> Option<u64> {
    if before.is_none() {
        eprintln!("SKIPPED: {test}: a real card counts no splits; the values were compared");
    }
    Some(counted(Count::Splits)? - before?)
}

#[test]
fn an_idle_group_is_split_by_nccl() {
    let test = "an_idle_group_is_split_by_nccl";
    let Some(_turn) = cards(test, 4) else {
        return;
    };
    let before = counted(Count::Splits);
    let end = launch(config(4), |world| {
        let me = world.rank();
        let mine = Tensor::full([1], me as f64, DType::F64, world.device())?;
        // Something was done, and is over.
        let sum = world.all_reduce(mine.clone(), ReduceOp::Sum)?.wait()?;
        assert_eq!(sum.to_vec::<f64>()?, [6.0]);
        // In another order, and without rank 1.
        let key = [1, 0, 0, 2][me];
        let three = world.split((me != 1).then_some(7), key)?;
        assert_eq!(three.is_some(), me != 1);
        if let Some(three) = three {
            let all = three.all_gather(mine.clone())?.wait()?;
            assert_eq!(all.to_vec::<f64>()?, [2.0, 0.0, 3.0]);
        }
        // Rank 0 is in a group of its own, and the old one serves as before.
        let rest = world.split(Some(u32::from(me > 0)), 0)?;
        let rest = rest.expect("every rank has a color");
        let sum = rest.all_reduce(mine.clone(), ReduceOp::Sum)?.wait()?;
        assert_eq!(sum.to_vec::<f64>()?, [if me > 0 { 6.0 } else { 0.0 }]);
        let sum = world.all_reduce(mine, ReduceOp::Sum)?.wait()?;
        assert_eq!(sum.to_vec::<f64>()?, [6.0]);
        Ok::<_, Error>(())
    });
    end.unwrap_or_else(|e| panic!("{e}"));
    if let Some(splits) = splits_since(test, before) {
        assert_eq!(splits, 2 * 4);
    }
}

#[test]
fn a_group_with_work_under_way_is_split_without_waiting_for_it() {
    let test = "a_group_with_work_under_way_is_split_without_waiting_for_it";
    let Some(_turn) = cards(test, 2) else {
        return;
    };
    let before = counted(Count::Splits);
    let end = launch(config(2), |world| {
        let mine = Tensor::full([8], 3.0, DType::F32, world.device())?;
        // Rank 0 is sent what it receives after the split.
        let comes = match world.rank() {
            0 => Some(world.recv([8].into(), DType::F32, 1, 0)?),
            _ => None,
        };
        let new = world.split(Some(0), 0)?.expect("every rank has a color");
        if world.rank() == 1 {
            world.send(mine.clone(), 0, 0)?.wait()?;
        }
        if let Some(comes) = comes {
            assert_eq!(comes.wait()?.to_vec::<f32>()?, [3.0; 8]);
        }
        let sum = new.all_reduce(mine, ReduceOp::Sum)?.wait()?;
        assert_eq!(sum.to_vec::<f32>()?, [6.0; 8]);
        Ok::<_, Error>(())
    });
    end.unwrap_or_else(|e| panic!("{e}"));
    if let Some(splits) = splits_since(test, before) {
        assert_eq!(splits, 0);
    }
}
