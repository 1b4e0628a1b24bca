//! The stand-in for cuBLASLt: a product is right, and each planted fault is reported.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;

use driver::*;
use simulator::blas::product::Algorithm;
use simulator::blas::*;
use simulator::driver::alloc::*;
use simulator::driver::copy::*;
use simulator::driver::pointers::{Array, Out};
use simulator::driver::stream::*;

/// What a program does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A bias where there is none.
    Bias,
    /// The operand A, 4 bytes further on.
    Alignment,
    /// Less workspace than the algorithm needs.
    Workspace,
    /// An algorithm for another problem.
    Algorithm,
    /// A description that is gone.
    Destroyed,
    /// An operand that nothing has written.
    Unwritten,
    /// An operand that another stream writes.
    Unordered,
    /// An operand that ends too early.
    Short,
}

const F32: u32 = 0;
const COMPUTE_32F: u32 = 68;
const M: u64 = 3;
const N: u64 = 5;
const K: u64 = 130;

fn layout(rows: u64, cols: u64) -> u64 {
    let mut layout = 0;
    good!(cublasLtMatrixLayoutCreate(
        Out::to(&mut layout),
        F32,
        rows,
        cols,
        rows as i64
    ));
    layout
}

fn set<V>(
    set: unsafe extern "C" fn(u64, u32, Array<u8>, usize) -> u32,
    of: u64,
    which: u32,
    v: V,
) -> u32 {
    let bytes = Array::at(std::ptr::from_ref(&v) as u64);
    // SAFETY: the value is there for the call.
    unsafe { set(of, which, bytes, size_of::<V>()) }
}

fn floats(stream: u64, values: &[f32]) -> u64 {
    let mut address = 0;
    let bytes = size_of_val(values);
    good!(cuMemAllocAsync(Out::to(&mut address), bytes, stream));
    let from = values.as_ptr().cast();
    good!(cuMemcpyHtoDAsync_v2(address, from, bytes, stream));
    address
}

