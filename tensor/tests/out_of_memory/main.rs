//! The system refuses memory at every place where an operation asks for some: for its result, for
//! copies, for scratch. It is always the typed error, never an abort or a panic, and the same call
//! succeeds with the same bits once there is memory again.

mod cases;
#[path = "../level/mod.rs"]
mod level;

use cases::{CASES, Case};
use phalanx_tensor::{DType, Device, Error, Rng, Tensor, cpu};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

/// The system's allocator, which can be told to refuse.
struct Refusing;

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

/// Requests below this many bytes do not grow with a tensor, and are always granted.
const LARGE: usize = 4 << 10;
static ARMED: AtomicBool = AtomicBool::new(false);
/// Large requests that are granted before the first is refused.
static LEFT: AtomicUsize = AtomicUsize::new(0);

fn refuses(bytes: usize) -> bool {
    bytes >= LARGE
        && ARMED.load(SeqCst)
        && LEFT
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
            .is_err()
}

// SAFETY: what is granted is the system's, and a null pointer is how an allocator refuses.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if refuses(bytes) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, bytes) }
    }
}

fn operands(case: &Case, device: Device) -> Vec<Tensor> {
    let mut rng = Rng::new(5);
    let make =
        |shape: &&[usize]| Tensor::randn(shape.to_vec(), DType::F32, Device::cpu(0), &mut rng);
    let cast = |t: Tensor| t.cast(case.dtype)?.to_device(device);
    case.shapes
        .iter()
        .map(make)
        .map(|t| t.and_then(cast).unwrap())
        .collect()
}

fn bits(tensors: &[Tensor]) -> Vec<Vec<u8>> {
    tensors
        .iter()
        .map(|t| t.contiguous().unwrap().as_bytes().unwrap().to_vec())
        .collect()
}

/// Refuses memory after each number of grants, until the operation asks for no more.
fn refuse_everywhere(case: &Case, threads: usize) {
    let name = case.name;
    let want = bits(&(case.op)(&operands(case, Device::cpu(0))).unwrap());
    static FRESH: AtomicUsize = AtomicUsize::new(1000);
    for granted in 0.. {
        // Neither the device's pool nor a thread's scratch has anything from before.
        let operands = operands(case, Device::cpu(FRESH.fetch_add(1, SeqCst)));
        let run = || {
            LEFT.store(granted, SeqCst);
            ARMED.store(true, SeqCst);
            let got = (case.op)(&operands);
            ARMED.store(false, SeqCst);
            let refused = match &got {
                Ok(_) => false,
                Err(Error::OutOfMemory { op, .. }) => {
                    assert!(case.calls.contains(op), "{name}: the error names {op}");
                    true
                }
                Err(e) => panic!("{name}: {e}"),
            };
            let again = if refused { (case.op)(&operands) } else { got };
            assert!(
                bits(&again.unwrap()) == want,
                "{name}: other bits after a refusal"
            );
            refused
        };
        let thread = || cpu::with_threads(threads, run);
        let refused = std::thread::scope(|scope| scope.spawn(thread).join()).unwrap();
        if !refused {
            // The plainest kernels need less scratch.
            let asks = match cpu::simd_level() {
                cpu::SimdLevel::Baseline => 1,
                _ => case.asks,
            };
            assert!(granted >= asks, "{name} asked only {granted} times");
            return;
        }
        assert!(granted < 200, "{name} asks without end");
    }
}

#[test]
fn memory_that_cannot_be_had_is_an_error_and_the_call_can_be_repeated() {
    for case in CASES {
        for threads in [1, 3] {
            refuse_everywhere(case, threads);
        }
    }
}
