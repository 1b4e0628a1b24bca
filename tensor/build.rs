//! Tells the crate how far it is optimised, which it cannot ask: the profile of a workspace does not reach
//! the projects that depend on its crates, and kernels without optimisation are some 50 times slower.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let level = std::env::var("OPT_LEVEL").unwrap_or_default();
    println!("cargo::rustc-env=PHALANX_OPT_LEVEL={level}");
}
