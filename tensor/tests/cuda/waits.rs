//! A step of training asks the driver for no wait.

use phalanx_tensor::DType;
use phalanx_tensor::ops::linear::Activation;
use phalanx_tensor::ops::optim::{SgdConfig, sgd_step};

use crate::counts::{Counts, launches};
use crate::support::values;

#[test]
fn a_step_of_training_waits_for_nothing() {
    let (device, _turn) = card!();
    let on = |shape: &[usize], seed| values(shape, DType::F32, seed).to_device(device).unwrap();
    let (x, gy) = (on(&[6, 5], 1), on(&[6, 4], 2));
    let mut params = [on(&[4, 5], 3)];
    let mut momenta = [None];
    let mut step = || {
        let y = x.linear(&params[0], None, Activation::None).unwrap();
        let grad = y.add(&gy).unwrap().linear_weight_grad(&x).unwrap();
        let config = SgdConfig {
            momentum: 0.9,
            ..SgdConfig::default()
        };
        sgd_step(&mut params, &[grad], &mut momenta, &config).unwrap();
    };
    // The first steps compile and load kernels.
    (0..2).for_each(|_| step());
    let (Some(before), Some(updates)) = (Counts::now(), launches("sgd")) else {
        eprintln!("SKIPPED: {}: a real card does not count", module_path!());
        return;
    };
    step();
    let made = Counts::now().unwrap().since(before);
    // A question whether a pinned buffer is free holds nobody. There is one for each buffer, where the
    // table of the parameters is sent again: simulated cards never give out an address twice.
    assert_eq!((made.waits, made.pageable), (0, 0), "{made:?}");
    assert!(made.queries <= 8, "{made:?}");
    assert!(made.launches >= 3, "{made:?}");
    assert_eq!(launches("sgd").unwrap() - updates, 1);
    // Reading a value is what waits.
    let before = Counts::now().unwrap();
    let _ = params[0]
        .sum(&[0, 1], false)
        .unwrap()
        .to_vec::<f32>()
        .unwrap();
    assert!(Counts::now().unwrap().since(before).waits > 0);
}
