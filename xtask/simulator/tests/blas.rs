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

/// The code of the question for an algorithm, and the one that is found.
fn heuristic(
    library: u64,
    product: u64,
    [a, b, c]: [u64; 3],
    preference: u64,
) -> (u32, Option<Heuristic>) {
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
    // SAFETY: it was written where one was found.
    let heuristic = (code == 0 && found == 1).then(|| unsafe { heuristic.assume_init() });
    (code, heuristic)
}

/// The library, and a product and a preference of which nothing is said yet.
fn start() -> [u64; 3] {
    let (mut library, mut product, mut preference) = (0, 0, 0);
    good!(cublasLtCreate(Out::to(&mut library)));
    good!(cublasLtMatmulDescCreate(
        Out::to(&mut product),
        COMPUTE_32F,
        F32
    ));
    good!(cublasLtMatmulPreferenceCreate(Out::to(&mut preference)));
    [library, product, preference]
}

/// Multiplies, and gives the code of the call and what lies in the result.
fn multiply(fault: Fault) -> (u32, Option<Vec<f32>>) {
    let _gpu = Gpu::new(0);
    let (work, other) = (stream(), stream());
    let [library, product, preference] = start();
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
    let (code, found) = heuristic(library, product, [a, b, c], preference);
    assert_eq!(code, 0);
    let Some(Heuristic {
        algorithm,
        workspace,
        ..
    }) = found
    else {
        panic!("there is an algorithm")
    };
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

/// What a program does wrong with an epilogue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// There is no auxiliary matrix.
    NoAux,
    /// It has a leading dimension that 8 does not divide.
    AuxLd,
    /// It lies at another address than the algorithm was chosen for.
    AuxAlignment,
    /// It ends too early.
    AuxShort,
    /// The bias lies at another address than the algorithm was chosen for.
    BiasAlignment,
    /// The algorithm was chosen when there was no address, which stands for the best alignment.
    LateAddress,
}

/// A product with a bias and GELU, whose arguments are kept; the code of the call that fails.
fn gelu(wrong: Wrong) -> u32 {
    const ROWS: u64 = 8;
    const COLS: u64 = 3;
    const GELU_AUX_BIAS: u32 = 164;
    let _gpu = Gpu::new(0);
    let work = stream();
    let [library, product, preference] = start();
    let describe = |which, address: u64| {
        assert_eq!(
            set(cublasLtMatmulDescSetAttribute, product, which, address),
            0
        );
    };
    let code = set(cublasLtMatmulDescSetAttribute, product, 7, GELU_AUX_BIAS);
    assert_eq!(code, 0);
    if wrong != Wrong::LateAddress {
        describe(8, 16);
        describe(11, 16);
    }
    describe(12, if wrong == Wrong::AuxLd { 12 } else { 16 });
    let layouts = [layout(ROWS, 1), layout(1, COLS), layout(ROWS, COLS)];
    let (code, found) = heuristic(library, product, layouts, preference);
    let Some(Heuristic { algorithm, .. }) = found else {
        return code;
    };
    let left: Vec<f32> = (0..ROWS).map(|i| i as f32 - 4.0).collect();
    let right = [1f32, -0.5, 0.25];
    let bias = [0.5f32; 16];
    let (x, y, b) = (
        floats(work, &left),
        floats(work, &right),
        floats(work, &bias),
    );
    let z = ints(work, (ROWS * COLS) as usize);
    // Columns of 16 elements, and 4 before the first.
    let kept = if wrong == Wrong::AuxShort { 43 } else { 44 };
    let kept = ints(work, kept) + 16;
    describe(
        8,
        match wrong {
            Wrong::BiasAlignment => b + 4,
            Wrong::LateAddress => b + 16,
            _ => b,
        },
    );
    describe(
        11,
        match wrong {
            Wrong::NoAux => 0,
            Wrong::AuxAlignment => kept + 8,
            _ => kept,
        },
    );
    let [alpha, beta] = [1f32, 0.0];
    let algorithms: [Algorithm; 1] = [algorithm];
    let [la, lb, lc] = layouts;
    // SAFETY: the factors and the algorithm are there for the call.
    let code = unsafe {
        cublasLtMatmul(
            library,
            product,
            (&raw const alpha).cast(),
            x,
            la,
            y,
            lb,
            (&raw const beta).cast(),
            z,
            lc,
            z,
            lc,
            Array::of(&algorithms),
            0,
            0,
            work,
        )
    };
    if code != 0 {
        return code;
    }
    let (code, results) = read(z, (ROWS * COLS) as usize, work);
    if code != 0 {
        return code;
    }
    for col in 0..COLS {
        let (code, arguments) = read(kept + col * 64, ROWS as usize, work);
        assert_eq!(code, 0);
        for row in 0..ROWS {
            let float = |bits: i32| f32::from_bits(bits as u32);
            let sum = left[row as usize] * right[col as usize] + 0.5;
            assert_eq!(float(arguments[row as usize]), sum, "{row} {col}");
            let exact = 0.5 * sum * (1.0 + (0.797_884_6 * (sum + 0.044_715 * sum.powi(3))).tanh());
            let got = float(results[(row + col * ROWS) as usize]);
            assert!((got - exact).abs() < 2e-3, "{row} {col}: {got} {exact}");
        }
    }
    [x, y, b, z, kept - 16]
        .into_iter()
        .for_each(|address| free(address, work));
    0
}

