//! A residual model over three devices: the gradient of the first layer's output comes back from two of them, and
//! everything is that of the model on one device, bit for bit.

use phalanx_autograd::nn::{Factory, Linear, Module, Visitor, mse};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Result, Tape, Var};
use phalanx_tensor::{DType, Device, Rng, Tensor};

use crate::devices;
use crate::support::read;

/// `last(tanh(middle(first(x)))) + first(x)`, a device for each layer.
struct Residual {
    first: Linear,
    middle: Linear,
    last: Linear,
    devices: [Device; 3],
}

impl Residual {
    fn new(devices: [Device; 3]) -> Result<Residual> {
        let mut f = Factory::new(devices[0], 5);
        let mut layer = |device| {
            f.device = device;
            Linear::new(8, 8, &mut f)
        };
        Ok(Residual {
            first: layer(devices[0])?,
            middle: layer(devices[1])?,
            last: layer(devices[2])?,
            devices,
        })
    }
}

impl Module for Residual {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let [_, second, third] = self.devices;
        let shortcut = self.first.forward(tape, x)?;
        let y = self.middle.forward(tape, &shortcut.to_device(second)?)?;
        let y = self.last.forward(tape, &y.tanh()?.to_device(third)?)?;
        y.add(&shortcut.to_device(third)?)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("first", &self.first);
        v.child("middle", &self.middle);
        v.child("last", &self.last);
    }
}

/// Losses, gradients and parameters of five steps, one after the other, as bits.
fn train(devices: [Device; 3]) -> Result<Vec<u64>> {
    let model = Residual::new(devices)?;
    let config = SgdConfig {
        lr: 0.1,
        momentum: 0.9,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(model.parameters(), config)?;
    let mut rng = Rng::new(11);
    let mut bits = Vec::new();
    for _ in 0..5 {
        let mut batch = |device| -> Result<Tensor> {
            let batch = Tensor::randn([4, 8], DType::F32, Device::cpu(0), &mut rng)?;
            Ok(batch.to_device(device)?)
        };
        let tape = Tape::new();
        // The input wants a gradient, too: the last crossing is not cut off.
        let x = tape.input(batch(devices[0])?)?;
        let y = tape.constant(batch(devices[2])?);
        let loss = mse(&model.forward(&tape, &x)?, &y)?;
        assert_eq!(loss.device(), devices[2]);
        let gradients = tape.backward(&loss)?;
        let of_input = gradients.wrt(&x).expect("it wants one");
        assert_eq!(of_input.device(), devices[0]);
        let mut keep = |t: &Tensor| bits.extend(read(t).into_iter().map(f64::to_bits));
        keep(loss.value());
        keep(of_input);
        for param in model.parameters() {
            let gradient = gradients.get(&param).expect("the loss reaches it");
            assert_eq!(gradient.device(), param.device());
            keep(gradient);
        }
        sgd.step(&gradients)?;
        model.parameters().iter().for_each(|p| p.read(&mut keep));
    }
    Ok(bits)
}

#[test]
fn a_residual_model_over_three_devices_is_the_same_bits() {
    let Some((d, _turn)) = devices("a_residual_model_over_three_devices", 30, 3) else {
        return;
    };
    let whole = train([d[0]; 3]).unwrap();
    // The loss, the input's gradient, and gradients and values of all parameters, five times.
    assert_eq!(whole.len(), 5 * (1 + 32 + 2 * 3 * 72));
    for devices in [[d[0], d[1], d[2]], [d[2], d[0], d[1]], [d[0], d[1], d[0]]] {
        assert_eq!(train(devices).unwrap(), whole, "over {devices:?}");
    }
}

#[test]
fn an_operation_over_two_devices_names_both() {
    let Some((d, _turn)) = devices("an_operation_over_two_devices_names_both", 40, 2) else {
        return;
    };
    let tape = Tape::new();
    let ones =
        |device| -> Result<Var> { Ok(tape.constant(Tensor::ones([2, 8], DType::F32, device)?)) };
    let (here, there) = (ones(d[0]).unwrap(), ones(d[1]).unwrap());
    let error = here.add(&there).unwrap_err().to_string();
    let both = |lhs, rhs| format!("operands are on {lhs} and on {rhs}; move one with to_device");
    assert_eq!(error, format!("add: {}", both(d[0], d[1])));
    // A layer whose parameters are elsewhere, and a loss whose targets are.
    let layer = Linear::new(8, 8, &mut Factory::new(d[0], 0)).unwrap();
    let error = layer.forward(&tape, &there).unwrap_err().to_string();
    assert!(error.contains(&both(d[1], d[0])), "{error}");
    let error = mse(&here, &there).unwrap_err().to_string();
    assert_eq!(error, format!("mse: {}", both(d[0], d[1])));
}
