//! Sizes of every kind, from 0 to `usize::MAX`, in strides, paddings, dilations, kernels, extents,
//! offsets and counts: an operation gives what a plain loop gives, or an error; it never panics,
//! reads or writes wild memory, or takes more memory than its arguments and its result need.

mod creation;
mod draw;
mod joining;
mod known;
#[path = "../level/mod.rs"]
mod level;
mod nothing;
mod products;
mod views;
mod windows;

use draw::{Draw, Want, numbers};
use phalanx_tensor::{Device, Result, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What one case calls, in words for a failure, with what it must do and what it did. `None` where
/// its operands cannot be had.
pub struct Case {
    call: String,
    want: Want,
    got: Result<Tensor>,
}

const CASES: usize = 10_000;
/// The least number of cases whose values are compared with a plain loop's.
const COMPARED: usize = 3_000;

#[test]
fn any_size_gives_the_values_of_a_plain_loop_or_an_error() {
    let families: &[fn(&mut Draw) -> Option<Case>] = &[
        windows::conv,
        windows::conv,
        windows::max_pool,
        windows::average_pool,
        windows::adaptive_pool,
        views::view,
        views::view,
        joining::pad,
        joining::join,
        joining::cut,
        creation::filled,
        creation::counted,
        creation::indexed,
        products::matmul,
        products::reduced,
    ];
    let device = Device::cpu(900);
    let (mut cases, mut compared, mut refused, mut seed) = (0, vec![0; families.len()], 0, 0);
    while cases < CASES {
        seed += 1;
        let family = seed % families.len();
        let mut draw = Draw::new(seed as u64, device);
        let before = device.memory().unwrap().live;
        device.reset_peak().unwrap();
        let ran = catch_unwind(AssertUnwindSafe(|| families[family](&mut draw)));
        let Ok(case) = ran else {
            panic!("case {seed} of family {family} panicked");
        };
        let Some(Case { call, want, got }) = case else {
            continue;
        };
        cases += 1;
        let name = format!("case {seed}: {call}");
        let mut result = 0;
        match (want, got) {
            (Want::Error, Err(_)) => refused += 1,
            (Want::Anything, _) => {}
            (Want::Error, Ok(t)) => panic!("{name}: gave {t:?} where an error is due"),
            (Want::Values(..), Err(e)) => panic!("{name}: {e}"),
            (Want::Values(shape, values), Ok(t)) => {
                assert_eq!(t.dims(), shape, "{name}");
                let got = numbers(&t).unwrap();
                assert_eq!(got.len(), values.len(), "{name}");
                for (i, (a, b)) in got.iter().zip(&values).enumerate() {
                    assert!(
                        a == b || (a - b).abs() < 1e-5,
                        "{name}: {a} at {i} is not {b}"
                    );
                }
                compared[family] += 1;
                result = 8 * values.len();
            }
        }
        // Every operand in its own and in a wider type, the result, and what is computed from it.
        let peak = device.memory().unwrap().peak - before;
        let most = 8 * (draw.bytes + result) + (1 << 12);
        assert!(
            peak <= most,
            "{name}: {peak} bytes at the peak, {most} expected at most"
        );
    }
    let all: usize = compared.iter().sum();
    println!("{all} of {CASES} compared, {refused} refused; by family: {compared:?}");
    assert!(
        all >= COMPARED && refused >= COMPARED / 3,
        "{all} compared, {refused} refused"
    );
    assert!(compared.iter().all(|&n| n >= 100), "{compared:?}");
    #[cfg(target_os = "linux")]
    {
        // Scratch memory is in no device's account.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib: usize = peak
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        assert!(kib < 256 << 10, "{kib} KiB at the peak of the process");
    }
}