macro_rules! programs {
    ($($name:ident $code:expr, $succeeds:literal;)*) => {
        const PROGRAMS: &[(&str, fn())] = &[$((stringify!($name), || {
            assert_eq!($code == 0, $succeeds);
        }),)*];
    };
}
programs! {
    right multiply(Fault::None).0, true;
    bias multiply(Fault::Bias).0, false;
    alignment multiply(Fault::Alignment).0, false;
    workspace multiply(Fault::Workspace).0, false;
    algorithm multiply(Fault::Algorithm).0, false;
    destroyed multiply(Fault::Destroyed).0, false;
    unwritten multiply(Fault::Unwritten).0, false;
    unordered multiply(Fault::Unordered).0, false;
    short multiply(Fault::Short).0, false;
    gelu_right gelu(Wrong::Nothing), true;
    gelu_no_aux gelu(Wrong::NoAux), false;
    gelu_aux_ld gelu(Wrong::AuxLd), false;
    gelu_aux_alignment gelu(Wrong::AuxAlignment), false;
    gelu_aux_short gelu(Wrong::AuxShort), false;
    gelu_bias_alignment gelu(Wrong::BiasAlignment), false;
    gelu_late_address gelu(Wrong::LateAddress), false;
}

#[test]
fn program() {
    run_program(PROGRAMS);
}

#[test]
fn a_product_is_right() {
    run("right", &[]).finds_nothing();
    run("gelu_right", &[]).finds_nothing();
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
    run("gelu_no_aux", &[]).finds(&["wants an auxiliary matrix"]);
    run("gelu_aux_ld", &[]).finds(&["the leading dimension 12"]);
    run("gelu_aux_alignment", &[]).finds(&["has an auxiliary matrix at", "16 bytes"]);
    run("gelu_aux_short", &[]).finds(&["operand aux", "behind the end"]);
    run("gelu_bias_alignment", &[]).finds(&["has a bias at", "16 bytes"]);
    run("gelu_late_address", &[]).finds(&["has a bias at", "256 bytes"]);
}

#[test]
fn a_missing_wait_is_found_whatever_the_order() {
    for seed in 0..10 {
        let seed = seed.to_string();
        let outcome = run("unordered", &[("PHALANX_SIMULATOR_SEED", &seed)]);
        outcome.finds(&["Unordered use", "cublasLtMatmul"]);
    }
}
