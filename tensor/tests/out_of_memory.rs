//! The system refuses memory at every place where an operation asks for some: for its result, for
//! copies, for scratch. It is always the typed error, never an abort or a panic, and the same call
//! succeeds with the same bits once there is memory again.

mod level;

use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::ops::linear::Activation;
use phalanx_tensor::ops::norm::{BatchNormMask, BatchNormSaved};
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::ops::softmax::CrossEntropyConfig;
use phalanx_tensor::{DType, Device, Error, GeluKind, Result, Rng, Tensor, cpu};
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

type Op = fn(&[Tensor]) -> Result<Vec<Tensor>>;

/// An operation with the shapes of its operands, and how often it asks for memory at least.
struct Case {
    name: &'static str,
    dtype: DType,
    shapes: &'static [&'static [usize]],
    asks: usize,
    op: Op,
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
                Err(Error::OutOfMemory { .. }) => true,
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

const CONV: &[&[usize]] = &[
    &[9, 64, 9, 8],
    &[72, 64, 3, 3],
    &[9, 72, 9, 8],
    &[9, 72, 5, 4],
];

fn padded() -> Conv2dConfig {
    Conv2dConfig::default().with_padding(1)
}

fn targets(device: Device) -> Result<Tensor> {
    let mut rng = Rng::new(6);
    Tensor::randint(0, 2000, [3], device, &mut rng)
}

