//! What the driver was asked to do: so that a test can say that nothing waits for the card, and how often kernels are
//! launched. Only simulated cards count; on a real one such a test says that it is skipped.
#![allow(unsafe_code)]

use phalanx_tensor::DType;
use phalanx_tensor::ops::linear::Activation;
use phalanx_tensor::ops::optim::{SgdConfig, sgd_step};
use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;

use crate::support::values;

/// How often the host has asked for something, in the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Waits for a stream, an event or a device, and in copies to memory that is not pinned.
    pub waits: u64,
    /// Questions whether a stream or an event is done.
    pub queries: u64,
    /// Copies from or to memory of the host that is not pinned.
    pub pageable: u64,
    /// Launches of kernels.
    pub launches: u64,
    /// Allocations of memory of the card.
    pub allocations: u64,
}

type Count = unsafe extern "C" fn(u32) -> u64;
type Launches = unsafe extern "C" fn(*const c_char) -> u64;

/// The simulated driver's functions that count.
fn functions() -> Option<(Count, Launches)> {
    static FOUND: OnceLock<Option<(Count, Launches)>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the driver is loaded already, so this runs no code; the functions of these names have these types.
        unsafe {
            let driver = libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
            if driver.is_null() {
                return None;
            }
            let find = |name: &CStr| {
                let found = libc::dlsym(driver, name.as_ptr());
                (!found.is_null()).then_some(found)
            };
            Some((
                std::mem::transmute::<*mut libc::c_void, Count>(find(c"phalanx_simulator_count")?),
                std::mem::transmute::<*mut libc::c_void, Launches>(find(
                    c"phalanx_simulator_launches",
                )?),
            ))
        }
    })
}

impl Counts {
    /// What was counted so far; `None` on a real card.
    pub fn now() -> Option<Counts> {
        let (count, _) = functions()?;
        // SAFETY: the function takes any number.
        let count = |kind| unsafe { count(kind) };
        Some(Counts {
            waits: count(0),
            queries: count(1),
            pageable: count(2),
            launches: count(3),
            allocations: count(6),
        })
    }

    /// What was counted since `earlier`.
    pub fn since(self, earlier: Counts) -> Counts {
        Counts {
            waits: self.waits - earlier.waits,
            queries: self.queries - earlier.queries,
            pageable: self.pageable - earlier.pageable,
            launches: self.launches - earlier.launches,
            allocations: self.allocations - earlier.allocations,
        }
    }
}

/// How often a kernel was launched in this process, by its name in the source; `None` on a real card.
pub fn launches(kernel: &str) -> Option<u64> {
    let (_, launches) = functions()?;
    let name = CString::new(kernel).expect("no kernel has a zero in its name");
    // SAFETY: the text ends with a zero.
    Some(unsafe { launches(name.as_ptr()) })
}

#[test]
fn a_step_of_training_waits_for_nothing() {
    let (device, _turn) = card!();
    let on = |shape: &[usize], seed| values(shape, DType::F32, seed).to_device(device).unwrap();
    let (x, gy) = (on(&[6, 5], 1), on(&[6, 4], 2));
    let mut params = [on(&[4, 5], 3)];
    let mut momenta = [None];
    let mut step = || {
        let y = x.linear(&params[0], None, Activation::None).unwrap();
        let grad = y.add(&gy).unwrap().linear_weight_grad(&x).unwrap();
        let config = SgdConfig {
            momentum: 0.9,
            ..SgdConfig::default()
        };
        sgd_step(&mut params, &[grad], &mut momenta, &config).unwrap();
    };
    // The first steps compile and load kernels.
    (0..2).for_each(|_| step());
    let (Some(before), Some(updates)) = (Counts::now(), launches("sgd")) else {
        eprintln!("SKIPPED: {}: a real card does not count", module_path!());
        return;
    };
    step();
    let made = Counts::now().unwrap().since(before);
    // A question whether a pinned buffer is free holds nobody. There is one for each buffer, where the
    // table of the parameters is sent again: simulated cards never give out an address twice.
    assert_eq!((made.waits, made.pageable), (0, 0), "{made:?}");
    assert!(made.queries <= 8, "{made:?}");
    assert!(made.launches >= 3, "{made:?}");
    assert_eq!(launches("sgd").unwrap() - updates, 1);
    // Reading a value is what waits.
    let before = Counts::now().unwrap();
    let _ = params[0]
        .sum(&[0, 1], false)
        .unwrap()
        .to_vec::<f32>()
        .unwrap();
    assert!(Counts::now().unwrap().since(before).waits > 0);
}
