//! Random numbers: the generator [`Rng`], and tensors drawn from it.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod philox;

use super::fill::expect_len;
use crate::storage::{On, on, out};
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// A stream of random numbers (Philox4x32-10), and how far it has been read.
///
/// It is a plain value of 16 bytes: clone it to draw the same numbers again, keep its
/// [`state`](Rng::state) in a checkpoint. The numbers depend on the seed and on the calls made,
/// never on the number of threads.
///
/// ```
/// use phalanx_tensor::{DType, Device, Rng, Tensor};
///
/// let seed = Rng::new(42);
/// let mut layer = seed.fold_in(3); // a stream of its own for layer 3
/// let a = Tensor::randn([2, 3], DType::F32, Device::cpu(0), &mut layer.clone())?;
/// let b = Tensor::randn([2, 3], DType::F32, Device::cpu(0), &mut layer)?;
/// assert_eq!(a.to_vec::<f32>()?, b.to_vec::<f32>()?);
/// # Ok::<(), phalanx_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rng {
    key: u64,
    /// The next unread block of four words.
    next: u64,
}

impl Rng {
    /// The stream of `seed`, at its start.
    pub fn new(seed: u64) -> Rng {
        Rng { key: seed, next: 0 }
    }

    /// Another stream, at its start: a function of this stream's seed and of `data` (a layer, a
    /// rank, an epoch), however far this one has been read.
    pub fn fold_in(&self, data: u64) -> Rng {
        // Numbers have 0 in the upper counter: derived keys are none of them.
        self.derived([data, 1])
    }

    /// Another stream, at its start: a different one at each call.
    pub fn split(&mut self) -> Rng {
        let at = self.reserve(1);
        self.derived([at, 2])
    }

    fn derived(&self, counter: [u64; 2]) -> Rng {
        let words = philox::block(counter, self.key);
        Rng::new(u64::from(words[0]) | u64::from(words[1]) << 32)
    }

    /// Seed and position, for a checkpoint.
    pub fn state(&self) -> [u64; 2] {
        [self.key, self.next]
    }

    /// The stream that had this [`state`](Rng::state).
    pub fn from_state([key, next]: [u64; 2]) -> Rng {
        Rng { key, next }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let at = self.reserve(1);
        let words = philox::block([at, 0], self.key);
        u64::from(words[0]) | u64::from(words[1]) << 32
    }

    /// Uniform in `0.0 .. 1.0`, of 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * 2f64.powi(-53)
    }

    /// Uniform in `0 .. bound` (the probabilities differ by at most `bound` / 2⁶⁴); 0 where
    /// `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        philox::scale(self.next_u64(), bound)
    }

    /// Puts the items in random order (Fisher and Yates).
    ///
    /// ```
    /// # use phalanx_tensor::Rng;
    /// let mut items = [1, 2, 3, 4];
    /// Rng::new(0).shuffle(&mut items);
    /// items.sort();
    /// assert_eq!(items, [1, 2, 3, 4]);
    /// ```
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// The numbers `0 .. len` in random order: what a sampler reads.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for more numbers than there is memory for.
    pub fn permutation(&mut self, len: usize) -> Result<Vec<usize>> {
        let mut order = Vec::new();
        if order.try_reserve_exact(len).is_err() {
            return Err(Error::InvalidArgument {
                op: "permutation",
                reason: format!("len is {len}: there is no memory for so many numbers"),
            });
        }
        order.extend(0..len);
        self.shuffle(&mut order);
        Ok(order)
    }

    /// Takes `blocks` blocks off the stream; the first one's number.
    fn reserve(&mut self, blocks: usize) -> u64 {
        let first = self.next;
        self.next = self.next.wrapping_add(blocks as u64);
        first
    }
}

fn expect_probability(op: &'static str, p: f64) -> Result<()> {
    if (0.0..=1.0).contains(&p) {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        op,
        reason: format!("{p} is no probability"),
    })
}

