//! [`Home`]: where the buffers of one virtual CPU device come from and go back to. It is the device's
//! memory account and its pool.

use super::pool::{Block, Pool};
use crate::memory::{self, Account, Kept, Last};
use crate::{Device, Error};
use std::cell::Cell;

/// The account and the pool of one virtual CPU device.
#[derive(Debug)]
pub(crate) struct Home {
    account: &'static Account,
    pool: Pool,
}

/// The home of virtual CPU device `index`; made at its first use, and kept for good.
pub(crate) fn home(index: usize) -> &'static Home {
    static HOMES: Kept<usize, Home> = Kept::new();
    thread_local! {
        static LAST: Last<usize, Home> = const { Cell::new(None) };
    }
    HOMES.get(&LAST, index, |index| Home {
        account: memory::account(Device::Cpu(index)),
        pool: Pool::default(),
    })
}

impl Home {
    pub(crate) fn account(&self) -> &'static Account {
        self.account
    }

    /// A block that serves `bytes`, for the operation `op`.
    pub(crate) fn take(&self, op: &'static str, bytes: usize) -> Result<Block, Error> {
        let reservation = self.account.reserve(op, bytes)?;
        match self.pool.take(bytes).or_else(|| self.grow(bytes)) {
            Some(block) => {
                reservation.fulfil();
                Ok(block)
            }
            None => Err(reservation.refused(op)),
        }
    }

    /// A block from the system, which may have room for it only without the free ones.
    fn grow(&self, bytes: usize) -> Option<Block> {
        let size = Pool::block_bytes(bytes)?;
        let block = Block::from_system(size).or_else(|| {
            self.empty_cache();
            Block::from_system(size)
        })?;
        self.account.grown(size);
        Some(block)
    }

    /// Takes back a block that served `bytes`.
    pub(crate) fn put(&self, block: Block, bytes: usize) {
        self.account.released(bytes);
        if let Some(block) = self.pool.put(block) {
            self.account.shrunk(block.bytes);
        }
    }

    /// Gives the free blocks back to the system.
    pub(crate) fn empty_cache(&self) {
        self.pool.drain(|bytes| self.account.shrunk(bytes));
    }
}
