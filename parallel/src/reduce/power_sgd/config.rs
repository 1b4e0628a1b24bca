//! [`PowerSgdConfig`]: how gradients are compressed, and which.

use crate::{Error, Result};
use phalanx_tensor::Shape;

/// How [`PowerSgd`](crate::PowerSgd) compresses (PyTorch: `PowerSGDState`). All ranks must use the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerSgdConfig {
    /// The columns of *P* and *Q*, at most as many as the matrix has rows and columns (PyTorch:
    /// `matrix_approximation_rank`). Usual values are 1 to 4, and up to 32 for language models. Default: 1.
    pub rank: usize,
    /// So many steps send exact averages first: early gradients are large, and training is sensitive to what they lose
    /// (PyTorch: `start_powerSGD_iter`). Ten percent of all steps is a good start. Default: 1,000.
    pub start_step: u64,
    /// A matrix is compressed if that makes it smaller by more than this factor (PyTorch: `min_compression_rate`).
    /// Default: 2.
    pub min_compression_rate: f64,
    /// Whether what the compression loses is added to the next gradient. Without it, it is lost for good. Default:
    /// true.
    pub use_error_feedback: bool,
    /// Whether each step starts from the *Q* of the step before; else from a random one, another in each step.
    /// Default: true.
    pub warm_start: bool,
    /// Where the random *Q* come from, the same on every rank (PyTorch: `random_seed`). Default: 0.
    pub seed: u64,
}

impl Default for PowerSgdConfig {
    fn default() -> Self {
        PowerSgdConfig {
            rank: 1,
            start_step: 1000,
            min_compression_rate: 2.0,
            use_error_feedback: true,
            warm_start: true,
            seed: 0,
        }
    }
}

impl PowerSgdConfig {
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |reason: String| {
            Err(Error::InvalidUse {
                op: "PowerSgd::new",
                reason,
            })
        };
        if self.rank == 0 {
            return wrong("the rank must be at least 1".into());
        }
        let rate = self.min_compression_rate;
        if !(rate.is_finite() && rate >= 0.0) {
            return wrong(format!(
                "the least rate of compression is {rate}; it must be finite and not negative"
            ));
        }
        Ok(())
    }

    /// The columns of *P* and *Q* for a matrix.
    pub fn rank_of(&self, rows: usize, columns: usize) -> usize {
        self.rank.min(rows).min(columns)
    }

    /// Whether a matrix is compressed: whether *r*(*n* + *m*) times the least rate is less than *n m*.
    pub fn pays(&self, rows: usize, columns: usize) -> bool {
        let (n, m) = (rows as f64, columns as f64);
        let r = self.rank_of(rows, columns) as f64;
        (n + m) * r * self.min_compression_rate < n * m
    }

    /// The matrix as which a gradient of this shape is compressed, if it is: its rows and columns.
    pub fn compresses(&self, shape: &Shape) -> Option<(usize, usize)> {
        let numel = shape.numel();
        if shape.len() < 2 || numel == 0 {
            return None;
        }
        let (rows, columns) = (shape[0], numel / shape[0]);
        self.pays(rows, columns).then_some((rows, columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_rank(rank: usize) -> PowerSgdConfig {
        PowerSgdConfig {
            rank,
            ..Default::default()
        }
    }

    #[test]
    fn what_pays_is_compressed() {
        let shape = |dims: &[usize]| Shape::from(dims);
        let config = of_rank(4);
        assert_eq!(config.compresses(&shape(&[64, 32, 3, 3])), Some((64, 288)));
        assert_eq!(config.compresses(&shape(&[17, 16])), Some((17, 16))); // 264 of 272
        assert_eq!(config.compresses(&shape(&[16, 16])), None); // 256 of 256
        for dims in [&[100_000][..], &[], &[0, 4], &[4, 0], &[1, 100_000]] {
            assert_eq!(config.compresses(&shape(dims)), None, "{dims:?}");
        }
        assert_eq!(of_rank(9).rank_of(3, 50), 3);
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        assert!(of_rank(1).check().is_ok());
        let error = of_rank(0).check().unwrap_err().to_string();
        assert_eq!(error, "PowerSgd::new: the rank must be at least 1");
        for rate in [-1.0, f64::NAN, f64::INFINITY] {
            let config = PowerSgdConfig {
                min_compression_rate: rate,
                ..of_rank(1)
            };
            assert!(config.check().is_err(), "{rate}");
        }
    }
}
