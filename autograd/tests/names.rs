//! Whatever is called wrongly complains under its own name, and a layer's error says which layer it is.

use phalanx_autograd::nn::{
    self, Conv2d, Conv2dConfig, CrossEntropyConfig, Factory, GeluKind, Linear, Module,
    Pool2dConfig, Relu, Sequential,
};
use phalanx_autograd::optim::{clip_grad_norm, grad_norm};
use phalanx_autograd::{Error, Gradients, Param, Tape, Var, checkpoint};
use phalanx_tensor::{DType, Device, Rng, Tensor};

const CPU: Device = Device::cpu(0);

/// Each call fails, with a text that begins with the name of what was called.
macro_rules! name_themselves {
    ($($name:ident: $call:expr;)*) => {
        $(
            let name = concat!(stringify!($name), ":");
            match $call {
                Ok(_) => panic!("{name} this call should fail"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.starts_with(name), "{name} says: {text}");
                }
            }
        )*
    };
}

#[test]
fn errors_of_arguments_begin_with_the_name_of_what_was_called() {
    let tape = Tape::new();
    let var = |shape: &[usize]| tape.constant(Tensor::zeros(shape, DType::F32, CPU).unwrap());
    let (x, other, line) = (var(&[2, 3]), var(&[4, 5]), var(&[4]));
    let four = var(&[2, 3, 4, 5]);
    let ints = tape.constant(Tensor::zeros([2, 3], DType::I64, CPU).unwrap());
    let list = Tensor::zeros([2], DType::I64, CPU).unwrap();
    let pool = Pool2dConfig::new([9, 9]);
    let rng = &mut Rng::new(1);
    name_themselves! {
        item: x.item::<f32>();
        reshape: x.reshape([5]);
        flatten: x.flatten(1, 0);
        squeeze: x.squeeze(0);
        unsqueeze: x.unsqueeze(5);
        transpose: x.transpose(0, 2);
        t: line.t();
        permute: x.permute(&[0, 0]);
        narrow: x.narrow(0, 1, 2);
        select: x.select(0, 2);
        select: x.select(2, 0);
        split: x.split(&[1], 0);
        chunk: x.chunk(0, 0);
        cat: Var::cat(&tape, &[&x, &line], 0);
        stack: Var::stack(&tape, &[&x, &line], 0);
        stack: Var::stack(&tape, &[], 0);
        stack: Var::stack(&tape, &[&x, &x], 5);
        pad: x.pad(&[(1, 1)], 0.0);
        broadcast_to: x.broadcast_to([2, 4]);
        to_device: x.to_device(Device::Cuda(0));
        add: x.add(&other);
        sub: x.sub(&other);
        mul: x.mul(&other);
        div: x.div(&other);
        maximum: x.maximum(&other);
        minimum: x.minimum(&other);
        pow: x.pow(&other);
        where_cond: Var::where_cond(x.value(), &x, &x);
        exp: ints.exp();
        gelu: ints.gelu(GeluKind::Tanh);
        sum: x.sum(&[2], false);
        mean: x.mean(&[2], false);
        mean_all: ints.mean_all();
        max: x.max(&[2], false);
        min: x.min(&[2], false);
        var: x.var(&[2], 1, false);
        matmul: x.matmul(&x);
        linear: x.linear(&other, None, nn::Activation::None);
        conv2d: x.conv2d(&x, None, &Conv2dConfig::default());
        max_pool2d: four.max_pool2d(&pool);
        avg_pool2d: four.avg_pool2d(&pool);
        adaptive_avg_pool2d: x.adaptive_avg_pool2d([1, 1]);
        batch_norm: line.batch_norm(None, None, 1e-5, None, true);
        layer_norm: x.layer_norm([5], None, None, 1e-5);
        softmax: x.softmax(2);
        log_softmax: x.log_softmax(2);
        cross_entropy: x.cross_entropy(x.value(), &CrossEntropyConfig::default());
        embedding: x.embedding(x.value());
        gather: x.gather(0, &list);
        scatter_add: x.scatter_add(0, ints.value(), &other);
        index_select: x.index_select(0, x.value());
        dropout: x.dropout(2.0, rng);
        cross_entropy: nn::cross_entropy(&x, x.value());
        nll: nn::nll(&x, &list.narrow(0, 0, 1).unwrap().select(0, 0).unwrap());
        nll: nn::nll(&x, x.value());
        mse: nn::mse(&x, &other);
        l1: nn::l1(&x, &other);
        binary_cross_entropy: nn::binary_cross_entropy(&x, &other);
        binary_cross_entropy: nn::binary_cross_entropy(&ints, &ints);
    }
    let p = Param::new(x.value().clone());
    let mut wrong = Gradients::new();
    wrong.insert(&p, ints.value().clone());
    name_themselves! {
        grad_norm: grad_norm(&wrong);
        clip_grad_norm: clip_grad_norm(&mut wrong, 1.0);
    }
}

