//! `bar.sync`, `bar.arrive` and `bar.red`: the barriers of a block, by PTX's rules. A thread that has ended counts as
//! arrived. This is one of the few files with `unsafe` code, since generated code calls it.

use super::abi::Ctx;
use super::engine::{Runner, abandon, owner, suspend};
use super::finding::FindingKind;

/// A barrier at which somebody has arrived.
#[derive(Debug, Clone, Default)]
pub struct Barrier {
    pub waiting: Vec<u32>,
    /// How many lanes of each warp have arrived, and at which site the first did.
    lanes: [u8; 32],
    sites: [u32; 32],
    members: [u32; 32],
    pub arrived: u32,
    /// The threads that it waits for; 0 for all.
    pub expected: u32,
    /// Where the first thread arrived, and which it was.
    pub site: u32,
    first: u32,
    /// For `bar.red`: how many values were true, and what is made of that.
    yes: u32,
    kind: u32,
}

/// The 16 barriers of a block, and the answers of those that were passed last.
#[derive(Debug, Default)]
pub struct Barriers {
    pub all: Vec<Barrier>,
    answers: Vec<u32>,
}

impl Barriers {
    /// For a new block of `count` threads.
    pub fn start(&mut self, count: u32) {
        self.all.resize_with(16, Barrier::default);
        for barrier in &mut self.all {
            barrier.clear();
        }
        self.answers.resize(count as usize, 0);
    }
}

impl Barrier {
    fn clear(&mut self) {
        if self.arrived > 0 {
            self.waiting.clear();
            self.lanes = [0; 32];
            self.members = [0; 32];
            self.arrived = 0;
            self.yes = 0;
        }
    }
}

/// What `bar.red` makes of the values: 2 counts them, 3 is whether all are true, 4 whether any is.
fn reduce(kind: u32, yes: u32, of: u32) -> u32 {
    match kind {
        2 => yes,
        3 => u32::from(yes == of),
        _ => u32::from(yes > 0),
    }
}

