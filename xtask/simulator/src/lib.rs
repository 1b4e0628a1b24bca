//! A simulated CUDA device. The module `ptx` translates the PTX text that NVRTC makes to C and compiles it; [`exec`] runs the
//! grid of a kernel on the CPU, checks every access, and reports what is wrong with the line of the `.cu` file.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!(
    "the simulated device switches between the threads of a block by x86-64 Linux code of its own"
);

pub mod exec;
mod ptx;