#[test]
fn errors_of_tapes_begin_with_the_name_of_what_was_called() {
    let w = Param::new(Tensor::ones([2, 2], DType::F32, CPU).unwrap());
    let wide = Param::new(Tensor::ones([2, 3], DType::F32, CPU).unwrap());
    let (tape, other) = (Tape::new(), Tape::new());
    let old = tape.leaf(&w);
    tape.clear(); // `old` belongs to what was
    let (x, far) = (tape.leaf(&w), other.leaf(&w));
    let list = Tensor::zeros([2], DType::I64, CPU).unwrap();
    name_themselves! {
        mul: x.mul(&far);
        cat: Var::cat(&tape, &[&x, &far], 0);
        stack: Var::stack(&tape, &[&x, &far], 0);
        linear: x.linear(&far, None, nn::Activation::None);
        linear: x.linear(&tape.leaf(&wide), None, nn::Activation::Silu);
        mse: nn::mse(&x, &far);
        relu: old.relu();
        flatten: old.flatten(0, 1);
        reshape: old.reshape([4]);
        unsqueeze: old.unsqueeze(0);
        t: old.t();
        select: old.select(0, 0);
        split: old.split(&[1, 1], 0);
        chunk: old.chunk(2, 0);
        sum: old.sum(&[0], false);
        sum_all: old.sum_all();
        mean_all: old.mean_all();
        max: old.max(&[0], false);
        batch_norm: old.batch_norm(None, None, 1e-5, None, false);
        cross_entropy: nn::cross_entropy(&old, &list);
        nll: nn::nll(&old, &list);
        checkpoint: checkpoint(&tape, &[&old], |_, x| x[0].relu());
    }
}

#[test]
fn errors_of_layers_name_the_layer() {
    let mut f = Factory::new(CPU, 1);
    let same = Conv2dConfig::default();
    let inner = Sequential::new()
        .with(Relu)
        .with(Conv2d::new(4, 8, [3, 3], same, &mut f).unwrap());
    let model = Sequential::new()
        .with(Conv2d::new(1, 3, [3, 3], same, &mut f).unwrap())
        .with(Relu)
        .with(Box::new(inner) as Box<dyn Module>)
        .with(Linear::new(4, 4, &mut f).unwrap());
    let tape = Tape::new();
    let x = tape.constant(Tensor::zeros([1, 1, 8, 8], DType::F32, CPU).unwrap());
    let error = model.forward(&tape, &x).unwrap_err();
    assert!(
        matches!(&error, Error::InModule { path, .. } if path == "2.1"),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.starts_with("layer `2.1`: conv2d: "), "{text}");
    // The path is that of the parameters.
    let names = model.named_parameters();
    assert!(names.iter().any(|(name, _)| name == "2.1.weight"));
    assert_eq!(
        error.in_module("encoder").to_string(),
        text.replace("2.1", "encoder.2.1")
    );
}
