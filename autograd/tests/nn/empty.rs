//! Batches of no samples: a rank that ran out of data, a detector that found nothing (as in
//! pytorch#12013). Results are empty, the gradients of parameters are zeros, and nothing is tracked.

use crate::{CPU, f, vals};
use phalanx_autograd::nn::{
    self, Activation, AdaptiveAvgPool2d, AvgPool2d, BatchNorm2d, Conv2d, Conv2dConfig, Dropout,
    Embedding, Factory, Flatten, LayerNorm, Linear, LogSoftmax, MaxPool2d, Module, Pool2dConfig,
    Sequential, Softmax,
};
use phalanx_autograd::{Result, Tape, Var};
use phalanx_tensor::{DType, Shape, Tensor, unary_table};

/// Runs a module on an empty batch, forward and backward; the result has the shape `out`.
fn check(name: &str, module: &dyn Module, input: &[usize], out: &[usize]) {
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        if module.parameters().iter().any(|p| p.dtype() != dtype) {
            continue;
        }
        let tape = Tape::new();
        let x = tape
            .input(Tensor::zeros(input, dtype, CPU).unwrap())
            .unwrap();
        let y = module
            .forward(&tape, &x)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((y.dims(), y.dtype()), (out, dtype), "{name}");
        let sum = y.sum_all().unwrap();
        assert_eq!(sum.item::<f64>().unwrap(), 0.0, "{name}");
        let slopes = tape
            .backward(&sum)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(slopes.wrt(&x).unwrap().dims(), input, "{name}");
        for (path, param) in module.named_parameters() {
            let slope = vals(slopes.get(&param).unwrap());
            assert!(slope.iter().all(|v| *v == 0.0), "{name} {path}: {slope:?}");
        }
    }
}

/// Checks the layers of the tensor's table.
macro_rules! layers {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] $($rest:tt)*
    })*) => {
        $(for ($($arg,)?) in $values {
            check(stringify!($Name), &nn::$Name $(($arg))?, &[0, 4], &[0, 4]);
        })*
    };
}

macro_rules! activations {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] $($rest:tt)*
    })*) => {{
        let mut all = vec![Activation::None];
        $(all.extend($values.map(|($($arg,)?)| Activation::$Name $(($arg))?));)*
        all
    }};
}

#[test]
fn every_module_takes_an_empty_batch() {
    let mut f = f();
    for activation in unary_table!(activations activations) {
        let linear = Linear::new(4, 3, &mut f).unwrap();
        let linear = linear.with_activation(activation);
        check("Linear", &linear, &[0, 4], &[0, 3]);
        check("Linear", &linear, &[2, 0, 4], &[2, 0, 3]);
    }
    let config = Conv2dConfig::default().with_padding(1);
    let conv = Conv2d::new(2, 3, [3, 3], config, &mut f).unwrap();
    check("Conv2d", &conv, &[0, 2, 5, 6], &[0, 3, 5, 6]);
    let norm = BatchNorm2d::new(2, &mut f).unwrap();
    check("BatchNorm2d", &norm, &[0, 2, 5, 6], &[0, 2, 5, 6]);
    check("BatchNorm2d", &norm, &[0, 2], &[0, 2]);
    norm.set_training(false);
    check("BatchNorm2d at rest", &norm, &[0, 2, 5], &[0, 2, 5]);
    let norm = BatchNorm2d::new(2, &mut f).unwrap().with_relu();
    check("BatchNorm2d and ReLU", &norm, &[0, 2, 5], &[0, 2, 5]);
    let norm = LayerNorm::new([3, 4], &mut f).unwrap();
    check("LayerNorm", &norm, &[0, 3, 4], &[0, 3, 4]);
    let dropout = Dropout::new(0.5, &mut f).unwrap();
    check("Dropout", &dropout, &[0, 4], &[0, 4]);

    let window = Pool2dConfig::new([2, 2]);
    let (plane, half) = (&[0, 2, 4, 6][..], &[0, 2, 2, 3][..]);
    check("MaxPool2d", &MaxPool2d(window), plane, half);
    check("AvgPool2d", &AvgPool2d(window), plane, half);
    check("AdaptiveAvgPool2d", &AdaptiveAvgPool2d([2, 3]), plane, half);
    check("Flatten", &Flatten, plane, &[0, 48]);
    check("Softmax", &Softmax(1), &[0, 4], &[0, 4]);
    check("Softmax", &Softmax(0), &[0, 4], &[0, 4]);
    check("LogSoftmax", &LogSoftmax(-1), &[0, 4], &[0, 4]);
    unary_table!(layers modules);

    let whole = crate::cnn(&mut f);
    check("a network", &whole, &[0, 1, 8, 8], &[0, 3]);

    let embedding = Embedding::new(5, 3, &mut f).unwrap();
    let tape = Tape::new();
    let ids = tape.constant(Tensor::zeros([0, 2], DType::I64, CPU).unwrap());
    let y = embedding.forward(&tape, &ids).unwrap();
    assert_eq!(y.dims(), [0, 2, 3]);
    let slopes = tape.backward(&y.sum_all().unwrap()).unwrap();
    assert_eq!(vals(slopes.get(&embedding.weight).unwrap()), [0.0; 15]);
}

#[test]
fn an_empty_batch_is_not_tracked() {
    let norm = BatchNorm2d::new(2, &mut f()).unwrap();
    let run = |rows: usize| {
        let tape = Tape::inference();
        let x = Tensor::arange(4 * rows, DType::F32, CPU).unwrap();
        let x = tape.constant(x.reshape([rows, 2, 2]).unwrap());
        norm.forward(&tape, &x).unwrap();
        norm.named_buffers()
            .iter()
            .map(|(_, b)| vals(&b.value().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(0), [vec![0.0; 2], vec![1.0; 2], vec![0.0]]);
    let after = run(3);
    assert_eq!(run(0), after);
}

/// As in PyTorch: the mean over nothing is NaN, a sum 0; either way the gradients are zeros, and
/// other ranks' gradients stay what they are.
#[test]
fn losses_of_an_empty_batch_are_nan_and_their_gradients_zero() {
    type Loss = fn(&Var) -> Result<Var>;
    fn labels(x: &Var) -> Tensor {
        Tensor::zeros(Shape::from([x.dims()[0]]), DType::I64, CPU).unwrap()
    }
    let losses: [(&str, Loss); 5] = [
        ("cross_entropy", |x| nn::cross_entropy(x, &labels(x))),
        ("nll", |x| nn::nll(&x.log_softmax(1)?, &labels(x))),
        ("mse", |x| nn::mse(x, &x.detach())),
        ("l1", |x| nn::l1(x, &x.detach())),
        ("binary_cross_entropy", |x| {
            nn::binary_cross_entropy(x, &x.detach())
        }),
    ];
    for (name, loss) in losses {
        for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
            let mut f = Factory { dtype, ..f() };
            let model = Sequential::new()
                .with(Linear::new(4, 3, &mut f).unwrap())
                .with(BatchNorm2d::new(3, &mut f).unwrap());
            let tape = Tape::new();
            let x = tape.constant(Tensor::zeros([0, 4], dtype, CPU).unwrap());
            let out = loss(&model.forward(&tape, &x).unwrap()).unwrap();
            assert!(out.item::<f64>().unwrap().is_nan(), "{name} {dtype}");
            let slopes = tape.backward(&out).unwrap();
            for param in model.parameters() {
                let slope = vals(slopes.get(&param).unwrap());
                assert!(slope.iter().all(|v| *v == 0.0), "{name} {dtype}: {slope:?}");
            }
        }
    }
}
