//! What the lanes of a warp do together: each waits until all that the mask names are there; the last one computes the
//! answers of all. This is one of the few files with `unsafe` code, since generated code calls it.

use std::ffi::c_void;

use super::abi::Ctx;
use super::engine::{Runner, abandon, owner, suspend};
use super::finding::FindingKind;

/// The kinds of operations; `ptx/emit/warp.rs` has the same numbers.
const SYNC: u32 = 0;
const SHUFFLE: u32 = 1;
const VOTE: u32 = 2;
const MATCH: u32 = 3;
const REDUX: u32 = 4;
const MMA: u32 = 5;
const MATRIX: u32 = 6;

/// What a lane reads of a lane that has nothing to give: a NaN that no computation makes.
const POISON: u32 = 0xffff_dead;

/// Lanes that wait for each other.
#[derive(Debug, Clone)]
pub struct Group {
    pub mask: u32,
    kind: u32,
    pub site: u32,
    pub arrived: u32,
    args: [*mut c_void; 32],
}

/// The warps of a block: who has ended, and who waits.
#[derive(Debug, Default)]
pub struct Warps {
    dead: Vec<u32>,
    pub groups: Vec<Vec<Group>>,
}

impl Warps {
    /// For a new block of `count` threads.
    pub fn start(&mut self, count: u32) {
        let warps = count.div_ceil(32) as usize;
        self.dead.clear();
        self.dead.resize(warps, 0);
        if !count.is_multiple_of(32) {
            self.dead[warps - 1] = u32::MAX << (count % 32);
        }
        self.groups
            .resize_with(self.groups.len().max(warps), Vec::new);
        self.groups.iter_mut().for_each(Vec::clear);
    }

    /// Notes that a thread has ended.
    pub fn end(&mut self, thread: u32) {
        self.dead[thread as usize / 32] |= 1 << (thread % 32);
    }

    /// The lanes of a warp that have ended or never were.
    pub fn dead(&self, warp: usize) -> u32 {
        self.dead[warp]
    }
}

/// A lane's part of a shuffle.
#[repr(C)]
struct Shuffle {
    value: u32,
    lane: u32,
    clamp: u32,
    mode: u32,
    result: u32,
    valid: u32,
}

/// A lane's part of a vote, a match or a reduction.
#[repr(C)]
struct Vote {
    value: u32,
    mode: u32,
    result: u32,
    all: u32,
    wide: u64,
}

/// A lane's part of a matrix product.
#[repr(C)]
pub struct Mma {
    pub kind: u32,
    pub a: [u32; 4],
    pub b: [u32; 2],
    pub c: [u32; 4],
    pub d: [u32; 4],
}

/// A lane's part of `ldmatrix`.
#[repr(C)]
struct Matrix {
    count: u32,
    turned: u32,
    row: [u32; 4],
    out: [u32; 4],
}

/// The lanes of a mask.
fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

/// # Safety
///
/// Each lane in `mask` has an argument that is a `T` on the stack of a fiber that waits.
unsafe fn parts<'a, T>(group: &Group, mask: u32) -> Vec<Option<&'a mut T>> {
    let part = |lane: usize| match mask >> lane & 1 {
        // SAFETY: by this function's condition; lanes have arguments of their own.
        1 => Some(unsafe { &mut *group.args[lane].cast::<T>() }),
        _ => None,
    };
    (0..32).map(part).collect()
}

fn shuffle(group: &Group) {
    let mask = group.arrived;
    let at = |lane: usize| group.args[lane].cast::<Shuffle>();
    for lane in lanes(mask) {
        // SAFETY: each lane that has arrived at a shuffle left its part, on the stack of a fiber that waits.
        let part = unsafe { &mut *at(lane) };
        let me = lane as u32;
        let (segment, clamp, by) = (part.clamp >> 8 & 31, part.clamp & 31, part.lane & 31);
        let last = me & segment | clamp & !segment;
        let (from, valid) = match part.mode {
            0 => (
                me.wrapping_sub(by),
                me.wrapping_sub(by) as i32 >= last as i32,
            ),
            1 => (me + by, me + by <= last),
            2 => (me ^ by, me ^ by <= last),
            _ => {
                let from = me & segment | by & !segment;
                (from, from <= last)
            }
        };
        let from = if valid { from } else { me };
        part.valid = u32::from(valid);
        part.result = match mask >> from & 1 {
            // SAFETY: as above; the value is read through a pointer, since it may be the lane's own part.
            1 => unsafe { (*at(from as usize)).value },
            _ => POISON,
        };
    }
}

fn vote(group: &Group, lanes: &mut [Option<&mut Vote>]) {
    let present = || group.arrived;
    let mut ballot = 0;
    for (lane, part) in lanes.iter().enumerate() {
        if let Some(part) = part {
            ballot |= u32::from(part.value != 0) << lane;
        }
    }
    for part in lanes.iter_mut().flatten() {
        part.result = match part.mode {
            0 => u32::from(ballot == present()),
            1 => u32::from(ballot != 0),
            2 => u32::from(ballot == 0 || ballot == present()),
            _ => ballot,
        };
    }
}

fn find_equal(group: &Group, lanes: &mut [Option<&mut Vote>]) {
    let values: Vec<Option<u64>> = lanes
        .iter()
        .map(|part| part.as_ref().map(|part| part.wide))
        .collect();
    for part in lanes.iter_mut().flatten() {
        let same =
            |(lane, value): (usize, &Option<u64>)| u32::from(*value == Some(part.wide)) << lane;
        let equal: u32 = values.iter().enumerate().map(same).sum();
        part.all = u32::from(equal == group.arrived);
        part.result = if part.mode == 0 || equal == group.arrived {
            equal
        } else {
            0
        };
    }
}

