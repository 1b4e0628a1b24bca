//! Layers without parameters: activations, pooling, flattening, dropout.

use super::module::{Count, Module, Training, Visitor};
use crate::error::Result;
use crate::tape::Tape;
use crate::var::Var;
use phalanx_tensor::Rng;
pub use phalanx_tensor::ops::pool::Pool2dConfig;
pub use phalanx_tensor::ops::unary::GeluKind;

/// One row a layer: its fields and the method that it applies.
macro_rules! layers {
    ($($(#[$doc:meta])* $layer:ident $(($($field:ident: $ty:ty),*))? |$x:ident| $forward:expr;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $layer $(($(pub $ty),*))?;

            impl Module for $layer {
                fn forward(&self, _tape: &Tape, $x: &Var) -> Result<Var> {
                    let $layer $(($($field),*))? = self;
                    $forward
                }
                fn visit(&self, _v: &mut Visitor<'_>) {}
            }
        )*
    };
}

layers! {
    /// The larger of x and 0. In front of it, [`Linear::with_activation`](super::Linear) and
    /// [`BatchNorm2d::with_relu`](super::BatchNorm2d::with_relu) do the same in one pass.
    Relu |x| x.relu();
    /// x where it is positive, else the slope times x.
    LeakyRelu(slope: f64) |x| x.leaky_relu(*slope);
    /// The Gaussian error linear unit.
    Gelu(kind: GeluKind) |x| x.gelu(*kind);
    /// x · sigmoid(x).
    Silu |x| x.silu();
    /// The hyperbolic tangent.
    Tanh |x| x.tanh();
    /// The logistic function.
    Sigmoid |x| x.sigmoid();
    /// The softmax along an axis.
    Softmax(axis: isize) |x| x.softmax(*axis);
    /// The logarithm of the softmax along an axis.
    LogSoftmax(axis: isize) |x| x.log_softmax(*axis);
    /// The maximum of each window of `[n, c, h, w]`.
    MaxPool2d(config: Pool2dConfig) |x| x.max_pool2d(config);
    /// The mean of each window of `[n, c, h, w]`.
    AvgPool2d(config: Pool2dConfig) |x| x.avg_pool2d(config);
    /// The means over so many equal parts of each plane; `[1, 1]` is the global mean.
    AdaptiveAvgPool2d(out: [usize; 2]) |x| x.adaptive_avg_pool2d(*out);
    /// All axes but the first become one.
    Flatten |x| if x.rank() <= 1 { x.unsqueeze(-1) } else { x.flatten(1, -1) };
    /// What comes in.
    Identity |x| Ok(x.clone());
}

/// In training, drops each element with probability `p` and scales the others (Srivastava et al.
/// 2014), as `torch.nn.Dropout`; in evaluation, the identity.
///
/// The `k`-th use draws from a stream that `seed` and `k` determine: a run repeats, whatever else
/// draws random numbers. How many uses there were is part of the module's state, as `uses`: a run
/// that resumes from it draws what it would have drawn.
#[derive(Debug)]
pub struct Dropout {
    p: f64,
    seed: Rng,
    uses: Count,
    training: Training,
}

impl Dropout {
    /// Drops with probability `p`. Give each layer, and each rank, a seed of its own.
    pub fn new(p: f64, seed: u64) -> Dropout {
        Dropout {
            p,
            seed: Rng::new(seed),
            uses: Count::default(),
            training: Training::default(),
        }
    }
}

impl Module for Dropout {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        if !self.training.is_on() || self.p == 0.0 {
            return Ok(x.clone());
        }
        let seed = tape.seed(|| self.seed.fold_in(self.uses.advance()).next_u64());
        x.dropout(self.p, &mut Rng::new(seed))
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.count("uses", &self.uses);
        v.training(&self.training);
    }
}
