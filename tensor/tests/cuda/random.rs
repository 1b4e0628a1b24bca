//! Random numbers against the CPU's: the same bits, from the same seed and the same calls.

use crate::support::*;
use phalanx_tensor::{DType, Device, Result, Rng, Tensor};

/// Numbers of elements: none, parts of a block of words, several grids.
const SIZES: [usize; 9] = [0, 1, 2, 3, 4, 5, 255, 1027, 70_001];

/// Draws of all sizes from one stream on both devices, and where the stream is in the end.
fn compare(
    device: Device,
    same: impl Fn(&str, &Tensor, &Tensor),
    draw: impl Fn(usize, Device, &mut Rng) -> Result<Tensor>,
) {
    for seed in SEEDS {
        // Far into the stream too, where the number of a block has more than 32 bits.
        for start in [0, u64::from(u32::MAX) - 300, u64::MAX - 300] {
            let mut here = Rng::from_state([seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), start]);
            let mut there = here.clone();
            for n in SIZES {
                let expected = draw(n, Device::cpu(0), &mut here).unwrap();
                let got = draw(n, device, &mut there).unwrap();
                assert_eq!(here.state(), there.state());
                assert_eq!(got.device(), device);
                assert_eq!(
                    (got.dims(), got.dtype()),
                    (expected.dims(), expected.dtype())
                );
                same(&format!("seed {seed} start {start} n {n}"), &got, &expected);
            }
        }
    }
}

fn same_bits(name: &str, got: &Tensor, expected: &Tensor) {
    let bits = |t: &Tensor| -> Vec<u64> {
        match t.dtype() {
            DType::I64 => t
                .to_vec::<i64>()
                .unwrap()
                .iter()
                .map(|v| *v as u64)
                .collect(),
            _ => read(t).iter().map(|v| v.to_bits()).collect(),
        }
    };
    let (got, expected) = (bits(got), bits(expected));
    let wrong = got.iter().zip(&expected).position(|(g, e)| g != e);
    assert_eq!(
        wrong,
        None,
        "{name}: {:?}",
        wrong.map(|i| (got[i], expected[i]))
    );
}

#[test]
fn uniform_numbers_have_the_cpus_bits() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        compare(device, same_bits, |n, device, rng| {
            Tensor::rand([n], dtype, device, rng)
        });
    }
}

#[test]
fn normal_numbers_have_the_cpus_bits() {
    let (device, _turn) = card!();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        compare(device, same_bits, |n, device, rng| {
            Tensor::randn([n], dtype, device, rng)
        });
    }
    let close = |name: &str, got: &Tensor, expected: &Tensor| {
        for (g, e) in read(got).into_iter().zip(read(expected)) {
            // Both have the sign of the angle's sine or cosine, so their bits are as far apart as they are.
            let apart = g.to_bits().abs_diff(e.to_bits());
            assert!(apart <= 4, "{name}: {g} and {e} are {apart} apart");
        }
    };
    compare(device, close, |n, device, rng| {
        Tensor::randn([n], DType::F64, device, rng)
    });
}

