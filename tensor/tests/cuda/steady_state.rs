//! A training loop on a card takes nothing from the system once it is warm, and moves nothing.

#[path = "../steady_state/model.rs"]
mod model;

use phalanx_tensor::DType;

#[test]
fn a_training_loop_takes_nothing_from_the_system_once_it_is_warm() {
    let (device, _turn) = card!();
    for dtype in [DType::F32, DType::BF16] {
        model::takes_nothing_from_the_system_once_it_is_warm(device, dtype, 5).unwrap();
    }
}
