//! `cp.async`: what a thread has begun to copy into shared memory lands when it waits for it, and not before. Until then
//! the bytes belong to nobody: who reads or writes them makes a finding. This is one of the few files with `unsafe` code.

use std::collections::{HashMap, VecDeque};

use super::abi::{Ctx, PENDING};
use super::engine::{Runner, owner};

/// What stands for the number of groups where there is none: `commit_group`, and `wait_all`.
const COMMIT: u32 = u32::MAX;
const ALL: u32 = u32::MAX - 1;

/// Bytes on their way.
#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: u32,
    len: u32,
    bytes: [u8; 16],
}

#[derive(Debug, Default)]
struct Queue {
    /// What no group holds yet.
    open: Vec<Piece>,
    groups: VecDeque<Vec<Piece>>,
}

impl Queue {
    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.groups.iter().flatten().chain(&self.open)
    }
}

/// What the threads of a block have begun to copy.
#[derive(Debug, Default)]
pub struct Copies {
    queues: HashMap<u32, Queue>,
}

impl Runner<'_> {
    /// Forgets what never landed: its block has ended.
    pub fn drop_copies(&mut self) {
        let (copies, wrote) = (&mut self.worker.copies, &mut self.worker.clocks.wrote);
        for (_, queue) in copies.queues.drain() {
            for piece in queue.pieces() {
                wrote[piece.offset as usize..][..piece.len as usize].fill(0);
            }
        }
    }

    /// The thread that has begun to copy byte `at`.
    pub fn copier(&self, at: usize) -> Option<u32> {
        let holds = |piece: &Piece| at.wrapping_sub(piece.offset as usize) < piece.len as usize;
        let mut queues = self.worker.copies.queues.iter();
        queues
            .find(|(_, queue)| queue.pieces().any(holds))
            .map(|(thread, _)| *thread)
    }

    /// Lets all groups of `ctx`'s thread land but the last `open` ones.
    fn land(&mut self, ctx: &Ctx, site: u32, open: u32) {
        let Some(queue) = self.worker.copies.queues.get_mut(&ctx.thread) else {
            return;
        };
        if matches!(open, COMMIT | ALL) {
            let group = std::mem::take(&mut queue.open);
            queue.groups.push_back(group);
        }
        let keep = match open {
            COMMIT => return,
            ALL => 0,
            open => open as usize,
        };
        while queue.groups.len() > keep {
            for piece in queue.groups.pop_front().unwrap_or_default() {
                let range = piece.offset as usize..(piece.offset + piece.len) as usize;
                let bytes = &piece.bytes[..piece.len as usize];
                self.worker.memory[range.clone()].copy_from_slice(bytes);
                self.worker.clocks.wrote[range.clone()].fill(ctx.now);
                self.worker.clocks.wrote_at[range].fill(site);
            }
        }
    }
}

/// Begins to copy `len` bytes to `offset` of shared memory. Generated code has checked the place, and that nothing
/// races with a write to it.
///
/// # Safety
///
/// Generated code calls it, with its context, for bytes within the shared memory of the block; `from` has `len` bytes,
/// 16 at most.
pub unsafe extern "C" fn copy(ctx: *mut Ctx, site: u32, offset: u32, len: u32, from: *const u8) {
    // SAFETY: by this function's condition; the references end before the fiber is left.
    unsafe {
        let runner = &mut *owner(ctx);
        let mut piece = Piece {
            offset,
            len,
            bytes: [0; 16],
        };
        from.copy_to_nonoverlapping(piece.bytes.as_mut_ptr(), (len as usize).min(16));
        let range = offset as usize..(offset + len) as usize;
        runner.worker.memory[range.clone()].fill(0xff);
        runner.worker.clocks.wrote[range.clone()].fill(PENDING);
        runner.worker.clocks.wrote_at[range].fill(site);
        let queues = &mut runner.worker.copies.queues;
        queues.entry((*ctx).thread).or_default().open.push(piece);
    }
}

/// `cp.async.commit_group`, `wait_group` and `wait_all`.
///
/// # Safety
///
/// Generated code calls it, with its context.
pub unsafe extern "C" fn copied(ctx: *mut Ctx, site: u32, open: u32) {
    // SAFETY: by this function's condition; the references end before the fiber is left.
    unsafe { (&mut *owner(ctx)).land(&*ctx, site, open) }
}
