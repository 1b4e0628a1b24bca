//! [`Issue`]: the guard under which an operation issues its work on a lane of a card.
#![allow(unsafe_code)]

use super::gpu::{Gpu, Issuing, gpu};
use super::lanes::{Lane, Stamp};
use super::memory::CudaStorage;
use super::modules::{Kernel, Variant};
use crate::storage::{Memory, Operand, Storage, Use};
use crate::{DType, Error, Result, Tensor};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUstream;
use smallvec::SmallVec;
use std::ffi::c_void;
use std::sync::Arc;

/// Threads of a block, where nothing speaks for another number.
pub(crate) const BLOCK: u32 = 256;
/// Blocks of a launch over elements, at most: each thread takes more than one element beyond it.
pub(crate) const MOST_BLOCKS: usize = 65_535;
/// The same in blocks that the card runs at once: enough that the last ones, which find some of its
/// multiprocessors idle, are few.
pub(super) const WAVES: i64 = 16;

/// The lane of an operation, from the moment at which its operands are ready. It holds the issue lock
/// of the card; its drop records what the operation uses, also where the operation has failed.
///
/// While it lives, nothing may be allocated on the card, and no other operation may be called: both
/// take the issue lock.
#[derive(Debug)]
pub(crate) struct Issue {
    op: &'static str,
    stamp: Stamp,
    /// Dropped before the lock: what dies with it is freed when the lock is let go.
    uses: SmallVec<[(Arc<Storage>, Use); 6]>,
    /// As above.
    scratch: Vec<CudaStorage>,
    /// Which of it products use.
    workspace: Option<u32>,
    issuing: Issuing,
}

/// How many blocks of how many threads, and how much shared memory is asked for beside what the
/// kernel declares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: [u32; 3],
    /// Whether the kernel computes the same with any number of blocks along x, since each of them goes
    /// on by as many as there are: then a card gets no more than it has use for.
    pub(crate) strides: bool,
}

impl Grid {
    /// One thread for each of `n` elements, or for several of them: for kernels that go on by the
    /// number of threads.
    pub(crate) fn over(n: usize) -> Grid {
        let blocks = n.div_ceil(BLOCK as usize).clamp(1, MOST_BLOCKS);
        Grid {
            blocks: [blocks as u32, 1, 1],
            threads: [BLOCK, 1, 1],
            strides: true,
        }
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// An address in the card's memory.
    Address(u64),
    /// A size or an index: `long long`.
    Int(i64),
    /// An `int`.
    Small(i32),
    /// A `double`.
    Real(f64),
    /// A struct that the prelude declares alike.
    Struct(&'a [u8]),
}

impl Arg<'_> {
    /// The bits of an address or a number, for a struct that has it in it.
    pub(crate) fn bits(&self) -> u64 {
        match self {
            Arg::Address(v) => *v,
            Arg::Int(v) => *v as u64,
            Arg::Small(v) => i64::from(*v) as u64,
            Arg::Real(v) => v.to_bits(),
            Arg::Struct(_) => unreachable!("a struct in a struct"),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Arg::Address(v) => bytemuck::bytes_of(v),
            Arg::Int(v) => bytemuck::bytes_of(v),
            Arg::Small(v) => bytemuck::bytes_of(v),
            Arg::Real(v) => bytemuck::bytes_of(v),
            Arg::Struct(bytes) => bytes,
        }
    }
}

impl Issue {
    /// The compute lane of `cuda:ordinal`, for the operation `op` on `operands`.
    pub(crate) fn new(op: &'static str, ordinal: usize, operands: &impl Operand) -> Result<Issue> {
        Issue::on(op, gpu(op, ordinal)?, Lane::Compute, operands)
    }

