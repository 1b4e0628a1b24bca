//! Whatever is called wrongly complains under its own name, and not under that of a part of it.

use crate::util::device;
use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::ops::norm::BatchNormMomentum;
use phalanx_tensor::ops::optim::{
    AdamConfig, AdamState, SgdConfig, adam_step, clip_by_norm, global_norm, scale, sgd_step,
};
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::ops::softmax::CrossEntropyConfig;
use phalanx_tensor::{DType, Device, Rng, Tensor, unary_table};

/// More elements than memory has room for.
const HUGE: [usize; 1] = [1 << 60];

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, device()).unwrap()
}

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
fn errors_begin_with_the_name_of_what_was_called() {
    let (x, ints) = (
        zeros(&[2, 3]),
        Tensor::zeros([2, 3], DType::I64, device()).unwrap(),
    );
    let (line, four, other) = (zeros(&[4]), zeros(&[2, 3, 4, 5]), zeros(&[4, 5]));
    let list = Tensor::zeros([2], DType::I64, device()).unwrap();
    // A view with more elements than memory can hold.
    let wide = zeros(&[1]).broadcast_to([1 << 50]).unwrap();
    let rng = &mut Rng::new(1);
    let pool = Pool2dConfig::new([9, 9]);
    let conv = Conv2dConfig::default();
    let loss = CrossEntropyConfig::default();
    let far = zeros(&[2, 3]).to_device(Device::cpu(1)).unwrap();

    name_themselves! {
        empty: Tensor::empty(HUGE, DType::F32, device());
        zeros: Tensor::zeros(HUGE, DType::F32, device());
        ones: Tensor::ones(HUGE, DType::F32, device());
        full: Tensor::full(HUGE, 1.0, DType::F32, device());
        arange: Tensor::arange(1 << 60, DType::F32, device());
        scalar: Tensor::scalar(1.0f32, Device::Cuda(99));
        from_slice: Tensor::from_slice(&[1.0f32], [2], device());
        from_vec: Tensor::from_vec(vec![1.0f32], [2], device());
        rand: Tensor::rand(HUGE, DType::F32, device(), rng);
        randn: Tensor::randn([1], DType::I64, device(), rng);
        randint: Tensor::randint(1, 1, [1], device(), rng);
        randperm: Tensor::randperm(1 << 60, device(), rng);
        bernoulli: Tensor::bernoulli(2.0, [1], DType::F32, device(), rng);
        dropout: x.dropout(2.0, rng);
        dropout_backward: x.dropout_backward(&x, 0.5);

        as_slice: x.as_slice::<f64>();
        as_bytes: x.t().unwrap().as_bytes();
        make_mut: x.clone().make_mut::<f64>();
        bytes_mut: wide.clone().bytes_mut();
        to_vec: x.to_vec::<f64>();
        item: x.item::<f32>();
        contiguous: wide.contiguous();
        to_device: x.to_device(Device::Cuda(99));

        transpose: x.transpose(0, 2);
        t: line.t();
        permute: x.permute(&[0, 0]);
        narrow: x.narrow(0, 1, 2);
        slice: x.slice(0, 1..9, 1);
        slice: x.slice(2, 0..1, 1);
        slice: x.slice(0, 0..1, 0);
        select: x.select(0, 2);
        select: x.select(2, 0);
        broadcast_to: x.broadcast_to([2, 4]);
        reshape: x.reshape([5]);
        flatten: x.flatten(0, 2);
        flatten: x.flatten(1, 0);
        squeeze: x.squeeze(0);
        unsqueeze: x.unsqueeze(4);

        cat: Tensor::cat(&[], 0);
        cat: Tensor::cat(&[&x, &line], 0);
        stack: Tensor::stack(&[], 0);
        stack: Tensor::stack(&[&x, &line], 0);
        split: x.split(&[1], 0);
        chunk: x.chunk(0, 0);
        chunk: x.chunk(1, 2);
        pad: x.pad(&[(1, 1)], 0.0);
        pad: x.pad(&[(1 << 60, 0), (0, 0)], 0.0);
        unpad: x.unpad(&[(1, 1)]);
        unpad: x.unpad(&[(1, 2), (0, 0)]);

        add: x.add(&other);
        sub: x.sub(&other);
        mul: x.mul(&other);
        div: ints.div(&ints);
        maximum: x.maximum(&ints);
        minimum: x.minimum(&far);
        pow: ints.pow(&ints);
        add_into: x.clone().add_into(&other);
        add_scalar: ints.add_scalar(0.5);
        sub_scalar: ints.sub_scalar(0.5);
        mul_scalar: ints.mul_scalar(0.5);
        div_scalar: ints.div_scalar(2.0);
        maximum_scalar: ints.maximum_scalar(0.5);
        minimum_scalar: ints.minimum_scalar(0.5);
        pow_scalar: ints.pow_scalar(2.0);
        clamp: ints.clamp(0.5, 1.0);
        clamp: ints.clamp(0.0, 0.5);
        eq: x.eq(&other);
        ne: x.ne(&other);
        lt: x.lt(&other);
        le: x.le(&other);
        gt: x.gt(&other);
        ge: x.ge(&other);
        where_cond: Tensor::where_cond(&x, &x, &x);
        cast: wide.cast(DType::F64);
        write_scaled_at: line.clone().write_scaled_at(3, &line, 1.0);

        sum: x.sum(&[2], false);
        mean: ints.mean(&[0], false);
        max: x.max(&[0, 0], false);
        min: zeros(&[2, 0]).min(&[1], false);
        var: ints.var(&[0], 1, false);
        var: x.var(&[5], 1, false);
        mean_all: ints.mean_all();
        sum_to_shape: x.sum_to_shape([5]);
        argmax: x.argmax(2);
        argmin: zeros(&[2, 0]).argmin(1);

        matmul: x.matmul(&x);
        addmm: x.clone().addmm(&x, &x);
        addmm: x.clone().addmm(&x, &zeros(&[3, 4]));
        addmm: line.clone().addmm(&x, &zeros(&[3, 4]));
        addmm: ints.clone().addmm(&x, &zeros(&[3, 3]));
        linear: x.linear(&other, None, phalanx_tensor::ops::linear::Activation::None);
        linear_with_sums: x.linear_with_sums(&other, None, phalanx_tensor::ops::linear::Activation::Relu);
        linear_input_grad: x.linear_input_grad(&other);
        linear_weight_grad: x.linear_weight_grad(&other);
        linear_bias_grad: wide.select(0, 0).unwrap().linear_bias_grad();
        conv2d: x.conv2d(&x, None, &conv);
        conv2d: four.conv2d(&zeros(&[1, 3, 9, 9]), None, &conv);
        conv2d_input_grad: Tensor::conv2d_input_grad(&x, &x, [1, 1, 1, 1], &conv);
        conv2d_weight_grad: Tensor::conv2d_weight_grad(&x, &x, [1, 1, 1, 1], &conv);
        conv2d_weight_grad_into: Tensor::conv2d_weight_grad_into(&x, &x, &mut x.clone(), &conv);
        conv2d_weight_grad_into: Tensor::conv2d_weight_grad_into(&four, &four, &mut ints.clone(), &conv);
        max_pool2d: four.max_pool2d(&pool);
        avg_pool2d: four.avg_pool2d(&pool);
        adaptive_avg_pool2d: x.adaptive_avg_pool2d([1, 1]);
        max_pool2d_backward: Tensor::max_pool2d_backward(&four, &four, [2, 3, 4, 5]);
        avg_pool2d_backward: Tensor::avg_pool2d_backward(&four, [2, 3], &pool);
        adaptive_avg_pool2d_backward: Tensor::adaptive_avg_pool2d_backward(&x, [2, 3]);
        softmax: x.softmax(2);
        log_softmax: x.log_softmax(2);
        softmax_backward: x.softmax_backward(&other, 0);
        log_softmax_backward: x.log_softmax_backward(&other, 0);
        cross_entropy: x.cross_entropy(&x, &loss);
        cross_entropy_backward: x.cross_entropy_backward(&x, &list, &x, &x, &loss);
        batch_norm: line.batch_norm(None, None, 1e-5);
        batch_norm_track: Tensor::batch_norm_track([&x; 2], [&x; 2], 1, BatchNormMomentum::Share(0.1));
        layer_norm: x.layer_norm([5], None, None, 1e-5);
        embedding: x.embedding(&x);
        embedding: line.embedding(&list);
        embedding_backward: x.embedding_backward(&list.narrow(0, 0, 1).unwrap(), 4);
        embedding_backward: x.embedding_backward(&list, 1 << 60);
        embedding_backward_into: x.embedding_backward_into(&list, &mut zeros(&[4, 2]));
        embedding_backward_into: x.embedding_backward_into(&list, &mut ints.clone());
        index_select: x.index_select(0, &x);
        index_add: x.index_add(0, &list, &other);
        gather: x.gather(0, &list);
        scatter_add: x.scatter_add(0, &ints, &other);

        sgd_step: sgd_step(&mut [x.clone()], &[&other], &mut [None], &SgdConfig::default());
        adam_step: adam_step::<Tensor, &Tensor>(
            &mut [x.clone()], &[&other], &mut [None::<AdamState>], &AdamConfig::adam()
        );
        global_norm: global_norm([&ints]);
        scale: scale([&mut ints.clone()], 2.0);
        scale: scale([&mut x.clone()], &x);
        clip_by_norm: clip_by_norm([&mut ints.clone()], 2.0, 1.0);
        clip_by_norm: clip_by_norm([&mut x.clone()], &x, 1.0);
        clip_by_norm: clip_by_norm([&mut x.clone()], 2.0, -1.0);
    }

    macro_rules! table {
        (|$vx:ident, $vout:ident, $vg:ident| $({
            $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] $range:tt
            [$saved:tt $gradient:expr] $reference:tt [$($back:ident $($formula:tt)*)?] $integers:tt
            $($rest:tt)*
        })*) => {
            let ($vg, $vx, $vout) = (&x, &other, &other);
            $(for ($($arg,)?) in $values {
                name_themselves! {
                    $name: table!(@fails $integers).$name($($arg)?);
                    $($back: $gradient;)?
                }
            })*
        };
        (@fails []) => { ints };
        (@fails $integers:tt) => { wide };
    }
    unary_table! { table }
}
