//! Modules: names, visits, states; layers against PyTorch's conventions; checkpoints; training.

mod checkpoint;
mod draws;
mod empty;
mod layers;
mod losses;
mod modules;
mod over;

use phalanx_autograd::nn::{
    AdaptiveAvgPool2d, BatchNorm2d, Conv2d, Conv2dConfig, Factory, Flatten, Linear, Sequential,
};
use phalanx_tensor::{DType, Device, Tensor};

const CPU: Device = Device::cpu(0);

fn f() -> Factory {
    Factory::new(CPU, 7)
}

fn vals(t: &Tensor) -> Vec<f64> {
    t.cast(DType::F64).unwrap().to_vec().unwrap()
}

fn close(a: &[f64], b: &[f64], tol: f64) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!(
            (x - y).abs() <= tol * y.abs().max(1.0),
            "element {i}: {x} and {y}"
        );
    }
}

fn cnn(f: &mut Factory) -> Sequential {
    let same = Conv2dConfig::default().with_padding(1);
    Sequential::new()
        .with(Conv2d::without_bias(1, 4, [3, 3], same, f).unwrap())
        .with(BatchNorm2d::new(4, f).unwrap().with_relu())
        .with(AdaptiveAvgPool2d([2, 2]))
        .with(Flatten)
        .with(Linear::new(16, 3, f).unwrap())
}
