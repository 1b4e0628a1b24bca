//! Reductions on cards: each way in which threads share the elements of a result.

use crate::families::compare;
use crate::support::*;
use phalanx_tensor::{DType, Result, Tensor};

#[test]
fn reductions_are_the_cpus() {
    let (device, _turn) = card!();
    compare(
        device,
        &DType::ALL,
        &[
            ("sum", |a, _| a.sum(&[0], false)),
            ("sum of rows", |a, _| a.sum(&[1], true)),
            ("sum_all", |a, _| a.sum_all()),
            ("mean", |a, _| a.mean(&[0], false)),
            ("max", |a, _| a.max(&[1], false)),
            ("min", |a, _| a.min(&[0], false)),
        ],
    );
}

type Reduce = fn(&Tensor) -> Result<Tensor>;

/// Enough elements for each result that several blocks share it.
#[test]
fn reductions_of_many_elements_are_the_cpus_and_repeat_bit_for_bit() {
    let (device, _turn) = card!();
    let reduce: [(&str, Reduce); 6] = [
        ("columns", |t| t.sum(&[0], false)),
        ("rows", |t| t.sum(&[1], false)),
        ("all", |t| t.sum_all()),
        ("greatest of columns", |t| t.max(&[0], false)),
        ("least of all", |t| t.min(&[0, 1], false)),
        ("columns of a view", |t| {
            t.t()?.slice(0, 0..33, 2)?.sum(&[1], false)
        }),
    ];
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::I64] {
        let x = values(&[731, 37], DType::F64, 4).mul_scalar(50.0).unwrap();
        let x = x.cast(dtype).unwrap();
        let there = x.to_device(device).unwrap();
        for (name, run) in reduce {
            let (here, first) = (run(&x).unwrap(), run(&there).unwrap());
            assert_near(&format!("{name} {dtype}"), &first, &here, 1e-2);
            assert_eq!(read(&run(&there).unwrap()), read(&first), "{name} {dtype}");
        }
    }
}

/// A reduction along one dimension.
type Along = fn(&Tensor, isize) -> Result<Tensor>;

/// More results than the blocks of a small card, so that each block takes several in turn; results, and elements
/// of each, whose numbers are no multiples of what a warp or a block takes.
#[test]
fn reductions_in_several_turns_are_the_cpus() {
    let (device, _turn) = card!();
    let reduce: [(&str, Along); 5] = [
        ("sum", |t, axis| t.sum(&[axis], false)),
        ("max", |t, axis| t.max(&[axis], false)),
        ("min", |t, axis| t.min(&[axis], false)),
        ("argmax", |t, axis| t.argmax(axis)),
        ("argmin", |t, axis| t.argmin(axis)),
    ];
    // By a thread for each result, a block, several blocks, a block for 32 neighbours.
    let shapes = [
        ([4500, 3], 1),
        ([3, 4500], 0),
        ([37, 67], 1),
        ([19, 300], 1),
        ([2, 8197], 1),
        ([65, 545], 0),
    ];
    for dtype in [DType::F32, DType::I32] {
        for (shape, axis) in shapes {
            // Few values, so that many are equal.
            let x = values(&shape, DType::F64, 5).mul_scalar(3.0).unwrap();
            let x = x.cast(DType::I32).unwrap().cast(dtype).unwrap();
            let there = x.to_device(device).unwrap();
            for (name, run) in reduce {
                let (here, got) = (run(&x, axis).unwrap(), run(&there, axis).unwrap());
                assert_near(&format!("{name} {dtype} {shape:?}"), &got, &here, 0.0);
            }
        }
    }
}
