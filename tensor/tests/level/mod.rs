//! Runs the tests of a program at a lower level of instructions than the processor has, if the environment variable
//! `PHALANX_TEST_LEVEL` names one: `baseline`, `avx2`, `avx512` (without the matrix unit) or `amx`. Only tests read it.
//!
//! Every test program includes this file. Its limit is set before `main`, so that no test runs without it, and a line
//! `instructions: LEVEL` says so, which `cargo xtask test` counts. On a processor that lacks the level the program says
//! `no instructions: LEVEL` and runs no test: one that ran at another level would say nothing.
#![allow(unsafe_code)]

use phalanx_tensor::cpu::internals::has_matrix_unit;
use phalanx_tensor::cpu::internals::limit;
use phalanx_tensor::cpu::{SimdLevel, simd_level};
use std::process::exit;

/// The system calls it before `main`.
#[cfg(target_os = "linux")]
#[used]
// SAFETY: the section holds functions of this signature; what it calls of the standard library (environment, output,
// exit) needs no preparation by the library's own start.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn before_main() {
        if let Ok(name) = std::env::var("PHALANX_TEST_LEVEL") {
            lower(&name);
        }
    }
    before_main
};

fn lower(name: &str) {
    let (level, matrix_unit) = match name {
        "baseline" => (SimdLevel::Baseline, false),
        "avx2" => (SimdLevel::Avx2, false),
        "avx512" => (SimdLevel::Avx512, false),
        "amx" => (SimdLevel::Avx512, true),
        _ => {
            eprintln!("PHALANX_TEST_LEVEL={name}, which is none of baseline, avx2, avx512, amx");
            exit(1)
        }
    };
    // SAFETY: this is the only thread of the process.
    unsafe { limit(level, matrix_unit) };
    if (simd_level(), has_matrix_unit()) != (level, matrix_unit) {
        println!("no instructions: {name}");
        exit(0)
    }
    println!("instructions: {name}");
}
