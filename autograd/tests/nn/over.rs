//! `Sequential::over`: what is no way to spread layers over devices, and what stays as it was.

use phalanx_autograd::nn::{BatchNorm2d, Factory, Linear, Module, Relu, Sequential};
use phalanx_autograd::{Error, Result, Tape};
use phalanx_tensor::{DType, Device, Tensor};
use std::sync::Arc;

const FIRST: Device = Device::cpu(61);
const SECOND: Device = Device::cpu(62);

fn three() -> Sequential {
    let mut f = Factory::new(FIRST, 0);
    Sequential::new()
        .with(Linear::new(2, 3, &mut f).unwrap())
        .with(Relu)
        .with(Linear::new(3, 2, &mut f).unwrap())
}

fn sentence(result: Result<Sequential>) -> String {
    let Err(error @ Error::InvalidArgument { .. }) = result.map(drop) else {
        panic!("it is accepted");
    };
    error.to_string()
}

#[test]
fn cuts_that_leave_a_device_without_layers_are_refused() {
    let cases: [(&[Device], &[usize], &str); 6] = [
        (
            &[FIRST, SECOND],
            &[],
            "cuts at [] are no parts for 2 devices",
        ),
        (&[FIRST], &[1], "cuts at [1] are no parts for 1 devices"),
        (&[FIRST, SECOND], &[0], "cuts at [0] are no parts"),
        (
            &[FIRST, SECOND],
            &[3],
            "3 layers with cuts at [3] are no parts",
        ),
        (&[FIRST, SECOND, FIRST], &[2, 2], "cuts at [2, 2]"),
        (&[FIRST, SECOND, FIRST], &[2, 1], "cuts at [2, 1]"),
    ];
    for (devices, cuts, expected) in cases {
        let found = sentence(three().over(devices, cuts));
        assert!(
            found.starts_with("Sequential::over: ") && found.contains(expected),
            "{found}"
        );
    }
    let found = sentence(Sequential::new().over(&[FIRST], &[]));
    assert!(found.contains("0 layers"), "{found}");
}

#[test]
fn a_tensor_that_two_devices_would_share_is_refused_and_nothing_moves() {
    let mut f = Factory::new(FIRST, 0);
    let tied = Arc::new(Linear::new(2, 2, &mut f).unwrap());
    let model = || {
        Sequential::new()
            .with(tied.clone())
            .with(Relu)
            .with(tied.clone())
    };
    let found = sentence(model().over(&[SECOND, FIRST], &[1]));
    assert_eq!(
        found,
        "Sequential::over: `0.weight` on cpu:62 and `2.weight` on cpu:61 are one tensor, which has one device"
    );
    assert!(tied.parameters().iter().all(|p| p.device() == FIRST));
    // On one device of two parts it may be shared.
    model().over(&[SECOND, SECOND], &[1]).unwrap();
    assert!(tied.parameters().iter().all(|p| p.device() == SECOND));

    let norm = Arc::new(BatchNorm2d::new(2, &mut f).unwrap());
    for (_, param) in norm.named_parameters() {
        param.set_requires_grad(false);
    }
    let model = Sequential::new().with(norm.clone()).with(norm);
    assert!(sentence(model.over(&[FIRST, SECOND], &[1])).contains("are one tensor"));
}

#[test]
fn names_order_and_buffers_stay_and_what_is_added_computes_where_its_input_is() {
    let names = |m: &Sequential| -> Vec<String> {
        let (params, buffers) = (m.named_parameters(), m.named_buffers());
        let params = params.into_iter().map(|(name, _)| name);
        params
            .chain(buffers.into_iter().map(|(name, _)| name))
            .collect()
    };
    let mut f = Factory::new(FIRST, 0);
    let model = Sequential::new()
        .with(BatchNorm2d::new(2, &mut f).unwrap())
        .with(Relu)
        .with(BatchNorm2d::new(2, &mut f).unwrap());
    let before = names(&model);
    let model = model.over(&[FIRST, SECOND], &[1]).unwrap().with(Relu);
    assert_eq!(names(&model), before);
    let devices: Vec<Device> = model
        .named_buffers()
        .iter()
        .map(|(_, b)| b.device())
        .collect();
    let half = devices.len() / 2;
    assert!(half > 0);
    assert!(devices[..half].iter().all(|d| *d == FIRST));
    assert!(devices[half..].iter().all(|d| *d == SECOND));
    // What comes in is moved, too.
    let tape = Tape::inference();
    let x = Tensor::ones([1, 2, 3, 3], DType::F32, Device::cpu(63)).unwrap();
    let y = model.forward(&tape, &tape.constant(x)).unwrap();
    assert_eq!(y.device(), SECOND);
    // Spread anew, and back on one device.
    let model = model.over(&[SECOND], &[]).unwrap();
    assert!(model.parameters().iter().all(|p| p.device() == SECOND));
}
