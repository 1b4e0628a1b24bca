//! Kernels compiled ahead, for machines that have a driver and no compiler, and what each takes of a card.

use crate::cuda::{Cache, Image, Target, Variant, compile, compile_aloud, kernel_key, nvrtc};
use std::fmt;
use std::path::Path;

/// What a kernel takes of a card, as the assembler says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The family of the kernel and its element types, `unary-f32`.
    pub variant: String,
    /// The kernel's name in the source.
    pub kernel: String,
    /// The compute capability, as 90 for 9.0.
    pub capability: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory that a thread has as its stack.
    pub stack: u32,
    /// Bytes that a thread stores to local memory because registers are missing.
    pub spill_stores: u32,
    /// Bytes that a thread loads from there.
    pub spill_loads: u32,
    /// Bytes of shared memory of a block, without what a launch adds.
    pub shared: u32,
}

/// The fields in their order, with spaces between them.
impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage {
            variant,
            kernel,
            capability,
            registers,
            stack,
            spill_stores,
            spill_loads,
            shared,
        } = self;
        write!(f, "{variant} {kernel} {capability} {registers} {stack} ")?;
        write!(f, "{spill_stores} {spill_loads} {shared}")
    }
}

/// Compiles every kernel for each of the compute capabilities `capabilities` (as 90 for 9.0), and as
/// PTX for all later ones, into the folder `folder`. With `PHALANX_KERNEL_CACHE` set to it, a program
/// needs no compiler. Of `shares` shares of the work, which may run at once, it does the one with the
/// number `share`, counted from 0. `each` hears what each kernel takes of each card.
///
/// Returns the number of files.
///
/// # Errors
/// A sentence: NVRTC is missing, a kernel does not compile, a file cannot be written.
pub fn compile_all(
    folder: &Path,
    capabilities: &[u32],
    (share, shares): (usize, usize),
    mut each: impl FnMut(Usage),
) -> Result<usize, String> {
    let version = nvrtc()?.version;
    let cache = Cache::at(folder);
    let mut files = 0;
    for variant in Variant::all().skip(share).step_by(shares.max(1)) {
        let mut store = |target, image: &Image| {
            let key = kernel_key(&variant, target, Some(version));
            files += 1;
            let stored = cache.store(&key, image);
            stored.map_err(|e| format!("{}: {e}", folder.display()))
        };
        let mut ptx = None;
        for &capability in capabilities {
            let (image, on_the_way, log) = compile_aloud(&variant, capability)?;
            store(Target::Cubin(capability), &image)?;
            ptx = ptx.or(on_the_way);
            let usages = usages(&variant.name(), capability, &log);
            usages.into_iter().for_each(&mut each);
        }
        let ptx = ptx.map_or_else(|| compile(&variant, Target::Ptx), Ok)?;
        store(Target::Ptx, &ptx)?;
    }
    Ok(files)
}

/// What the assembler has said of each kernel in its log.
fn usages(variant: &str, capability: u32, log: &str) -> Vec<Usage> {
    let mut all: Vec<Usage> = Vec::new();
    let mut own = false;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            all.push(Usage {
                variant: variant.to_owned(),
                kernel: rest.split('\'').next().unwrap_or_default().to_owned(),
                capability,
                registers: 0,
                stack: 0,
                spill_stores: 0,
                spill_loads: 0,
                shared: 0,
            });
        }
        let Some(usage) = all.last_mut() else {
            continue;
        };
        if let Some((_, of)) = line.split_once("Function properties for ") {
            own = of.trim() == usage.kernel;
        }
        let number = |what: &str| {
            let before = line.split_once(what)?.0.trim_end();
            let start = before.rfind(|mark: char| !mark.is_ascii_digit());
            before[start.map_or(0, |at| at + 1)..].parse().ok()
        };
        usage.registers = number("registers").unwrap_or(usage.registers);
        usage.shared = number("bytes smem").unwrap_or(usage.shared);
        // A function that the kernel calls has a stack of its own, on top of the kernel's.
        usage.stack = match (number("bytes stack frame"), own) {
            (Some(stack), true) => usage.stack.max(stack),
            (Some(stack), false) => usage.stack + stack,
            (None, _) => usage.stack,
        };
        usage.spill_stores += number("bytes spill stores").unwrap_or(0);
        usage.spill_loads += number("bytes spill loads").unwrap_or(0);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_log_is_read() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'sum' for 'sm_90'
ptxas info    : Function properties for sum
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 33 registers, used 1 barriers, 16 bytes cumulative stack size, 128 bytes smem, 568 bytes cmem[0]
ptxas info    : Compiling entry function 'copy' for 'sm_90'
ptxas info    : Function properties for copy
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 552 bytes cmem[0]
";
        let lines: Vec<String> = usages("reduce-f32", 90, log)
            .iter()
            .map(Usage::to_string)
            .collect();
        assert_eq!(
            lines,
            [
                "reduce-f32 sum 90 33 16 8 12 128",
                "reduce-f32 copy 90 8 0 0 0 0"
            ]
        );
    }
}