impl Runner<'_> {
    /// Whether barrier `id` has everybody that it waits for.
    fn complete(&self, id: usize) -> bool {
        let barrier = &self.worker.barriers.all[id];
        if barrier.expected == 0 {
            return barrier.arrived + self.ended == self.count;
        }
        let warps = self.count.div_ceil(32) as usize;
        // A warp counts as 32 threads once all lanes that it still has are there.
        let lanes = |warp: usize| {
            let here = u32::from(barrier.lanes[warp]);
            let alive = (!self.worker.warps.dead(warp)).count_ones();
            if here > 0 && here == alive { 32 } else { here }
        };
        (0..warps).map(lanes).sum::<u32>() >= barrier.expected
    }

    /// Lets everybody at barrier `id` go on.
    fn release(&mut self, id: usize) {
        let barrier = &mut self.worker.barriers.all[id];
        let answer = reduce(barrier.kind, barrier.yes, barrier.arrived);
        let (waiting, members, whole) = (
            std::mem::take(&mut barrier.waiting),
            barrier.members,
            barrier.expected == 0,
        );
        barrier.clear();
        for thread in &waiting {
            self.worker.barriers.answers[*thread as usize] = answer;
            self.worker.ready.push_back(*thread);
        }
        self.worker.barriers.all[id].waiting = waiting;
        self.worker.barriers.all[id].waiting.clear();
        match whole {
            true => self.whole_barrier(),
            false => self.part_barrier(members),
        }
    }

    /// What is to say about a thread that does not come to the barrier where others wait.
    fn apart(&self, barrier: &Barrier, id: u32, other_count: bool) -> String {
        let [x, y, z] = self.who(barrier.first).thread;
        let line = self.kernel.line(barrier.site);
        match other_count {
            true => format!(
                "waits at barrier {id} for another number of threads than thread ({x}, {y}, {z}) at {line}"
            ),
            false => format!(
                "waits at this barrier, while thread ({x}, {y}, {z}) waits at another one, at {line}: \
                 a barrier of the block must be reached by all its threads"
            ),
        }
    }

    /// Notes an arrival; true if the thread must wait.
    fn arrive(
        &mut self,
        ctx: &Ctx,
        site: u32,
        [id, count]: [u32; 2],
        kind: u32,
        value: u32,
    ) -> Result<bool, String> {
        if id >= 16 {
            return Err(format!("names barrier {id}; there are 16"));
        }
        if count % 32 != 0 {
            return Err(format!(
                "waits for {count} threads at a barrier, which is no multiple of the warp's 32"
            ));
        }
        if count > self.count.next_multiple_of(32) {
            return Err(format!(
                "waits for {count} threads at a barrier, in a block of {}",
                self.count
            ));
        }
        // `bar.sync` with a count serves warps that do different work; `__syncthreads` has none, and one place.
        let one_place = count == 0;
        let count = if count == self.count.next_multiple_of(32) {
            0
        } else {
            count
        };
        let barrier = &self.worker.barriers.all[id as usize];
        let warp = ctx.warp as usize;
        if barrier.arrived > 0 {
            let same_warp = barrier.lanes[warp] > 0;
            let other_count = barrier.expected != count;
            let other_site =
                one_place && barrier.site != site || same_warp && barrier.sites[warp] != site;
            if other_count || other_site {
                return Err(self.apart(barrier, id, other_count));
            }
        }
        let barrier = &mut self.worker.barriers.all[id as usize];
        if barrier.arrived == 0 {
            barrier.site = site;
            barrier.first = ctx.thread;
            barrier.expected = count;
        }
        if barrier.lanes[warp] == 0 {
            barrier.sites[warp] = site;
        }
        barrier.lanes[warp] += 1;
        barrier.members[warp] |= 1 << ctx.lane;
        barrier.arrived += 1;
        barrier.yes += u32::from(value != 0);
        let waits = kind != 1;
        if waits {
            barrier.kind = kind;
        }
        if waits {
            barrier.waiting.push(ctx.thread);
        }
        if !self.complete(id as usize) {
            return Ok(waits);
        }
        if waits {
            // The last one needs no turn of its own.
            self.worker.barriers.all[id as usize].waiting.pop();
        }
        let barrier = &self.worker.barriers.all[id as usize];
        self.worker.barriers.answers[ctx.thread as usize] =
            reduce(kind, barrier.yes, barrier.arrived);
        self.release(id as usize);
        Ok(false)
    }
}

/// A thread has ended: barriers that waited for it only are complete.
pub fn ended(runner: &mut Runner<'_>) {
    for id in 0..runner.worker.barriers.all.len() {
        if runner.worker.barriers.all[id].arrived > 0 && runner.complete(id) {
            runner.release(id);
        }
    }
}

/// `bar.sync` and `bar.arrive`.
///
/// # Safety
///
/// Generated code calls it, with its context.
pub unsafe extern "C" fn barrier(ctx: *mut Ctx, site: u32, id: u32, count: u32, kind: u32) {
    // SAFETY: by this function's condition.
    unsafe { barrier_reduce(ctx, site, id, count, kind, 0) };
}

/// `bar.red`, and the others with a value that nobody asks for.
///
/// # Safety
///
/// Generated code calls it, with its context.
pub unsafe extern "C" fn barrier_reduce(
    ctx: *mut Ctx,
    site: u32,
    id: u32,
    count: u32,
    kind: u32,
    value: u32,
) -> u32 {
    // SAFETY: by this function's condition; no reference is alive when the fiber is left.
    unsafe {
        let this = owner(ctx);
        let thread = (*ctx).thread;
        match (&mut *this).arrive(&*ctx, site, [id, count], kind, value) {
            Ok(true) => suspend(this),
            Ok(false) => {}
            Err(what) => {
                (*this).find(FindingKind::DivergentBarrier, site, thread, &what);
                abandon(this);
            }
        }
        (&(*this).worker.barriers.answers)[thread as usize]
    }
}
