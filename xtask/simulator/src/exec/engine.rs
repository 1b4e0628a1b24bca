//! The engine: takes a launch through its blocks, and the threads of a block through their fibers. This is one of the
//! few files with `unsafe` code.
//!
//! A `Runner` is reached from two sides: from `run`, and from the engine's functions that generated code calls on the
//! stack of a fiber. Only one side runs at a time, and neither holds a reference across a switch; so this file goes
//! through raw pointers, and what it calls gets references that end before the next switch.

use std::ffi::c_void;

use super::abi::{Api, Ctx, Shared, Site, record};
use super::access;
use super::barrier;
use super::copies;
use super::fences::{self, Fences};
use super::fiber::{Stacks, switch};
use super::finding::{Finding, FindingKind, Who};
use super::global;
use super::kernel::Kernel;
use super::limits::check;
use super::order::Order;
use super::print;
use super::warp;
use super::worker::Worker;
use super::{Launch, Memory, Touched};

/// Jumps backwards after which a thread gives way to the others of its block.
const FUEL: u32 = 1 << 16;
/// How often a thread may do so: some 10^9 rounds of its loops.
const ROUNDS: u32 = 1 << 14;

static API: Api = Api {
    miss: access::miss,
    fail: access::fail,
    shared: super::race::shared,
    barrier: barrier::barrier,
    barrier_reduce: barrier::barrier_reduce,
    warp: warp::warp,
    print: print::print,
    tired,
    global: global::global,
    fence: fences::fence,
    copy: copies::copy,
    copied: copies::copied,
};

/// A launch on its way.
pub struct Runner<'a> {
    pub kernel: &'a Kernel,
    pub launch: &'a Launch<'a>,
    pub memory: &'a dyn Memory,
    pub worker: Worker,
    pub shared: Shared,
    /// Threads of a block.
    pub count: u32,
    /// Threads of the block that have ended.
    pub ended: u32,
    pub current: u32,
    pub finding: Option<Finding>,
    finished: bool,
    /// The stack of `run`, while a fiber runs.
    host: usize,
    blocks: Order,
    order: Order,
}

/// Runs a launch to its end, or to the first fault.
pub fn run(
    kernel: &Kernel,
    launch: &Launch<'_>,
    memory: &dyn Memory,
) -> Result<Vec<Touched>, Finding> {
    check(kernel, launch)?;
    kernel.loaded.link(memory);
    let mut worker = Worker::take();
    let count: u32 = launch.block.iter().product();
    let shared = kernel.static_shared + launch.dynamic_shared;
    let fibers = if kernel.waits { count as usize } else { 1 };
    if worker
        .stacks
        .as_ref()
        .is_none_or(|stacks| stacks.count() < fibers)
    {
        let stacks = Stacks::new(fibers.next_power_of_two().max(64));
        worker.stacks = Some(stacks.map_err(|error| {
            Finding::limit(kernel, format!("no stacks for its threads: {error}"))
        })?);
    }
    worker.pointers.resize(fibers, 0);
    worker.ready.clear();
    worker.ready.reserve(count as usize);
    worker.regions.clear();
    worker
        .sites
        .resize(worker.sites.len().max(kernel.site_count()), Site::EMPTY);
    for range in &kernel.sites {
        worker.sites[range.clone()].fill(Site::EMPTY);
    }
    let memory_len = shared.next_multiple_of(64);
    worker.memory.resize(worker.memory.len().max(memory_len), 0);
    worker.local.resize(
        worker.local.len().max(fibers * kernel.local.div_ceil(16)),
        0,
    );
    worker.clocks.fit(shared, count as usize);
    let anew = worker.clocks.worn_out();
    worker.shadows.trim(anew);
    worker.fences = Fences::default();
    worker.births.clear();
    let total = launch.grid.iter().map(|n| u64::from(*n)).product();
    let mut runner = Runner {
        kernel,
        launch,
        memory,
        shared: Shared {
            memory: worker.memory.as_mut_ptr(),
            wrote: worker.clocks.wrote.as_mut_ptr(),
            read: worker.clocks.read.as_mut_ptr(),
            wrote_at: worker.clocks.wrote_at.as_mut_ptr(),
            read_at: worker.clocks.read_at.as_mut_ptr(),
            lanes: worker.clocks.lanes.as_mut_ptr(),
            len: shared as u32,
            ordered: 0,
            born: 0,
            parts: 0,
            launch_born: 0,
            block_born: 0,
            block_ordered: 0,
        },
        worker,
        count,
        ended: 0,
        current: 0,
        finding: None,
        finished: false,
        host: 0,
        blocks: Order::new(total, launch.seed),
        order: Order::new(u64::from(count), launch.seed.wrapping_mul(3)),
    };
    let this = &raw mut runner;
    // SAFETY: `runner` lives in this frame until the run has ended, and from here on is reached through `this` only.
    unsafe {
        contexts(this, fibers);
        if kernel.waits {
            for index in 0..total {
                waiting_block(this, index);
                if (*this).finding.is_some() {
                    break;
                }
            }
        } else {
            let ctx = (*this).worker.threads.as_mut_ptr();
            let stacks = (*this).worker.stacks.as_mut();
            let pointer = stacks.map(|stacks| stacks.prepare(0, plain, ctx, plain_end));
            switch(&raw mut (*this).host, pointer.unwrap_or_default());
        }
    }
    runner.drop_copies();
    let result = match runner.finding.take() {
        Some(finding) => Err(finding),
        None => Ok(access::touched(&mut runner)),
    };
    runner.worker.leave();
    result
}

