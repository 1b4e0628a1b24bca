//! How ranks look at what a collective has given them. On a card, to wait for a work is to hand out what was issued: that
//! it has come to nothing shows where its numbers are read, and there they must never be found.

use crate::site::WRONG;
use phalanx_comm::{DType, Device, Error, ProcessGroup, ReduceOp, Result, Tensor, report};
use phalanx_tensor::Error as TensorError;

/// The sum of ones of all ranks, read. Where it was lost it is lost to every reader, and the error is the world's failure.
pub fn read(g: &dyn ProcessGroup, sum: Tensor) -> Result<Tensor> {
    // Issued before anybody knows how the collective ends.
    let made = [sum.cast(DType::F64), sum.sum_all()];
    match sum.to_vec::<f32>() {
        Ok(numbers) => {
            let size = g.size() as f32;
            if let Some(other) = numbers.iter().find(|number| **number != size) {
                wrong(g, format_args!("reads {other} in a sum of {size} ones"));
            }
            Ok(sum)
        }
        Err(lost @ TensorError::LostWrite { .. }) => {
            for (way, read) in ways(&sum, made) {
                match read {
                    Err(TensorError::LostWrite { .. }) => {}
                    Err(error) => wrong(g, format_args!("gets from {way}: {error}")),
                    Ok(number) => wrong(g, format_args!("reads {number} by {way}: {lost}")),
                }
            }
            let failure = g.health();
            if failure.is_none() {
                wrong(
                    g,
                    format_args!("is told before the world has failed: {lost}"),
                );
            }
            Err(failure.unwrap_or_else(|| lost.into()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The result of a collective to which a rank has never come: nobody reads a number out of it.
pub fn read_in_vain(g: &dyn ProcessGroup, sum: Tensor) -> Result<Tensor> {
    let end = read(g, sum);
    if end.is_ok() {
        wrong(g, format_args!("reads a sum that never came about"));
    }
    end
}

/// In a world that has failed with this error, every call is refused with it: nothing is handed out that could be read.
pub fn expect_refusals(g: &dyn ProcessGroup, error: &Error) {
    let ones = || Tensor::ones([4], DType::F32, g.device()).map_err(Error::from);
    let calls = [
        ("barrier", g.barrier().map(drop)),
        (
            "all_reduce",
            ones().and_then(|t| g.all_reduce(t, ReduceOp::Sum).map(drop)),
        ),
        ("all_gather", ones().and_then(|t| g.all_gather(t).map(drop))),
        ("split", g.split(Some(0), 0).map(drop)),
    ];
    for (call, end) in calls {
        if end.as_ref() != Err(error) {
            wrong(g, format_args!("then gets from {call}: {end:?}"));
        }
    }
}

type Read<T> = std::result::Result<T, TensorError>;

/// Every way to a number of a tensor: of what was made of it before, and of itself.
fn ways(sum: &Tensor, [cast, total]: [Read<Tensor>; 2]) -> Vec<(&'static str, Read<f64>)> {
    let host = |t: Tensor| t.to_device(Device::cpu(0))?.narrow(0, 0, 1)?.item::<f64>();
    let first = || sum.narrow(0, 0, 1);
    let cast_now = || Ok(sum.cast(DType::F64)?.to_vec::<f64>()?[0]);
    vec![
        ("a cast that was issued before", cast.and_then(host)),
        (
            "its total that was issued before",
            total.and_then(|t| t.item::<f64>()),
        ),
        ("item", first().and_then(|t| t.item::<f64>())),
        ("a copy on the host", host(sum.clone())),
        ("a cast", cast_now()),
        ("arithmetic", first().and_then(|t| t.neg()?.item::<f64>())),
    ]
}

fn wrong(g: &dyn ProcessGroup, what: std::fmt::Arguments<'_>) {
    report(format_args!("{WRONG}: rank {} {what}", g.rank()));
}