    /// A lane of a card. What it issues runs behind whatever wrote the operands, and behind whatever
    /// reads what it writes.
    pub(super) fn on(
        op: &'static str,
        gpu: &'static Gpu,
        lane: Lane,
        operands: &impl Operand,
    ) -> Result<Issue> {
        let mut issuing = gpu.lock();
        let stamp = issuing.lanes().next(lane);
        let mut issue = Issue {
            op,
            stamp,
            uses: SmallVec::new(),
            scratch: Vec::new(),
            workspace: None,
            issuing,
        };
        operands.each(&mut |tensor, how| issue.add(tensor, how))?;
        Ok(issue)
    }

    fn add(&mut self, tensor: &Tensor, how: Use) -> Result<()> {
        let Memory::Cuda(storage) = tensor.storage().memory() else {
            unreachable!("{}: an operand is not on the card", self.op);
        };
        let (uses, lanes) = (storage.uses(), self.issuing.lanes());
        let ordered = match how {
            Use::Read => uses.before_read(lanes, self.stamp.lane),
            Use::Write | Use::Update => uses.before_write(lanes, self.stamp.lane),
        };
        ordered.map_err(|e| self.failed("waiting for an operand", e))?;
        self.uses.push((Arc::clone(tensor.shared()), how));
        Ok(())
    }

    pub(crate) fn op(&self) -> &'static str {
        self.op
    }

