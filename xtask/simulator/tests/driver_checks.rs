//! What the driver's programs are checked for where the environment asks for it: races within a launch.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;

use driver::*;
use simulator::driver::stream::*;

const N: usize = 1000;

/// Each thread reads an element and writes the next one, which another thread reads.
fn moves_up() {
    let gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N + 1);
    assert_eq!(gpu.fill(a, x, 1, N as i32 + 1), 0);
    let (next, n) = (x + 4, N as i32);
    assert_eq!(gpu.launch("add", a, n, &[&next, &x, &x, &n]), 0);
    let code = call!(cuStreamSynchronize(a));
    println!("code {code}");
    if code == 0 {
        free(x, a);
    }
}

#[test]
fn program() {
    run_program(&[("moves up", moves_up)]);
}

#[test]
fn races_within_a_launch_are_found_where_they_are_looked_for() {
    run("moves up", &[]).finds_nothing();
    run("moves up", &[("PHALANX_SIMULATOR_CHECK", "0")]).finds_nothing();
    for seed in ["0", "1", "2"] {
        let checks = [
            ("PHALANX_SIMULATOR_CHECK", "1"),
            ("PHALANX_SIMULATOR_SEED", seed),
        ];
        let outcome = run("moves up", &checks);
        outcome.finds(&[
            "kernel 'add'",
            "of the allocation of 4004 bytes",
            "which thread (",
            "was operation 3 of",
        ]);
        assert!(outcome.output.contains("code 719"), "{}", outcome.output);
    }
}