/// The first numbers are those of the published block, and the grid does not matter to the last.
#[test]
fn numbers_depend_on_their_place_alone() {
    let (device, _turn) = card!();
    let words = [0x6627_e8d5u32, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
    let expected = words.map(|w| (w >> 8) as f32 * 2f32.powi(-24));
    let t = Tensor::rand([4], DType::F32, device, &mut Rng::new(0)).unwrap();
    assert_eq!(t.to_vec::<f32>().unwrap(), expected);
    let long = Tensor::randn([50_000], DType::F32, device, &mut Rng::new(3)).unwrap();
    let short = Tensor::randn([11], DType::F32, device, &mut Rng::new(3)).unwrap();
    assert_eq!(read(&long)[..11], read(&short)[..]);
    // In one launch or in two.
    let mut rng = Rng::new(3);
    let parts = [25_000, 25_000].map(|n| Tensor::randn([n], DType::F32, device, &mut rng).unwrap());
    assert_eq!(parts.iter().flat_map(read).collect::<Vec<_>>(), read(&long));
}

#[test]
fn integers_and_hits_have_the_cpus_bits() {
    let (device, _turn) = card!();
    for (low, high) in [
        (0, 1),
        (-5, 12),
        (0, 1 << 40),
        (i64::MIN, i64::MAX),
        (-1, i64::MAX),
    ] {
        compare(device, same_bits, |n, device, rng| {
            Tensor::randint(low, high, [n], device, rng)
        });
    }
    for p in [0.0, 1e-9, 0.3, 0.5, 1.0 - 1e-12, 1.0] {
        compare(device, same_bits, |n, device, rng| {
            Tensor::bernoulli(p, [n], DType::Bool, device, rng)
        });
    }
    for dtype in DType::ALL {
        compare(device, same_bits, |n, device, rng| {
            Tensor::bernoulli(0.7, [n.min(300)], dtype, device, rng)
        });
    }
}

/// What is drawn with probability p is what is below it, not what is equal.
#[test]
fn a_word_at_the_threshold_is_no_hit() {
    let (device, _turn) = card!();
    for seed in SEEDS {
        let word = Rng::new(seed).next_u64() as u32;
        for (threshold, is_hit) in [(f64::from(word), false), (f64::from(word) + 1.0, true)] {
            let p = threshold * 2f64.powi(-32);
            let hits = Tensor::bernoulli(p, [1], DType::U8, device, &mut Rng::new(seed)).unwrap();
            assert_eq!(hits.to_vec::<u8>().unwrap(), [u8::from(is_hit)]);
        }
    }
}

#[test]
fn permutations_are_the_cpus() {
    let (device, _turn) = card!();
    compare(device, same_bits, |n, device, rng| {
        Tensor::randperm(n.min(2000), device, rng)
    });
}

#[test]
fn dropout_is_the_cpus() {
    let (device, _turn) = card!();
    let views: [fn(&Tensor) -> Tensor; 5] = [
        |t| t.clone(),
        |t| t.narrow(0, 1, 5).unwrap(),
        |t| t.t().unwrap(),
        |t| t.narrow(1, 3, 8).unwrap(),
        |t| t.narrow(0, 0, 0).unwrap(),
    ];
    for dtype in FLOATS {
        for seed in SEEDS {
            for (p, view) in [0.0, 0.1, 0.5, 1.0]
                .into_iter()
                .flat_map(|p| views.map(|view| (p, view)))
            {
                let x = values(&[9, 16], dtype, seed);
                let far = view(&x.to_device(device).unwrap());
                let x = view(&x);
                let (mut here, mut there) = (Rng::new(seed), Rng::new(seed));
                let (y, mask) = x.dropout(p, &mut here).unwrap();
                let (got, far_mask) = far.dropout(p, &mut there).unwrap();
                assert_eq!(here.state(), there.state());
                same_bits("mask", &far_mask, &mask);
                same_bits("dropout", &got, &y);
                let dx = x.dropout_backward(&mask, p).unwrap();
                same_bits(
                    "backward",
                    &far.dropout_backward(&far_mask, p).unwrap(),
                    &dx,
                );
                // A mask of bytes, with gaps.
                let bytes = mask.cast(DType::U8).unwrap().mul_scalar(7.0).unwrap();
                let bytes = Tensor::stack(&[&bytes, &bytes], 2)
                    .unwrap()
                    .select(2, 1)
                    .unwrap();
                let far_bytes = bytes.to_device(device).unwrap();
                let far_bytes = Tensor::stack(&[&far_bytes, &far_bytes], 2)
                    .unwrap()
                    .select(2, 1)
                    .unwrap();
                let dx = x.dropout_backward(&bytes, p).unwrap();
                same_bits("bytes", &far.dropout_backward(&far_bytes, p).unwrap(), &dx);
            }
        }
    }
}

#[test]
fn what_is_dropped_is_zero_whatever_it_was() {
    let (device, _turn) = card!();
    let x = Tensor::full([64], f64::NAN, DType::F32, device).unwrap();
    let (y, _) = x.dropout(1.0, &mut Rng::new(1)).unwrap();
    assert!(read(&y).iter().all(|v| *v == 0.0));
}

#[test]
fn misuse_is_the_cpus_error_and_draws_nothing() {
    let (device, _turn) = card!();
    let draws: [fn(Device, &mut Rng) -> Result<Tensor>; 4] = [
        |device, rng| Tensor::rand([4], DType::I32, device, rng),
        |device, rng| Tensor::randn([4], DType::Bool, device, rng),
        |device, rng| Tensor::randint(3, 3, [4], device, rng),
        |device, rng| Tensor::bernoulli(1.5, [4], DType::F32, device, rng),
    ];
    for draw in draws {
        let mut rng = Rng::new(1);
        let expected = draw(Device::cpu(0), &mut rng).unwrap_err();
        assert_eq!(draw(device, &mut rng).unwrap_err(), expected);
        assert_eq!(rng.state(), Rng::new(1).state());
    }
}