/// Sets up what each thread's context keeps for the whole launch.
///
/// # Safety
///
/// `this` is a runner that nothing else uses meanwhile.
unsafe fn contexts(this: *mut Runner<'_>, fibers: usize) {
    // SAFETY: by this function's condition.
    let runner = unsafe { &mut *this };
    let (launch, kernel) = (runner.launch, runner.kernel);
    let local = kernel.local.next_multiple_of(16);
    let common = Ctx {
        api: &API,
        block: &raw mut runner.shared,
        sites: runner.worker.sites.as_mut_ptr(),
        params: launch.params.as_ptr(),
        vars: kernel.loaded.addresses.as_ptr().cast(),
        places: kernel.places.as_ptr(),
        local: runner.worker.local.as_mut_ptr().cast(),
        local_len: kernel.local as u32,
        local_top: 0,
        now: 0,
        lane: 0,
        warp: 0,
        thread: 0,
        tid: [0; 3],
        ntid: launch.block,
        ctaid: [0; 3],
        nctaid: launch.grid,
        params_len: launch.params.len() as u32,
        dynamic_shared: launch.dynamic_shared as u32,
        total_shared: (kernel.static_shared + launch.dynamic_shared) as u32,
        fuel: FUEL,
        rounds: 0,
        unused: 0,
        grid: 1,
        stack_end: 0,
        stamp: 0,
        owner: this.cast::<c_void>(),
    };
    runner.worker.threads.clear();
    let stacks = runner.worker.stacks.as_ref();
    let [mut x, mut y, mut z] = [0, 0, 0];
    for thread in 0..fibers {
        let mut ctx = common;
        // SAFETY: `run` made the local memory long enough for this many threads.
        ctx.local = unsafe { common.local.add(thread * local) };
        ctx.stack_end = stacks.map_or(0, |stacks| stacks.end(thread));
        number(&mut ctx, thread as u32, [x, y, z]);
        runner.worker.threads.push(ctx);
        step(&mut x, &mut y, &mut z, launch.block);
    }
}

fn number(ctx: &mut Ctx, thread: u32, tid: [u32; 3]) {
    ctx.thread = thread;
    ctx.lane = thread % 32;
    ctx.warp = thread / 32;
    ctx.tid = tid;
}

