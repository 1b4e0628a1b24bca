//! Seeded numbers, most of them small and some of any size, and what may be expected of a result.

use phalanx_tensor::{DType, Device, Result, Tensor};

/// Results and operands up to this many bytes are made and compared.
pub const SMALL: u128 = 1 << 20;
/// From here on no machine has the bytes: the addresses of a process end there.
pub const NONE_HAS: u128 = 1 << 47;
/// Multiply-adds that a plain loop may take.
pub const WORK: u128 = 1 << 20;

/// What an operation must do.
pub enum Want {
    /// Give a tensor of this shape and these values.
    Values(Vec<usize>, Vec<f64>),
    /// Return an error.
    Error,
    /// Nothing is said: it would take real memory or time.
    Anything,
}

/// A draw of all numbers of one case.
pub struct Draw {
    state: u64,
    /// One number in so many is of any size; 0: none.
    wild: usize,
    /// Bytes of the operands that were made.
    pub bytes: usize,
    pub device: Device,
}

impl Draw {
    pub fn new(seed: u64, device: Device) -> Draw {
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = Draw {
            state,
            wild: 0,
            bytes: 0,
            device,
        };
        draw.wild = draw.pick(&[0, 0, 0, 20, 6]);
        draw
    }

    pub fn next(&mut self) -> u64 {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// In `low..=high`, or of any size.
    pub fn number(&mut self, low: usize, high: usize) -> usize {
        if self.wild > 0 && self.below(self.wild) == 0 {
            return self.any();
        }
        low + self.below(high - low + 1)
    }

    /// Near a power of two, near the largest, or a thousand.
    pub fn any(&mut self) -> usize {
        let power = 1usize << self.below(64);
        match self.below(6) {
            0 => 0,
            1 => usize::MAX - self.below(4),
            2 => (isize::MAX as usize - 2) + self.below(5),
            3 => power,
            4 => power.wrapping_sub(1 + self.below(2)),
            _ => self.below(1000),
        }
    }

    pub fn shape(&mut self, rank: usize, low: usize, high: usize) -> Vec<usize> {
        (0..rank).map(|_| self.number(low, high)).collect()
    }

    /// Small whole numbers: their sums and products are exact in every type.
    pub fn values(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.below(5) as f64 - 2.0).collect()
    }

    /// A tensor of small whole numbers, and these; `None` where the shape asks for memory, or must
    /// be refused, which is looked at.
    pub fn tensor(&mut self, shape: &[usize], dtype: DType) -> Option<(Tensor, Vec<f64>)> {
        let bytes = bytes(shape, dtype);
        if !countable(shape, dtype) || bytes >= NONE_HAS {
            let made = Tensor::zeros(shape.to_vec(), dtype, self.device);
            assert!(made.is_err(), "{shape:?} of {dtype} was made");
            return None;
        }
        if bytes > SMALL {
            return None;
        }
        if bytes == 0 {
            // Not by way of a wider type, in which it may be too long.
            let made = Tensor::zeros(shape.to_vec(), dtype, self.device);
            return Some((made.expect("an empty tensor"), Vec::new()));
        }
        let values = self.values(shape.iter().product());
        let t = Tensor::from_slice(&values, shape.to_vec(), self.device);
        let t = t.and_then(|t| t.cast(dtype)).expect("a small tensor");
        self.bytes += bytes as usize;
        Some((t, values))
    }
}

/// The rule for shapes, by plain arithmetic.
pub fn countable(shape: &[usize], dtype: DType) -> bool {
    let product = shape.iter().try_fold(dtype.size() as u128, |n, &d| {
        n.checked_mul(d.max(1) as u128)
    });
    product.is_some_and(|n| n <= isize::MAX as u128)
}

/// The bytes of a tensor, as far as they matter.
pub fn bytes(shape: &[usize], dtype: DType) -> u128 {
    let size = dtype.size() as u128;
    if shape.contains(&0) {
        return 0;
    }
    (shape.iter()).fold(size, |n, &d| n.saturating_mul(d as u128))
}

/// `None` where a result takes real memory, but none that no machine has: such a case is drawn again
/// before it runs.
pub fn room(shape: &[usize], dtype: DType) -> Option<()> {
    let bytes = bytes(shape, dtype);
    (!countable(shape, dtype) || bytes <= SMALL || bytes >= NONE_HAS).then_some(())
}

/// What must become of a result of `shape`, whose values take `work` steps to compute.
pub fn want(shape: &[usize], dtype: DType, work: u128, values: impl FnOnce() -> Vec<f64>) -> Want {
    let bytes = bytes(shape, dtype);
    if !countable(shape, dtype) || bytes >= NONE_HAS {
        Want::Error
    } else if bytes > SMALL || work > WORK {
        Want::Anything
    } else if bytes == 0 {
        Want::Values(shape.to_vec(), Vec::new())
    } else {
        Want::Values(shape.to_vec(), values())
    }
}

/// All elements, as numbers.
pub fn numbers(t: &Tensor) -> Result<Vec<f64>> {
    if t.numel() == 0 {
        return Ok(Vec::new());
    }
    t.cast(DType::F64)?.to_vec::<f64>()
}