const CASES: &[Case] = &[
    Case {
        name: "conv2d",
        dtype: DType::F32,
        shapes: CONV,
        asks: 4,
        op: |t| Ok(vec![t[0].conv2d(&t[1], None, &padded())?]),
    },
    Case {
        name: "conv2d of half precision",
        dtype: DType::BF16,
        shapes: CONV,
        asks: 7,
        op: |t| Ok(vec![t[0].conv2d(&t[1], None, &padded())?]),
    },
    Case {
        name: "conv2d of double precision",
        dtype: DType::F64,
        shapes: CONV,
        asks: 1,
        op: |t| Ok(vec![t[0].conv2d(&t[1], None, &padded())?]),
    },
    Case {
        name: "conv2d_input_grad",
        dtype: DType::F32,
        shapes: CONV,
        asks: 4,
        op: |t| {
            let shape = t[0].shape().clone();
            Ok(vec![Tensor::conv2d_input_grad(
                &t[2],
                &t[1],
                shape,
                &padded(),
            )?])
        },
    },
    Case {
        name: "conv2d_input_grad with strides",
        dtype: DType::F32,
        shapes: CONV,
        asks: 4,
        op: |t| {
            let (shape, config) = (t[0].shape().clone(), padded().with_stride(2));
            Ok(vec![Tensor::conv2d_input_grad(
                &t[3], &t[1], shape, &config,
            )?])
        },
    },
    Case {
        name: "conv2d_weight_grad",
        dtype: DType::F32,
        shapes: CONV,
        asks: 4,
        op: |t| {
            let shape = t[1].shape().clone();
            Ok(vec![Tensor::conv2d_weight_grad(
                &t[0],
                &t[2],
                shape,
                &padded(),
            )?])
        },
    },
    Case {
        name: "matmul",
        dtype: DType::F32,
        shapes: &[&[130, 300], &[300, 90]],
        asks: 2,
        op: |t| Ok(vec![t[0].matmul(&t[1])?]),
    },
    Case {
        name: "matmul of half precision",
        dtype: DType::F16,
        shapes: &[&[130, 300], &[300, 90]],
        asks: 4,
        op: |t| Ok(vec![t[0].matmul(&t[1])?]),
    },
    Case {
        name: "matmul of stacks",
        dtype: DType::F64,
        shapes: &[&[4, 40, 60], &[4, 50, 60]],
        asks: 2,
        op: |t| Ok(vec![t[0].matmul(&t[1].t()?)?]),
    },
    Case {
        name: "linear and its gradients",
        dtype: DType::F32,
        shapes: &[&[65, 200], &[120, 200], &[65, 120]],
        asks: 4,
        op: |t| {
            let activation = Activation::Gelu(GeluKind::Tanh);
            Ok(vec![
                t[0].linear(&t[1], None, activation)?,
                t[2].linear_input_grad(&t[1])?,
                t[2].linear_weight_grad(&t[0])?,
            ])
        },
    },
    Case {
        name: "batch_norm and its gradients",
        dtype: DType::F32,
        shapes: &[&[2, 2000, 2], &[2, 2000, 2]],
        asks: 7,
        op: |t| {
            let out = t[0].batch_norm(None, None, 1e-5)?;
            let saved = BatchNormSaved {
                input: &t[0],
                mean: &out.mean,
                invstd: &out.invstd,
                weight: None,
                bias: None,
                activation: BatchNormMask::Linear,
            };
            let grads = Tensor::batch_norm_backward(&t[1], &saved)?;
            Ok(vec![
                out.out,
                out.var,
                grads.input,
                grads.weight,
                grads.bias,
            ])
        },
    },
    Case {
        name: "layer_norm and its gradients",
        dtype: DType::F32,
        shapes: &[&[40, 1200], &[1200]],
        asks: 5,
        op: |t| {
            let out = t[0].layer_norm([1200], Some(&t[1]), None, 1e-5)?;
            let stats = (&out.mean, &out.rstd);
            let grads = t[0].layer_norm_backward(&t[0], [1200], Some(&t[1]), stats.0, stats.1)?;
            Ok(vec![out.out, grads.input, grads.weight.unwrap()])
        },
    },
    Case {
        name: "softmax",
        dtype: DType::F32,
        shapes: &[&[40, 60]],
        asks: 2,
        op: |t| Ok(vec![t[0].softmax(0)?]),
    },
    Case {
        name: "cross_entropy with weights",
        dtype: DType::BF16,
        shapes: &[&[3, 2000], &[2000]],
        asks: 2,
        op: |t| {
            let config = CrossEntropyConfig {
                weight: Some(t[1].clone()),
                label_smoothing: 0.1,
                ..CrossEntropyConfig::default()
            };
            let targets = targets(t[0].device())?;
            let out = t[0].cross_entropy(&targets, &config)?;
            let grad = Tensor::ones((), DType::F32, t[0].device())?; // as the loss
            let back = grad.cross_entropy_backward(&t[0], &targets, &out.saved, &config)?;
            Ok(vec![out.loss, back])
        },
    },
    Case {
        name: "reductions",
        dtype: DType::BF16,
        shapes: &[&[60, 3000]],
        asks: 4,
        op: |t| {
            Ok(vec![
                t[0].sum(&[0], false)?,
                t[0].var(&[1], 1, false)?,
                t[0].argmax(0)?,
            ])
        },
    },
    Case {
        name: "poolings",
        dtype: DType::F32,
        shapes: &[&[2, 8, 20, 20]],
        asks: 3,
        op: |t| {
            let config = Pool2dConfig::new([2, 2]);
            let (max, at) = t[0].max_pool2d(&config)?;
            Ok(vec![max, at, t[0].avg_pool2d(&config)?])
        },
    },
    Case {
        name: "pieces and elements",
        dtype: DType::F32,
        shapes: &[&[5000]],
        asks: 4,
        op: |t| {
            let pieces = t[0].chunk(2500, 0)?;
            let elements = t[0].to_vec::<f32>()?;
            let joined = Tensor::cat(&[&pieces[2], &t[0]], 0)?;
            Ok(vec![
                joined,
                Tensor::from_slice(&elements, [5000], t[0].device())?,
            ])
        },
    },
];

#[test]
fn memory_that_cannot_be_had_is_an_error_and_the_call_can_be_repeated() {
    for case in CASES {
        for threads in [1, 3] {
            refuse_everywhere(case, threads);
        }
    }
}
