//! What a launch may ask for: the limits of a card of compute capability 8.0 and later, and the simulator's own.

use super::Launch;
use super::finding::Finding;
use super::kernel::Kernel;

/// The most threads of a block.
const THREADS: u32 = 1024;
/// The most static shared memory of a kernel, and of a block with what its launch adds.
const STATIC_SHARED: usize = 48 * 1024;
const SHARED: usize = 227 * 1024;
/// The most local memory of a thread.
const LOCAL: usize = 512 * 1024;

/// The finding for a launch that asks for too much.
pub fn check(kernel: &Kernel, launch: &Launch<'_>) -> Result<(), Finding> {
    let [x, y, z] = launch.block;
    let threads = u64::from(x) * u64::from(y) * u64::from(z);
    let most = kernel.max_threads.unwrap_or(THREADS).min(THREADS);
    let fault = if threads == 0 || launch.grid.contains(&0) {
        "its grid or its block is empty".to_owned()
    } else if threads > u64::from(most) || z > 64 {
        format!("a block of {x} x {y} x {z} threads is more than its {most} (64 in z)")
    } else if launch.grid[0] > i32::MAX as u32 || launch.grid[1] > 65_535 || launch.grid[2] > 65_535
    {
        let [x, y, z] = launch.grid;
        format!("a grid of {x} x {y} x {z} blocks exceeds 2147483647 x 65535 x 65535")
    } else if kernel.static_shared > STATIC_SHARED {
        format!(
            "its {} bytes of static shared memory are more than {STATIC_SHARED}",
            kernel.static_shared
        )
    } else if kernel.static_shared + launch.dynamic_shared > SHARED {
        let total = kernel.static_shared + launch.dynamic_shared;
        format!("its {total} bytes of shared memory are more than {SHARED}")
    } else if kernel.local > LOCAL {
        format!(
            "its {} bytes of local memory are more than {LOCAL}",
            kernel.local
        )
    } else if launch.params.len() < kernel.params_size() {
        let (have, want) = (launch.params.len(), kernel.params_size());
        format!("its arguments are {have} bytes, its parameters {want}")
    } else {
        return Ok(());
    };
    Err(Finding::limit(kernel, fault))
}