fn step(x: &mut u32, y: &mut u32, z: &mut u32, block: [u32; 3]) {
    *x += 1;
    if *x == block[0] {
        *x = 0;
        *y += 1;
        if *y == block[1] {
            *y = 0;
            *z += 1;
        }
    }
}

impl Runner<'_> {
    /// The coordinates of the block that runs as number `index`.
    pub fn coordinates(&self, index: u64) -> [u32; 3] {
        let number = self.blocks.at(index);
        let [x, y, _] = self.launch.grid.map(u64::from);
        [
            (number % x) as u32,
            (number / x % y) as u32,
            (number / x / y) as u32,
        ]
    }

    /// A new block: nobody has written its shared memory.
    fn fresh(&mut self) {
        let clock = self.worker.clocks.start();
        self.shared.born = record(clock, 0);
        self.shared.ordered = self.shared.born;
        self.shared.parts = 0;
        let tick = self.worker.clocks.tick(clock);
        self.shared.block_born = global::stamp(tick, 0);
        self.shared.block_ordered = self.shared.block_born;
        if self.kernel.looks_for_races() {
            if self.worker.births.is_empty() {
                self.shared.launch_born = self.shared.block_born;
            }
            self.worker.births.push(tick);
            self.worker.fences.start();
        }
        self.drop_copies();
        let len = self.shared.len as usize;
        self.worker.memory[..len].fill(0xff);
    }

    /// Which thread a context is, for a sentence.
    pub fn who(&self, thread: u32) -> Who {
        let [x, y, _] = self.launch.block;
        let at = if self.kernel.waits {
            thread as usize
        } else {
            0
        };
        Who {
            block: self.worker.threads[at].ctaid,
            thread: [thread % x, thread / x % y, thread / x / y],
        }
    }

    /// Notes a finding; the caller leaves the fiber then.
    pub fn find(&mut self, kind: FindingKind, site: u32, thread: u32, what: &str) {
        let who = self.who(thread);
        self.finding
            .get_or_insert(Finding::at(kind, self.kernel, site, who, what));
    }
}

/// Runs a block whose threads wait for each other.
///
/// # Safety
///
/// `this` is a runner that nothing else uses meanwhile.
unsafe fn waiting_block(this: *mut Runner<'_>, index: u64) {
    // SAFETY: by this function's condition; the reference ends before the switch.
    unsafe {
        let runner = &mut *this;
        let ctaid = runner.coordinates(index);
        runner.fresh();
        runner.ended = 0;
        let (count, order) = (runner.count, runner.order);
        let worker = &mut runner.worker;
        worker.warps.start(count);
        worker.barriers.start(count);
        worker.ready.clear();
        let Some(stacks) = &mut worker.stacks else {
            return;
        };
        for (at, ctx) in worker.threads.iter_mut().enumerate() {
            ctx.ctaid = ctaid;
            worker.clocks.stamp(ctx, worker.clocks.now());
            ctx.local_top = 0;
            (ctx.fuel, ctx.rounds) = (FUEL, 0);
            worker.pointers[at] = stacks.prepare(at, runner.kernel.code, ctx, thread_end);
        }
        worker
            .ready
            .extend((0..u64::from(count)).map(|index| order.at(index) as u32));
        next(this, &raw mut (*this).host);
        let runner = &mut *this;
        if runner.finding.is_none() && runner.ended < runner.count {
            runner.finding = Some(super::stuck::explain(runner));
        }
    }
}

/// Leaves the current stack for the next thread that can go on, or for `run` if there is none.
///
/// # Safety
///
/// `this` is the runner of the current stack, and no reference into it is alive.
unsafe fn next(this: *mut Runner<'_>, save: *mut usize) {
    // SAFETY: by this function's condition; each pointer of a ready thread is where it was left, or fresh.
    unsafe {
        let to = match (*this).worker.ready.pop_front() {
            Some(thread) => {
                (*this).current = thread;
                (&(*this).worker.pointers)[thread as usize]
            }
            None => (*this).host,
        };
        switch(save, to);
    }
}

