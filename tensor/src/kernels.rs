//! Kernels compiled ahead, for machines that have a driver and no compiler.

use crate::cuda::{Cache, Target, Variant, compile, kernel_key, nvrtc};
use std::path::Path;

/// Compiles every kernel for each of the compute capabilities `capabilities` (as 90 for 9.0), and as
/// PTX for all later ones, into the folder `folder`. With `PHALANX_KERNEL_CACHE` set to it, a program
/// needs no compiler. Returns the number of files.
///
/// # Errors
/// A sentence: NVRTC is missing, a kernel does not compile, a file cannot be written.
pub fn compile_all(folder: &Path, capabilities: &[u32]) -> Result<usize, String> {
    let version = nvrtc()?.version;
    let cache = Cache::at(folder);
    let cubins = capabilities
        .iter()
        .map(|capability| Target::Cubin(*capability));
    let targets: Vec<Target> = cubins.chain([Target::Ptx]).collect();
    let mut files = 0;
    for variant in Variant::all() {
        for &target in &targets {
            let image = compile(&variant, target)?;
            let key = kernel_key(&variant, target, Some(version));
            let stored = cache.store(&key, &image);
            stored.map_err(|e| format!("{}: {e}", folder.display()))?;
            files += 1;
        }
    }
    Ok(files)
}
