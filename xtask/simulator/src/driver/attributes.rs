//! The numbers of a device: those of an A100 where they say what a kernel may use.

use crate::device::modules::{SHARED, SHARED_MOST};

/// The value of a device's attribute; `None` if the driver has none of this number. Where it is known how many
/// `blocks` the device runs at once, it has one multiprocessor, which runs them all.
pub fn of_device(attribute: u32, gpu: usize, blocks: Option<i32>) -> Option<i32> {
    let (units, blocks) = blocks.map_or((108, 32), |blocks| (1, blocks));
    Some(match attribute {
        1 => 1024,            // most threads of a block
        2 | 3 => 1024,        // most threads of a block along x, y
        4 => 64,              // and z
        5 => i32::MAX,        // most blocks along x
        6 | 7 => 65535,       // and y, z
        8 => SHARED as i32,   // shared memory of a block, bytes
        9 => 65536,           // constant memory, bytes
        10 => 32,             // threads of a warp
        11 => i32::MAX,       // pitch
        12 => 65536,          // registers of a block
        13 => 1_410_000,      // clock, kHz
        14 => 512,            // alignment of textures
        15 => 1,              // copies beside kernels
        16 => units,          // multiprocessors
        19 => 1,              // can map memory of the host
        31 => 1,              // kernels beside kernels
        33 => gpu as i32 + 1, // bus
        36 => 1_215_000,      // clock of the memory, kHz
        37 => 5120,           // width of the memory's bus, bits
        38 => 40 << 20,       // level 2 cache, bytes
        39 => 2048,           // most threads of a multiprocessor
        40 => 3,              // engines of copies
        41 => 1,              // one space of addresses
        75 => 8,              // compute capability 8.1, which no card has: so PTX is asked for
        76 => 1,
        78 => 1,                               // priorities of streams
        79 | 80 => 1,                          // level 1 cache of global and local memory
        81 => 164 << 10,                       // shared memory of a multiprocessor, bytes
        82 => 65536,                           // registers of a multiprocessor
        87 => 2,                               // single against double precision
        91 => 1,                               // the host's pointer serves for registered memory
        97 => SHARED_MOST as i32,              // shared memory of a block that asks for it, bytes
        99 => 1,                               // memory of the host can be registered
        106 => blocks,                         // most blocks of a multiprocessor
        111 => 1024,                           // shared memory of a block for the system, bytes
        115 => 1,                              // pools of memory
        17 | 18 | 20 | 32 | 34 | 35 | 50 => 0, // what an A100 in a server is not
        21..=30 | 42..=74 | 77 | 83..=86 | 88..=90 | 92..=96 | 98 | 100..=105 => 0,
        107..=110 | 112..=114 | 116..=148 => 0, // what is not simulated
        _ => return None,
    })
}