/// Lets the current thread wait until somebody puts it among the ready ones.
///
/// # Safety
///
/// As for [`next`]; the caller runs on the stack of a fiber.
pub unsafe fn suspend(this: *mut Runner<'_>) {
    // SAFETY: by this function's condition.
    unsafe {
        let me = (*this).current as usize;
        let save = &raw mut (&mut (*this).worker.pointers)[me];
        next(this, save);
    }
}

/// Ends the run at a finding: the fiber is left and never resumed.
///
/// # Safety
///
/// As for [`suspend`].
pub unsafe fn abandon(this: *mut Runner<'_>) -> ! {
    // SAFETY: by this function's condition; `run` waits at `host`.
    unsafe {
        let mut left = 0;
        switch(&raw mut left, (*this).host);
    }
    unreachable!("a fiber that was left for good was resumed")
}

/// The runner of a context.
///
/// # Safety
///
/// `ctx` is the context of a thread that runs now.
pub unsafe fn owner<'a>(ctx: *mut Ctx) -> *mut Runner<'a> {
    // SAFETY: by this function's condition; `contexts` has set the owner.
    unsafe { (*ctx).owner.cast() }
}

/// A thread has gone round its loops for long: others get their turn, in case it waits for one of them.
///
/// # Safety
///
/// Generated code calls it, with its context.
unsafe extern "C" fn tired(ctx: *mut Ctx, site: u32) {
    // SAFETY: by this function's condition; references end before the fiber is left.
    unsafe {
        let this = owner(ctx);
        (*ctx).fuel = FUEL;
        (*ctx).rounds += 1;
        if (*ctx).rounds == ROUNDS {
            let what = "has gone round its loops a thousand million times: it waits for what does not happen";
            (*this).find(FindingKind::Deadlock, site, (*ctx).thread, what);
            abandon(this);
        }
        if (*this).kernel.waits {
            (&mut *this).worker.ready.push_back((*ctx).thread);
            suspend(this);
        }
    }
}

/// What a fiber does when its kernel has returned.
unsafe extern "C" fn thread_end(ctx: *mut Ctx) {
    // SAFETY: the fiber of `ctx` calls this last; the references end before the switch.
    unsafe {
        let this = owner(ctx);
        let thread = (*ctx).thread;
        let runner = &mut *this;
        runner.ended += 1;
        runner.worker.warps.end(thread);
        barrier::ended(runner);
        warp::ended(runner, thread);
        let mut left = 0;
        next(this, &raw mut left);
    }
}

/// All blocks of a kernel whose threads never wait, on one stack.
unsafe extern "C" fn plain(ctx: *mut Ctx) {
    // SAFETY: this is the only fiber of the launch; references end before generated code runs.
    unsafe {
        let this = owner(ctx);
        let (code, block) = ((*this).kernel.code, (*this).launch.block);
        let (order, count, total) = ((*this).order, (*this).count, (*this).blocks.count);
        for index in 0..total {
            (*ctx).ctaid = (*this).coordinates(index);
            (*this).fresh();
            let [mut x, mut y, mut z] = [0, 0, 0];
            for at in 0..count {
                let (thread, tid) = if order.stride == 1 && order.start == 0 {
                    (at, [x, y, z])
                } else {
                    let thread = order.at(u64::from(at)) as u32;
                    (
                        thread,
                        [
                            thread % block[0],
                            thread / block[0] % block[1],
                            thread / block[0] / block[1],
                        ],
                    )
                };
                number(&mut *ctx, thread, tid);
                let clocks = &(*this).worker.clocks;
                clocks.stamp(&mut *ctx, clocks.now());
                (*ctx).local_top = 0;
                ((*ctx).fuel, (*ctx).rounds) = (FUEL, 0);
                code(ctx);
                step(&mut x, &mut y, &mut z, block);
            }
        }
        (*this).finished = true;
    }
}

unsafe extern "C" fn plain_end(ctx: *mut Ctx) {
    // SAFETY: the fiber of `ctx` calls this last.
    unsafe { abandon(owner(ctx)) }
}