    pub(super) fn gpu(&self) -> &'static Gpu {
        self.issuing.gpu()
    }

    pub(super) fn stamp(&self) -> Stamp {
        self.stamp
    }

    pub(super) fn stream(&mut self) -> CUstream {
        let lane = self.stamp.lane;
        self.issuing.lanes().stream(lane)
    }

    /// Ends what was issued until now as an operation of its own: who waits for it does not wait for the rest.
    pub(super) fn cut(&mut self) -> Result<(), DriverError> {
        let ended = self.stamp;
        self.issuing.lanes().issued(ended)?;
        self.stamp = self.issuing.lanes().next(ended.lane);
        Ok(())
    }

    pub(super) fn issuing(&mut self) -> &mut Issuing {
        &mut self.issuing
    }

    pub(super) fn failed(&self, what: &str, e: DriverError) -> Error {
        self.gpu().failed(self.op, what, e)
    }

    /// The address of a tensor's first element.
    pub(crate) fn address(&self, tensor: &Tensor) -> Arg<'static> {
        debug_assert!(
            self.uses
                .iter()
                .any(|(used, _)| Arc::ptr_eq(used, tensor.shared())),
            "{}: a kernel's operand was not handed to on()",
            self.op
        );
        Arg::Address(place(tensor))
    }

    /// Memory for intermediate values of this operation, with arbitrary contents, aligned to 256
    /// bytes. An operation asks for it before its first launch: where there is none, nothing has been
    /// changed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn scratch(&mut self, bytes: usize) -> Result<Arg<'static>> {
        if bytes == 0 {
            return Ok(Arg::Address(0));
        }
        self.gpu().enter(self.op)?;
        let scratch = self.issuing.scratch(self.op, self.stamp, bytes)?;
        let address = scratch.address();
        self.scratch.push(scratch);
        Ok(Arg::Address(address))
    }

    /// Scratch memory for a product. All products of an operation share it: each runs behind the last.
    pub(super) fn workspace(&mut self, bytes: usize) -> Result<u64> {
        let shared = self.workspace.map(|place| &self.scratch[place as usize]);
        if let Some(shared) = shared.filter(|shared| shared.bytes() >= bytes) {
            return Ok(shared.address());
        }
        let fresh = self.scratch(bytes)?;
        if bytes > 0 {
            self.workspace = u32::try_from(self.scratch.len() - 1).ok();
        }
        Ok(fresh.bits())
    }

    /// Sets bytes of an operand to 0.
    pub(super) fn zero(&mut self, at: u64, bytes: usize) -> Result<()> {
        self.gpu().enter(self.op)?;
        let stream = self.stream();
        // SAFETY: the bytes are those of an operand, whose use the drop of the guard records.
        unsafe { result::memset_d8_async(at, 0, bytes, stream) }
            .map_err(|e| self.failed("filling with zeros", e))
    }

    /// The flag for an index out of range, and the number under which this operation notes itself.
    pub(crate) fn index_flag(&mut self) -> Result<[Arg<'static>; 2]> {
        self.gpu().enter(self.op)?;
        let (op, stamp, flag) = (self.op, self.stamp, &self.gpu().index);
        let (address, place) = flag.lend(op, &mut self.issuing, stamp)?;
        Ok([Arg::Address(address), Arg::Small(place)])
    }

    /// Compiles and loads a kernel, so that launching it cannot fail for want of it.
    pub(crate) fn prepare(
        &mut self,
        source: Kernel,
        types: &[DType],
        name: &'static str,
    ) -> Result<()> {
        let gpu = self.gpu();
        gpu.enter(self.op)?;
        let variant = Variant::new(source, types);
        let function = gpu
            .modules
            .function(self.op, &mut self.issuing, variant, name);
        function.map(drop)
    }

    /// Launches the kernel `name` of a family, compiled for `types`.
    pub(crate) fn launch(
        &mut self,
        source: Kernel,
        types: &[DType],
        name: &'static str,
        grid: Grid,
        args: &[Arg<'_>],
    ) -> Result<()> {
        let gpu = self.gpu();
        // Another card's may have become the thread's context since.
        gpu.enter(self.op)?;
        let variant = Variant::new(source, types);
        let function = gpu
            .modules
            .function(self.op, &mut self.issuing, variant, name)?;
        let mut pointers: SmallVec<[*mut c_void; 16]> = SmallVec::new();
        // A kernel with another signature than its caller believes is a bug of this crate.
        if let Some(params) = &function.params {
            let sizes = args.iter().map(|arg| arg.bytes().len());
            assert!(
                sizes.eq(params.iter().copied()),
                "{}: the arguments of {name} are not its parameters, of {params:?} bytes",
                self.op
            );
        }
        for arg in args {
            pointers.push(arg.bytes().as_ptr().cast_mut().cast());
        }
        let [mut bx, by, bz] = grid.blocks;
        if grid.strides {
            bx = bx.min(gpu.most_blocks());
        }
        let [tx, ty, tz] = grid.threads;
        let stream = self.stream();
        // SAFETY: the function belongs to the card, whose context is current; there is a pointer to
        // a value of the right size for each of its parameters, and the driver copies the values
        // before it returns. The addresses among them are those of operands, whose memory is freed
        // in stream order behind this launch, since the drop of the guard records their use.
        unsafe {
            result::launch_kernel(
                function.handle.0,
                (bx, by, bz),
                (tx, ty, tz),
                0,
                stream,
                &mut pointers,
            )
        }
        .map_err(|e| self.failed(&format!("launching the kernel {name}"), e))
    }
}

impl Drop for Issue {
    fn drop(&mut self) {
        // Where no event could be recorded, the card has failed, and its next operation says so.
        let _ = self.gpu().enter(self.op);
        let _ = self.issuing.lanes().issued(self.stamp);
        for (storage, how) in &self.uses {
            let Memory::Cuda(storage) = storage.memory() else {
                continue;
            };
            match how {
                Use::Read => storage.read(self.stamp),
                Use::Write | Use::Update => storage.written(self.stamp),
            }
        }
    }
}

/// The address of a tensor's first element; 0 where it has none.
pub(super) fn place(tensor: &Tensor) -> u64 {
    let Memory::Cuda(storage) = tensor.storage().memory() else {
        unreachable!("a kernel for a card was given an operand in the host's memory");
    };
    match tensor.numel() {
        0 => 0,
        _ => storage.address() + (tensor.layout().offset() * tensor.dtype().size()) as u64,
    }
}

/// The storage of a tensor on a card.
pub(super) fn storage(tensor: &Tensor) -> &CudaStorage {
    match tensor.storage().memory() {
        Memory::Cuda(storage) => storage,
        Memory::Cpu(_) => unreachable!("a tensor on a card was expected"),
    }
}