fn redux(lanes: &mut [Option<&mut Vote>]) {
    let values = lanes.iter().flatten().map(|part| (part.mode, part.value));
    let joint = values.reduce(|(mode, a), (_, b)| {
        let value = match mode {
            0 | 8 => a.wrapping_add(b),
            1 => a.min(b),
            2 => a.max(b),
            9 => (a as i32).min(b as i32) as u32,
            10 => (a as i32).max(b as i32) as u32,
            3 | 11 => a & b,
            4 | 12 => a | b,
            _ => a ^ b,
        };
        (mode, value)
    });
    for part in lanes.iter_mut().flatten() {
        part.result = joint.map_or(0, |(_, value)| value);
    }
}

/// Deals out the rows of 8 x 8 matrices that the lanes have read.
fn matrix(lanes: &mut [Option<&mut Matrix>]) {
    let rows: Vec<[u32; 4]> = lanes
        .iter()
        .map(|part| part.as_ref().map_or([POISON; 4], |part| part.row))
        .collect();
    let half = |row: usize, at: usize| rows[row][at / 2] >> (at % 2 * 16) & 0xffff;
    for (lane, part) in lanes.iter_mut().enumerate() {
        let Some(part) = part else { continue };
        for index in 0..part.count as usize {
            let (outer, inner, first) = (lane / 4, lane % 4 * 2, index * 8);
            part.out[index] = match part.turned {
                0 => half(first + outer, inner) | half(first + outer, inner + 1) << 16,
                _ => half(first + inner, outer) | half(first + inner + 1, outer) << 16,
            };
        }
    }
}

impl Runner<'_> {
    /// Notes that a lane has arrived; true if it must wait.
    fn meet(
        &mut self,
        ctx: &Ctx,
        site: u32,
        kind: u32,
        mask: u32,
        arg: *mut c_void,
    ) -> Result<bool, String> {
        let (warp, lane) = (ctx.warp as usize, ctx.lane);
        if mask >> lane & 1 == 0 {
            return Err(format!(
                "gives the mask {mask:#010x}, which does not name its own lane {lane}"
            ));
        }
        let dead = self.worker.warps.dead[warp];
        if kind >= MMA && dead != 0 {
            return Err(format!(
                "needs its whole warp, of which the lanes {dead:#010x} have ended or never were"
            ));
        }
        let groups = &mut self.worker.warps.groups[warp];
        // `bar.warp.sync` may be executed at different places; all else is one instruction for all lanes.
        let same = |group: &Group| {
            group.mask == mask && group.kind == kind && (kind == SYNC || group.site == site)
        };
        let at = groups
            .iter()
            .position(|group| same(group) && group.arrived >> lane & 1 == 0);
        let at = at.unwrap_or_else(|| {
            groups.push(Group {
                mask,
                kind,
                site,
                arrived: 0,
                args: [std::ptr::null_mut(); 32],
            });
            groups.len() - 1
        });
        let group = &mut groups[at];
        group.arrived |= 1 << lane;
        group.args[lane as usize] = arg;
        if (group.arrived | dead) & mask != mask {
            return Ok(true);
        }
        self.answer(warp, at, Some(ctx.thread));
        Ok(false)
    }

    /// Answers the lanes of a group that is complete, and lets all but `last` go on.
    fn answer(&mut self, warp: usize, at: usize, last: Option<u32>) {
        let group = self.worker.warps.groups[warp].swap_remove(at);
        let present = group.arrived;
        // SAFETY: the arguments of a kind have its type (`ptx/emit/warp.rs`), and lie on stacks of fibers that wait.
        unsafe {
            match group.kind {
                SYNC => {}
                SHUFFLE => shuffle(&group),
                VOTE => vote(&group, &mut parts(&group, present)),
                MATCH => find_equal(&group, &mut parts(&group, present)),
                REDUX => redux(&mut parts(&group, present)),
                MMA => super::mma::multiply(&mut parts(&group, present)),
                MATRIX => matrix(&mut parts(&group, present)),
                other => unreachable!("generated code asks for a warp operation {other}"),
            }
        }
        // All but the barrier exchange registers alone: "They do not guarantee any memory ordering" (CUDA C++
        // Programming Guide, of shuffles, votes, matches and reductions).
        if group.kind == SYNC {
            self.warp_sync(warp as u32, present);
        }
        for lane in lanes(present) {
            let thread = (warp * 32 + lane) as u32;
            if last != Some(thread) {
                self.worker.ready.push_back(thread);
            }
        }
    }
}

/// A thread has ended: lanes that waited for it only go on.
pub fn ended(runner: &mut Runner<'_>, thread: u32) {
    let warp = thread as usize / 32;
    let dead = runner.worker.warps.dead[warp];
    while let Some(at) = {
        let mut groups = runner.worker.warps.groups[warp].iter();
        groups.position(|group| (group.arrived | dead) & group.mask == group.mask)
    } {
        runner.answer(warp, at, None);
    }
}

/// A warp operation.
///
/// # Safety
///
/// Generated code calls it, with its context and an argument of the kind's type.
pub unsafe extern "C" fn warp(ctx: *mut Ctx, site: u32, kind: u32, mask: u32, arg: *mut c_void) {
    // SAFETY: by this function's condition; no reference is alive when the fiber is left.
    unsafe {
        let this = owner(ctx);
        match (&mut *this).meet(&*ctx, site, kind, mask, arg) {
            Ok(true) => suspend(this),
            Ok(false) => {}
            Err(what) => {
                (*this).find(FindingKind::BadWarpMask, site, (*ctx).thread, &what);
                abandon(this);
            }
        }
    }
}
