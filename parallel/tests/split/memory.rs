//! Each device holds its part of a split model, by its own account, and so a model trains on two devices whose limits no
//! single one of them could keep.

use phalanx_autograd::nn::{Factory, Linear, Module, Relu, Sequential, mse};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Result, Tape};
use phalanx_tensor::{DType, Device, Error, Tensor};

use crate::devices;

const WIDTH: usize = 64;
const BATCH: usize = 8;
/// Bytes of a layer's weight and bias.
const LAYER: usize = 4 * (WIDTH * WIDTH + WIDTH);

/// Three linear layers with ReLU between them, spread from the host.
fn model(devices: &[Device], cuts: &[usize]) -> Result<Sequential> {
    let mut f = Factory::new(Device::cpu(0), 0);
    Sequential::new()
        .with(Linear::new(WIDTH, WIDTH, &mut f)?)
        .with(Relu)
        .with(Linear::new(WIDTH, WIDTH, &mut f)?)
        .with(Relu)
        .with(Linear::new(WIDTH, WIDTH, &mut f)?)
        .over(devices, cuts)
}

/// The loss after some steps.
fn train(model: &Sequential, first: Device, last: Device) -> Result<f64> {
    let config = SgdConfig {
        lr: 0.1,
        momentum: 0.9,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(model.parameters(), config)?;
    let (x, y) = (
        Tensor::ones([BATCH, WIDTH], DType::F32, first)?,
        Tensor::full([BATCH, WIDTH], 0.5, DType::F32, last)?,
    );
    let mut end = f64::NAN;
    for _ in 0..4 {
        let tape = Tape::new();
        let loss = mse(
            &model.forward(&tape, &tape.constant(x.clone()))?,
            &tape.constant(y.clone()),
        )?;
        end = loss.item::<f64>()?;
        sgd.step(&tape.backward(&loss)?)?;
    }
    Ok(end)
}

#[test]
fn each_device_holds_its_part_and_two_hold_what_one_cannot() {
    let Some((d, _turn)) = devices("each_device_holds_its_part", 50, 2) else {
        return;
    };
    let live = || [d[0], d[1]].map(|device| device.memory().unwrap().live);
    let peaks = || [d[0], d[1]].map(|device| device.memory().unwrap().peak);
    let reset = || d.iter().for_each(|device| device.reset_peak().unwrap());

    // Two layers here, one there, and nothing else: the activations between them have no parameters.
    let before = live();
    let split = model(&d, &[3]).unwrap();
    let after = live();
    assert_eq!(after[0] - before[0], 2 * LAYER);
    assert_eq!(after[1] - before[1], LAYER);
    assert_eq!(split.parameters().len(), 6);

    // What training takes: in two parts, and in one piece.
    reset();
    let loss = train(&split, d[0], d[1]).unwrap();
    let parts = peaks();
    drop(split);
    assert_eq!(live(), before);
    reset();
    let whole = model(&d[..1], &[]).unwrap();
    let loss_of_whole = train(&whole, d[0], d[0]).unwrap();
    assert_eq!(loss.to_bits(), loss_of_whole.to_bits());
    let of_whole = peaks()[0];
    drop(whole);

    // The limit of each device is what the larger part takes, to the byte.
    let limit = parts[0].max(parts[1]);
    assert!(limit < of_whole, "{parts:?} and {of_whole}");
    let limited = |limit| {
        let set = |device: &Device| device.set_memory_limit(limit).unwrap();
        d.iter().for_each(set);
    };
    limited(Some(limit));
    let found = model(&d[..1], &[]).and_then(|whole| train(&whole, d[0], d[0]));
    let split = model(&d, &[3]).and_then(|split| train(&split, d[0], d[1]));
    limited(None);
    match found.map_err(|e| e.to_string()) {
        Ok(loss) => panic!("it fits, with a loss of {loss}"),
        Err(sentence) => {
            let expected = format!("out of memory on {}", d[0]);
            assert!(sentence.contains(&expected), "{sentence}");
        }
    }
    assert_eq!(split.unwrap().to_bits(), loss.to_bits());

    // A device that has no room for its part says so, and which it is.
    let too_little = live()[1] + LAYER - 1;
    d[1].set_memory_limit(Some(too_little)).unwrap();
    let refused = model(&d, &[3]).map(drop);
    d[1].set_memory_limit(None).unwrap();
    match refused {
        Err(phalanx_autograd::Error::Tensor(Error::OutOfMemory { device, .. })) => {
            assert_eq!(device, d[1]);
        }
        other => panic!("{other:?}"),
    }
}
