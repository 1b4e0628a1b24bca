//! Pools of device memory, and what they count.
//!
//! Memory counts as used from the call that allocates it to the call that frees it: in stream order the two meet there,
//! and so the counts depend on the calls of the program alone. What is used and what is reserved are exact sums of the
//! sizes, rounded up to 512 bytes; a card reserves in larger pieces. As on a card, memory that is freed stays reserved
//! until the next wait of the host, and as many bytes as the release threshold says stay reserved after it.

/// The numbers of a pool. All are bytes.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// The GPU.
    pub gpu: usize,
    /// What stays reserved when the host waits.
    pub threshold: u64,
    /// What the program has.
    pub used: u64,
    /// The most that the program has had since this was last reset.
    pub used_high: u64,
    /// What the pool has from the GPU, used or not.
    pub reserved: u64,
    /// The most that the pool has had from the GPU since this was last reset.
    pub reserved_high: u64,
    /// The three attributes about the reuse of memory, which change nothing here.
    pub reuse: [u32; 3],
    /// One bit for each GPU that may use the memory, beside its own.
    pub access: u64,
    /// Whether the pool was destroyed.
    pub destroyed: bool,
}

/// The size with which an allocation is counted.
pub fn rounded(bytes: u64) -> u64 {
    bytes.next_multiple_of(512)
}

impl Pool {
    /// An empty pool.
    pub fn new(gpu: usize) -> Pool {
        Pool {
            gpu,
            reuse: [1; 3],
            ..Pool::default()
        }
    }

    /// What the pool would have from the GPU with `bytes` more in use.
    pub fn reserved_with(&self, bytes: u64) -> u64 {
        self.reserved.max(self.used + rounded(bytes))
    }

    /// Gives out `bytes`.
    pub fn take(&mut self, bytes: u64) {
        self.reserved = self.reserved_with(bytes);
        self.used += rounded(bytes);
        self.used_high = self.used_high.max(self.used);
        self.reserved_high = self.reserved_high.max(self.reserved);
    }

    /// Takes `bytes` back.
    pub fn put(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(rounded(bytes));
    }

    /// Gives back to the GPU what is not used, but for `keep` bytes in all.
    pub fn trim(&mut self, keep: u64) {
        self.reserved = self.reserved.min(self.used.max(keep));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact() {
        let mut pool = Pool::new(0);
        pool.take(1);
        pool.take(1024);
        assert_eq!((pool.used, pool.reserved), (1536, 1536));
        pool.put(1024);
        assert_eq!((pool.used, pool.reserved), (512, 1536));
        pool.take(512);
        assert_eq!((pool.used, pool.reserved), (1024, 1536));
        pool.put(512);
        pool.trim(1000);
        assert_eq!((pool.used, pool.reserved), (512, 1000));
        pool.trim(0);
        assert_eq!((pool.used, pool.reserved), (512, 512));
        assert_eq!((pool.used_high, pool.reserved_high), (1536, 1536));
    }
}