/// Multiplies, and gives the code of the call and what lies in the result.
fn multiply(fault: Fault) -> (u32, Option<Vec<f32>>) {
    let _gpu = Gpu::new(0);
    let (work, other) = (stream(), stream());
    let (mut library, mut product, mut preference) = (0, 0, 0);
    good!(cublasLtCreate(Out::to(&mut library)));
    good!(cublasLtMatmulDescCreate(
        Out::to(&mut product),
        COMPUTE_32F,
        F32
    ));
    good!(cublasLtMatmulPreferenceCreate(Out::to(&mut preference)));
    assert_eq!(
        set(
            cublasLtMatmulPreferenceSetAttribute,
            preference,
            1,
            1u64 << 20
        ),
        0
    );
    assert_eq!(
        set(cublasLtMatmulPreferenceSetAttribute, preference, 3, 2u32),
        0
    );
    let [a, b, c] = [layout(M, K), layout(K, N), layout(M, N)];
    let mut heuristic = std::mem::MaybeUninit::<Heuristic>::uninit();
    let mut found = 0;
    // SAFETY: all handles are alive, and there is room for one result.
    let code = unsafe {
        let to = &mut *heuristic.as_mut_ptr();
        cublasLtMatmulAlgoGetHeuristic(
            library,
            product,
            a,
            b,
            c,
            c,
            preference,
            1,
            Out::to(to),
            Out::to(&mut found),
        )
    };
    assert_eq!((code, found), (0, 1));
    // SAFETY: the call has succeeded.
    let Heuristic {
        algorithm,
        workspace,
        ..
    } = unsafe { heuristic.assume_init() };
    assert!(workspace > 0, "a long sum has parts");
    let left: Vec<f32> = (0..M * K).map(|i| (i % 7) as f32).collect();
    let right: Vec<f32> = (0..K * N).map(|i| (i % 5) as f32).collect();
    let short = if fault == Fault::Short {
        left.len() - 1
    } else {
        left.len()
    };
    let mut x = floats(work, &left[..short]);
    let y = match fault {
        Fault::Unwritten => ints(work, right.len()),
        Fault::Unordered => floats(other, &right),
        _ => floats(work, &right),
    };
    if fault == Fault::Unordered {
        // It is there before `work` is used, but `work` does not wait for the write after.
        join(work, other);
        write(y, &vec![0; right.len()], other);
    }
    let z = ints(work, (M * N) as usize);
    let scratch = ints(work, workspace / 4);
    match fault {
        Fault::Bias => assert_eq!(set(cublasLtMatmulDescSetAttribute, product, 7, 4u32), 0),
        Fault::Algorithm => assert_eq!(set(cublasLtMatmulDescSetAttribute, product, 3, 0u32), 0),
        Fault::Destroyed => good!(cublasLtMatmulDescDestroy(product)),
        Fault::Alignment => x += 4,
        _ => {}
    }
    let d = if fault == Fault::Algorithm {
        layout(M, N)
    } else {
        c
    };
    if fault == Fault::Algorithm {
        assert_eq!(set(cublasLtMatrixLayoutSetAttribute, a, 5, 1i32), 0);
        assert_eq!(set(cublasLtMatrixLayoutSetAttribute, a, 6, 7i64), 0);
    }
    let bytes = if fault == Fault::Workspace {
        workspace - 1
    } else {
        workspace
    };
    let [alpha, beta] = [2f32, 0.0];
    let algorithms: [Algorithm; 1] = [algorithm];
    // SAFETY: the factors and the algorithm are there for the call.
    let code = unsafe {
        cublasLtMatmul(
            library,
            product,
            (&raw const alpha).cast(),
            x,
            a,
            y,
            b,
            (&raw const beta).cast(),
            z,
            c,
            z,
            d,
            Array::of(&algorithms),
            scratch,
            bytes,
            work,
        )
    };
    if code != 0 {
        return (code, None);
    }
    let (read, bits) = read(z, (M * N) as usize, work);
    if read != 0 {
        return (read, None);
    }
    good!(cuStreamSynchronize(other));
    [x, y, z, scratch]
        .into_iter()
        .for_each(|address| free(address, work));
    let got: Vec<f32> = bits
        .into_iter()
        .map(|bits| f32::from_bits(bits as u32))
        .collect();
    for row in 0..M {
        for col in 0..N {
            let terms =
                (0..K).map(|k| left[(row + k * M) as usize] * right[(k + col * K) as usize]);
            let expected = 2.0 * terms.sum::<f32>();
            assert_eq!(got[(row + col * M) as usize], expected, "{row} {col}");
        }
    }
    (0, Some(got))
}

macro_rules! programs {
    ($($name:ident $fault:ident)*) => {
        const PROGRAMS: &[(&str, fn())] = &[$((stringify!($name), || {
            let (code, _) = multiply(Fault::$fault);
            assert_eq!(code != 0, Fault::$fault != Fault::None);
        }),)*];
    };
}
programs! {
    right None
    bias Bias
    alignment Alignment
    workspace Workspace
    algorithm Algorithm
    destroyed Destroyed
    unwritten Unwritten
    unordered Unordered
    short Short
}

#[test]
fn program() {
    run_program(PROGRAMS);
}

#[test]
fn a_product_is_right() {
    run("right", &[]).finds_nothing();
}

#[test]
fn faults_are_found() {
    run("bias", &[]).finds(&["the algorithm was chosen for another problem"]);
    run("alignment", &[]).finds(&["A lies at", "256 bytes"]);
    run("workspace", &[]).finds(&["of workspace", "are needed"]);
    run("algorithm", &[]).finds(&["the algorithm was chosen for another problem"]);
    run("destroyed", &[]).finds(&["it was destroyed, or never made"]);
    run("unwritten", &[]).finds(&["nothing has written", "operand B"]);
    run("short", &[]).finds(&["operand A", "behind the end"]);
}

#[test]
fn a_missing_wait_is_found_whatever_the_order() {
    for seed in 0..10 {
        let seed = seed.to_string();
        let outcome = run("unordered", &[("PHALANX_SIMULATOR_SEED", &seed)]);
        outcome.finds(&["Unordered use", "cublasLtMatmul"]);
    }
}
