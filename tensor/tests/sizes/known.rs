//! Sizes that once read wild memory, wrapped around, never ended or took memory that nobody had
//! asked for.

use crate::draw::numbers;
use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::{DType, Device, Error, Rng, Tensor};

const DEVICE: Device = Device::Cpu(901);

fn ones(shape: impl Into<phalanx_tensor::Shape>) -> Tensor {
    Tensor::ones(shape, DType::F32, DEVICE).unwrap()
}

/// The distance from row to row of the padded input is a product of both strides.
#[test]
fn long_strides_of_a_convolution_stay_in_its_memory() {
    for stride in [
        [4, 1 << 60],
        [1 << 60, 4],
        [1 << 32, 1 << 32],
        [usize::MAX; 2],
    ] {
        for (size, taps, sum) in [(1, 1, 0.0), (1, 3, 4.0), (2, 2, 4.0)] {
            let cfg = Conv2dConfig {
                stride,
                padding: [1, 1],
                ..Conv2dConfig::default()
            };
            let (x, w) = (ones([1, 4, size, size]), ones([4, 4, taps, taps]));
            let y = x.conv2d(&w, None, &cfg).unwrap();
            assert_eq!(y.dims(), [1, 4, 1, 1], "{stride:?}");
            assert_eq!(numbers(&y).unwrap(), [sum; 4], "{stride:?}, {taps} taps");
            // The pixel and the tap that meet are one of each channel, or none.
            let dx = Tensor::conv2d_input_grad(&y, &w, [1, 4, size, size], &cfg).unwrap();
            let dw = Tensor::conv2d_weight_grad(&x, &y, [4, 4, taps, taps], &cfg).unwrap();
            let total = |t: &Tensor| numbers(t).unwrap().iter().sum::<f64>();
            assert_eq!(
                (total(&dx), total(&dw)),
                (16.0 * sum, 16.0 * sum),
                "{stride:?}"
            );
        }
    }
}

/// Zeros around a plane are no reason to hold them all.
#[test]
#[cfg(target_os = "linux")]
fn wide_padding_takes_no_memory() {
    let (far, cfg) = (1 << 22, Conv2dConfig::default());
    let problems = [
        // Padding that no output reads but the middle one.
        (
            [1, 1],
            Conv2dConfig {
                stride: [far, 1],
                padding: [far, 0],
                ..cfg
            },
        ),
        // Taps so far apart that all but one read padding.
        (
            [3, 1],
            Conv2dConfig {
                dilation: [far, 1],
                padding: [far, 0],
                ..cfg
            },
        ),
    ];
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = peak.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<usize>().unwrap()
    };
    let before = peak();
    for ([kh, kw], cfg) in problems {
        let (x, w) = (ones([1, 4, 1, 1]), ones([4, 4, kh, kw]));
        let y = x.conv2d(&w, None, &cfg).unwrap();
        let middle = y.narrow(2, y.dims()[2] / 2, 1).unwrap();
        assert_eq!(numbers(&middle).unwrap(), [4.0; 4]);
        let dx = Tensor::conv2d_input_grad(&y, &w, [1, 4, 1, 1], &cfg).unwrap();
        assert_eq!(numbers(&dx).unwrap(), [16.0; 4]);
        let dw = Tensor::conv2d_weight_grad(&x, &y, [4, 4, kh, kw], &cfg).unwrap();
        assert_eq!(numbers(&dw).unwrap().iter().sum::<f64>(), 64.0);
    }
    // The random sizes may run beside this test.
    let kib = peak() - before;
    assert!(kib < 32 << 10, "{kib} KiB for planes of one pixel");
}

#[test]
fn windows_over_nothing_end() {
    let tall = Tensor::zeros([1, 1, 1 << 40, 0], DType::F32, DEVICE).unwrap();
    let mut cfg = Pool2dConfig::new([1 << 40, 2]);
    cfg.padding = [0, 1];
    let (max, at) = tall.max_pool2d(&cfg).unwrap();
    assert_eq!(
        (max.item().unwrap(), at.item().unwrap()),
        (f64::NEG_INFINITY, -1.0)
    );
    let nothing = Tensor::zeros([1, 1, 1 << 40, 0], DType::F32, DEVICE).unwrap();
    let dx = Tensor::adaptive_avg_pool2d_backward(&nothing, [1, 1, 2, 2]).unwrap();
    assert_eq!(numbers(&dx).unwrap(), [0.0; 4]);
}

#[test]
fn an_empty_axis_hides_no_overflow() {
    let invalid = |t: phalanx_tensor::Result<Tensor>, op: &str| {
        let e = t.unwrap_err();
        assert!(matches!(e, Error::InvalidShape { .. }), "{e}");
        assert!(e.to_string().starts_with(op), "{e}");
    };
    let (most, t) = (isize::MAX as usize, DType::F32);
    invalid(Tensor::zeros([usize::MAX, 2, 0], t, DEVICE), "zeros");
    invalid(Tensor::empty([0, most], t, DEVICE), "empty");
    invalid(
        Tensor::from_slice::<f32>(&[], [1 << 40, 1 << 40, 0], DEVICE),
        "from_slice",
    );
    let empty = Tensor::zeros([0, 1], t, DEVICE).unwrap();
    invalid(empty.reshape([most, 0, most]), "reshape");
    invalid(empty.broadcast_to([most, 0, 4]), "broadcast_to");
    invalid(
        empty.t().unwrap().broadcast_to([most / 2, 0]),
        "broadcast_to",
    );
    // What is countable alone is not when it stands beside itself.
    let long = Tensor::zeros([most, 0], DType::U8, DEVICE).unwrap();
    assert!(long.cast(DType::F64).is_err());
    assert!(Tensor::stack(&[&long, &long], 0).is_err());
    let e = Tensor::cat(&[&long, &long, &long], 0).unwrap_err();
    assert!(e.to_string().starts_with("cat: 3 tensors"), "{e}");
    assert!(Tensor::cat(&[&long, &long], 0).is_err());
}

/// The error says which argument is too large, before any memory is asked for.
#[test]
fn numbers_that_ask_for_too_much_are_named() {
    let most = usize::MAX / 2;
    let mut rng = Rng::new(0);
    let x = ones([2, 3]);
    let ids = Tensor::from_slice(&[0i64, 0], [2], DEVICE).unwrap();
    let empty = Tensor::zeros([0], DType::F32, DEVICE).unwrap();
    let cases = [
        (Tensor::arange(most, DType::I64, DEVICE), "arange: len is"),
        (Tensor::randperm(most, DEVICE, &mut rng), "randperm: len is"),
        (
            x.embedding_backward(&ids, most),
            "embedding_backward: entries is",
        ),
        (
            x.pad(&[(0, most), (most, most)], 0.0),
            "pad: shape [2, 3] with widths",
        ),
        (
            x.pad(&[(0, 0), (0, most)], 0.0),
            "pad: shape [2, 3] with widths",
        ),
        (empty.chunk(most, 0).map(|p| p[0].clone()), "chunk: count 9"),
        (
            ones([1, 1, 2, 2]).adaptive_avg_pool2d([most, 1]),
            "adaptive_avg_pool2d: planes",
        ),
    ];
    for (got, start) in cases {
        let e = got.unwrap_err();
        assert!(matches!(e, Error::InvalidArgument { .. }), "{e}");
        assert!(e.to_string().starts_with(start), "{e}");
    }
}
