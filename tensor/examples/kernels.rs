//! Compiles every kernel into a folder, for machines that have a CUDA device, its driver and no compiler:
//!
//! ```sh
//! cargo run --package phalanx-tensor --features cuda --example kernels -- FOLDER 80 90
//! ```
//!
//! The numbers are compute capabilities (90 for 9.0); PTX for all other devices is always made. A program uses the
//! folder that the environment variable `PHALANX_KERNEL_CACHE` names. With `--share 0/2` before the numbers it does the
//! first of two shares of the work, which may run at once.
//!
//! A line for each kernel and capability says what it takes: `usage`, the family with its types, the kernel, the
//! capability, registers of a thread, bytes of its stack, bytes of spill stores and loads, bytes of shared memory.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(files) => {
            println!("{files} files");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: impl Iterator<Item = String>) -> Result<usize, String> {
    let folder = args
        .next()
        .ok_or("the first argument is missing: the folder that the kernels go to")?;
    let mut args = args.peekable();
    let share = match args.next_if(|arg| arg == "--share") {
        Some(_) => {
            let share = args.next().unwrap_or_default();
            let parts = share
                .split_once('/')
                .and_then(|(share, shares)| Some((share.parse().ok()?, shares.parse().ok()?)));
            let fits = parts.filter(|(share, shares): &(usize, usize)| share < shares);
            fits.ok_or_else(|| format!("{share:?} is not a share of the work, as 0/2"))?
        }
        None => (0, 1),
    };
    let number = |arg: String| {
        arg.parse()
            .map_err(|_| format!("{arg:?} is not a compute capability, as 90 for 9.0"))
    };
    let capabilities = args.map(number).collect::<Result<Vec<u32>, _>>()?;
    phalanx_tensor::kernels::compile_all(Path::new(&folder), &capabilities, share, |usage| {
        println!("usage {usage}")
    })
}
