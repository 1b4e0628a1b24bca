//! Compiles every kernel into a folder, for machines that have a CUDA device, its driver and no compiler:
//!
//! ```sh
//! cargo run --package phalanx-tensor --features cuda --example kernels -- FOLDER 80 90
//! ```
//!
//! The numbers are compute capabilities (90 for 9.0); PTX for all other devices is always made. A program uses the
//! folder that the environment variable `PHALANX_KERNEL_CACHE` names.

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
    let number = |arg: String| {
        arg.parse()
            .map_err(|_| format!("{arg:?} is not a compute capability, as 90 for 9.0"))
    };
    let capabilities = args.map(number).collect::<Result<Vec<u32>, _>>()?;
    phalanx_tensor::kernels::compile_all(Path::new(&folder), &capabilities)
}
