//! The functions of one tensor against the CPU's.

use crate::support::*;
use phalanx_tensor::{DType, Device, Tensor, unary_table};

/// Shapes and views: odd sizes, empty ones, gaps, offsets, stretched axes.
fn views(t: &Tensor) -> Vec<Tensor> {
    vec![
        t.clone(),
        t.t().unwrap(),
        t.narrow(0, 1, 3).unwrap().narrow(1, 2, 5).unwrap(),
        t.slice(1, 1..11, 3).unwrap(),
        t.select(0, 2).unwrap().broadcast_to([3, 13]).unwrap(),
        t.narrow(0, 4, 0).unwrap(),
        t.narrow(0, 0, 1).unwrap().narrow(1, 5, 1).unwrap(),
    ]
}

macro_rules! functions {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] [$range:expr] $gradient:tt $reference:tt
        $backward:tt $integers:tt $($rest:tt)*
    })*) => {
        #[test]
        fn every_function_is_the_cpus() {
            let (device, _turn) = card!();
            for dtype in FLOATS {
                for seed in SEEDS {
                    $(for ($($arg,)?) in $values {
                        let (low, high): (f64, f64) = $range;
                        let x = values(&[7, 13], DType::F64, seed);
                        let x = x.mul_scalar((high - low) / 4.0).unwrap();
                        let x = x.add_scalar((high + low) / 2.0).unwrap().cast(dtype).unwrap();
                        let there = x.to_device(device).unwrap();
                        for (x, there) in views(&x).iter().zip(views(&there)) {
                            let name = format!("{} {dtype} {:?}", stringify!($name), x.layout());
                            let y = x.$name($($arg)?).unwrap();
                            let got = there.$name($($arg)?).unwrap();
                            assert_eq!(got.device(), device);
                            assert_near(&name, &got, &y, 1e-6);
                            functions!(@backward $backward, x, there, y, dtype, name, seed, [$($arg)?]);
                        }
                    })*
                }
            }
        }

        #[test]
        fn integers_are_the_cpus() {
            let (device, _turn) = card!();
            let x = Tensor::from_slice(&[0i64, -1, 5, i64::MIN, i64::MAX], [5], Device::cpu(0)).unwrap();
            let there = x.to_device(device).unwrap();
            $(for ($($arg,)?) in $values {
                match (x.$name($($arg)?), there.$name($($arg)?)) {
                    (Ok(y), Ok(got)) => {
                        assert_eq!(got.to_vec::<i64>().unwrap(), y.to_vec::<i64>().unwrap(), stringify!($name));
                    }
                    (Err(cpu), Err(card)) => assert_eq!(cpu, card),
                    (cpu, card) => panic!("{}: {cpu:?} {card:?}", stringify!($name)),
                }
            })*
        }
    };
    (@backward [], $($rest:tt)*) => {};
    (@backward [$back:ident [$g:ident $saved:ident] $($formulas:tt)*],
     $vx:ident, $there:ident, $y:ident, $dtype:ident, $name:ident, $seed:ident, [$($arg:ident)?]) => {
        let saved = if stringify!($saved) == "x" { $vx.clone() } else { $y.clone() };
        let g = values($vx.dims(), $dtype, $seed + 10);
        let dx = g.$back(&saved $(, $arg)?).unwrap();
        let saved = if stringify!($saved) == "x" { $there.clone() } else { $y.to_device($there.device()).unwrap() };
        let got = g.to_device($there.device()).unwrap().$back(&saved $(, $arg)?).unwrap();
        assert_near(&format!("{} of {}", stringify!($back), $name), &got, &dx, 1e-6);
    };
}

unary_table!(functions);
