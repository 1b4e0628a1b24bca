//! A training loop on a CPU device takes nothing from the system once it is warm, and moves nothing, on
//! any number of threads.

#[path = "../level/mod.rs"]
mod level;
mod model;

use model::takes_nothing_from_the_system_once_it_is_warm;
use phalanx_tensor::{DType, Device, cpu};

#[test]
fn a_training_loop_takes_nothing_from_the_system_once_it_is_warm() {
    let cases = [
        (201, DType::F32, 1),
        (202, DType::F32, 3),
        (203, DType::BF16, 1),
        (204, DType::F64, 2),
    ];
    for (index, dtype, threads) in cases {
        let device = Device::cpu(index);
        let run = || takes_nothing_from_the_system_once_it_is_warm(device, dtype, 20);
        cpu::with_threads(threads, run).unwrap_or_else(|e| panic!("{threads} threads: {e}"));
        let end = device.memory().unwrap();
        assert_eq!((end.live, end.copies), (0, 0), "{threads} threads");
    }
}
