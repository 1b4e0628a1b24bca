//! The memory that an operation may touch.

use super::memory::{Block, Life, Owner, Space};
use crate::exec::{Memory, Region};

/// The memory that an operation of one GPU may touch.
pub struct View<'a> {
    /// All memory.
    pub space: &'a Space,
    /// The GPU.
    pub gpu: usize,
    /// GPUs whose `cuMemAlloc` memory it may touch, a bit for each.
    pub peers: u64,
    /// Pools whose memory it may touch, a bit for each.
    pub pools: u64,
}

impl View<'_> {
    fn reaches(&self, block: &Block) -> bool {
        match (block.gpu, block.owner) {
            (None, _) => true,
            (Some(gpu), _) if gpu == self.gpu => true,
            (Some(_), Owner::Pool(pool)) => self.pools >> pool & 1 == 1,
            (Some(gpu), _) => self.peers >> gpu & 1 == 1,
        }
    }
}

impl Memory for View<'_> {
    fn find(&self, addr: u64) -> Option<Region> {
        let block = self.space.locate(addr)?;
        let alive = !matches!(block.life, Life::Freed(_));
        if !alive || !self.reaches(&block) {
            return None;
        }
        Some(Region {
            id: block.id,
            base: block.base,
            len: block.len,
            writable: block.writable,
            valid: self.space.validity(&block),
            host: block.base as *mut u8,
        })
    }

    fn explain(&self, addr: u64) -> String {
        let text = self.space.explain(addr);
        match self.space.locate(addr) {
            Some(block) if !self.reaches(&block) => {
                format!("{text}, to which GPU {} has no peer access", self.gpu)
            }
            _ => text,
        }
    }
}
