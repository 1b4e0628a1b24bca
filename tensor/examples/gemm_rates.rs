//! Rates of the matrix product on the shapes of training, beside the peak of this core.
use phalanx_tensor::cpu::gemm::{Epilogue, MatMut, MatRef, Scalar, gemm};
use phalanx_tensor::cpu::with_threads;
use std::time::Instant;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fma_loop(n: usize) -> f32 {
    use std::arch::x86_64::*;
    let mut a = [_mm512_set1_ps(1.0); 16];
    let (x, y) = (_mm512_set1_ps(0.9999), _mm512_set1_ps(1e-4));
    for _ in 0..n {
        for a in &mut a {
            *a = _mm512_fmadd_ps(*a, x, y);
        }
        for a in &mut a {
            unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) *a) };
        }
    }
    a.into_iter().map(|v| _mm512_reduce_add_ps(v)).sum()
}

fn peak(threads: usize) -> f64 {
    let one = || {
        let n = 2_000_000;
        let mut rates: Vec<f64> = (0..5)
            .map(|_| {
                let t = Instant::now();
                std::hint::black_box(unsafe { fma_loop(std::hint::black_box(n)) });
                (n * 16 * 16 * 2) as f64 / t.elapsed().as_secs_f64() * 1e-9
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        rates[2]
    };
    std::thread::scope(|s| {
        let h: Vec<_> = (0..threads).map(|_| s.spawn(one)).collect();
        h.into_iter().map(|h| h.join().unwrap()).sum()
    })
}

fn huge<T>(x: impl ExactSizeIterator<Item = T>) -> &'static mut [T] {
    let bytes = (x.len() * size_of::<T>()).next_multiple_of(2 << 20);
    let l = std::alloc::Layout::from_size_align(bytes, 2 << 20).unwrap();
    unsafe {
        let p = std::alloc::alloc(l).cast::<T>();
        libc::madvise(p.cast(), bytes, libc::MADV_HUGEPAGE);
        let n = x.len();
        x.enumerate().for_each(|(i, x)| p.add(i).write(x));
        std::slice::from_raw_parts_mut(p, n)
    }
}

fn rate<T: Scalar>(name: &str, (m, n, k): (usize, usize, usize), ta: bool, tb: bool, peak: f64, x: fn(f32) -> T) {
    let a = huge((0..m * k).map(|i| x((i % 17) as f32 * 0.1 * V - 0.8)));
    let b = huge((0..n * k).map(|i| x((i % 13) as f32 * 0.1 * V - 0.6)));
    let c = huge((0..m * n).map(|_| T::default()));
    let a = if ta { MatRef::row_major(a, k, m).t() } else { MatRef::row_major(a, m, k) };
    let b = if tb { MatRef::row_major(b, n, k).t() } else { MatRef::row_major(b, k, n) };
    let flops = (2 * m * n * k) as f64;
    let n_iter = ((1.5e8 / flops) as usize).max(1);
    let mut run = || {
        for _ in 0..n_iter {
            gemm(MatMut::row_major(&mut *c, m, n), a, b, &Epilogue::default());
        }
    };
    run();
    let mut rates: Vec<f64> = (0..11)
        .map(|_| {
            let t = Instant::now();
            run();
            flops * n_iter as f64 / t.elapsed().as_secs_f64() * 1e-9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{name:8} {m:5}x{n:5}x{k:5} {:8.1} GFLOP/s {:6.1} us {:5.2} of peak", rates[5], flops / rates[5] * 1e-3, rates[5] / peak);
}

fn main() {
    if let Some(which) = std::env::args().nth(1) {
        return with_threads(1, || {
            for _ in 0..8 {
                match which.as_str() {
                    "sq" => rate("sq", (1024, 1024, 1024), false, false, 1.0, |x| x),
                    "fwd" => rate("fwd", (128, 1024, 1024), false, true, 1.0, |x| x),
                    "dw" => rate("dw", (1024, 1024, 128), true, false, 1.0, |x| x),
                    _ => rate("dx", (128, 1024, 1024), false, false, 1.0, |x| x),
                }
            }
        });
    }
    for threads in [1, 2] {
        with_threads(threads, || {
            let p = peak(threads);
            println!("threads {threads}, FMA peak {p:.1}");
            rate("square", (1024, 1024, 1024), false, false, p, |x| x);
            rate("squareT", (1024, 1024, 1024), false, true, p, |x| x);
            rate("sq512", (512, 512, 512), false, false, p, |x| x);
            rate("sq2048", (2048, 2048, 2048), false, false, p, |x| x);
            for b in [128, 64] {
                rate("fwd1", (b, 1024, 784), false, true, p, |x| x);
                rate("fwd2", (b, 1024, 1024), false, true, p, |x| x);
                rate("fwd3", (b, 10, 1024), false, true, p, |x| x);
                rate("dx2", (b, 1024, 1024), false, false, p, |x| x);
                rate("dx3", (b, 1024, 10), false, false, p, |x| x);
                rate("dw1", (1024, 784, b), true, false, p, |x| x);
                rate("dw2", (1024, 1024, b), true, false, p, |x| x);
                rate("dw3", (10, 1024, b), true, false, p, |x| x);
            }
            rate("tfwd1", (64, 128, 784), false, true, p, |x| x);
            rate("tfwd2", (64, 10, 128), false, true, p, |x| x);
            rate("tdw1", (128, 784, 64), true, false, p, |x| x);
            rate("tdw2", (10, 128, 64), true, false, p, |x| x);
            rate("tdx2", (64, 128, 10), false, false, p, |x| x);
            rate("gemv", (1, 1024, 1024), false, false, p, |x| x);
            rate("gemvT", (1, 1024, 1024), false, true, p, |x| x);
            rate("f64", (512, 512, 512), false, false, p / 2.0, f64::from);
            rate("bf16", (1024, 1024, 1024), false, false, p, half::bf16::from_f32);
            rate("f16", (1024, 1024, 1024), false, true, p, half::f16::from_f32);
        });
    }
}
const V: f32 = 0.0;