impl Tensor {
    /// Uniform in `0 .. 1`, with as many random bits as the type's numbers have below 1.
    ///
    /// # Errors
    /// [`Error::UnsupportedDType`] for integers; [`Error::OutOfMemory`],
    /// [`Error::DeviceUnavailable`].
    pub fn rand(
        shape: impl Into<Shape>,
        dtype: DType,
        device: Device,
        rng: &mut Rng,
    ) -> Result<Tensor> {
        let mut t = Tensor::allocate("rand", shape.into(), dtype, device)?;
        t.expect_float("rand")?;
        match on("rand", out(&mut t))? {
            On::Cpu(t) => cpu::rand(t, rng)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, t) => cuda::rand(&mut lane, t, rng)?,
        }
        Ok(t)
    }

    /// Of the normal distribution with mean 0 and variance 1 (Box and Muller). The half types
    /// round what `f32` gets.
    ///
    /// # Errors
    /// As [`rand`](Tensor::rand).
    pub fn randn(
        shape: impl Into<Shape>,
        dtype: DType,
        device: Device,
        rng: &mut Rng,
    ) -> Result<Tensor> {
        let mut t = Tensor::allocate("randn", shape.into(), dtype, device)?;
        t.expect_float("randn")?;
        match on("randn", out(&mut t))? {
            On::Cpu(t) => cpu::randn(t, rng)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, t) => cuda::randn(&mut lane, t, rng)?,
        }
        Ok(t)
    }

    /// Integers of type `i64`, uniform in `low .. high`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where `low >= high`; [`Error::OutOfMemory`],
    /// [`Error::DeviceUnavailable`].
    pub fn randint(
        low: i64,
        high: i64,
        shape: impl Into<Shape>,
        device: Device,
        rng: &mut Rng,
    ) -> Result<Tensor> {
        let op = "randint";
        if low >= high {
            return Err(Error::InvalidArgument {
                op,
                reason: format!("no integer is in {low} .. {high}"),
            });
        }
        let mut t = Tensor::allocate(op, shape.into(), DType::I64, device)?;
        match on(op, out(&mut t))? {
            On::Cpu(t) => cpu::randint(low, high, t, rng)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, t) => cuda::randint(&mut lane, low, high, t, rng)?,
        }
        Ok(t)
    }

    /// 1 with probability `p` (to 2⁻³²), else 0.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where `p` is outside 0 to 1; [`Error::OutOfMemory`],
    /// [`Error::DeviceUnavailable`].
    pub fn bernoulli(
        p: f64,
        shape: impl Into<Shape>,
        dtype: DType,
        device: Device,
        rng: &mut Rng,
    ) -> Result<Tensor> {
        expect_probability("bernoulli", p)?;
        bernoulli("bernoulli", p, shape.into(), device, rng)?.cast_for("bernoulli", dtype)
    }

    /// The numbers `0 .. len`, of type `i64`, in random order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where `len` elements cannot be addressed; [`Error::OutOfMemory`],
    /// [`Error::DeviceUnavailable`].
    pub fn randperm(len: usize, device: Device, rng: &mut Rng) -> Result<Tensor> {
        expect_len("randperm", "len", len, DType::I64)?;
        let mut t = Tensor::allocate("randperm", len.into(), DType::I64, device)?;
        match on("randperm", out(&mut t))? {
            On::Cpu(t) => cpu::randperm(t, rng)?,
            #[cfg(feature = "cuda")]
            On::Cuda(lane, t) => {
                drop(lane); // a transfer has its own
                cuda::randperm("randperm", t, rng)?;
            }
        }
        Ok(t)
    }

    /// Each element is dropped (set to 0) with probability `p`, and else divided by `1 - p`, so
    /// that the mean stays (Srivastava et al. 2014). Returns the result and the mask of what was
    /// kept, of type `bool`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where `p` is outside 0 to 1; [`Error::UnsupportedDType`] for
    /// integers; [`Error::OutOfMemory`].
    pub fn dropout(&self, p: f64, rng: &mut Rng) -> Result<(Tensor, Tensor)> {
        let op = "dropout";
        expect_probability(op, p)?;
        self.expect_float(op)?;
        let mask = bernoulli(op, 1.0 - p, self.shape().clone(), self.device(), rng)?;
        Ok((self.scale_kept(op, &mask, p)?, mask))
    }

    /// Backward of [`dropout`](Tensor::dropout): `self` is the gradient of the result.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], [`Error::DeviceMismatch`]; [`Error::UnsupportedDType`] where
    /// `self` is no float; [`Error::WrongDType`] where `mask` is neither `bool` nor `u8`; [`Error::InvalidArgument`] where `p` is outside
    /// 0 to 1; [`Error::OutOfMemory`].
    pub fn dropout_backward(&self, mask: &Tensor, p: f64) -> Result<Tensor> {
        let op = "dropout_backward";
        expect_probability(op, p)?;
        self.expect_float(op)?;
        self.expect_same_device(op, mask)?;
        mask.expect_mask(op, "the mask")?;
        if self.shape() != mask.shape() {
            return Err(Error::ShapeMismatch {
                op,
                lhs: self.shape().clone(),
                rhs: mask.shape().clone(),
                reason: "the gradient must have the shape of the mask",
            });
        }
        self.scale_kept(op, mask, p)
    }

    /// `self / (1 - p)` where `mask` is not 0, else 0.
    fn scale_kept(&self, op: &'static str, mask: &Tensor, p: f64) -> Result<Tensor> {
        // With p = 1 everything is dropped, and the scale is never used.
        let scale = if p < 1.0 { 1.0 / (1.0 - p) } else { 0.0 };
        let mut kept = Tensor::allocate(op, self.shape().clone(), self.dtype(), self.device())?;
        match on(op, (self, mask, out(&mut kept)))? {
            On::Cpu((x, mask, kept)) => cpu::scale_kept(op, x, mask, scale, kept)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, mask, kept)) => {
                cuda::scale_kept(&mut lane, x, mask, scale, kept)?
            }
        }
        Ok(kept)
    }
}

/// True with probability `p`, of type `bool`.
fn bernoulli(
    op: &'static str,
    p: f64,
    shape: Shape,
    device: Device,
    rng: &mut Rng,
) -> Result<Tensor> {
    let mut t = Tensor::allocate(op, shape, DType::Bool, device)?;
    match on(op, out(&mut t))? {
        On::Cpu(t) => cpu::bernoulli(p, t, rng)?,
        #[cfg(feature = "cuda")]
        On::Cuda(mut lane, t) => cuda::bernoulli(&mut lane, p, t, rng)?,
    }
    Ok(t)
}
