//! Layers without parameters: activations, pooling, flattening, dropout.

use super::init::Factory;
use super::module::{Count, Module, Training, Visitor};
use crate::error::{Error, Result};
use crate::tape::Tape;
use crate::var::Var;
pub use phalanx_tensor::ops::pool::Pool2dConfig;
pub use phalanx_tensor::ops::unary::GeluKind;
use phalanx_tensor::{Rng, unary_table};

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

/// The layers of the tensor's table, as rows of [`layers!`].
macro_rules! table {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) $values:tt $range:tt $gradient:tt
        $reference:tt $backward:tt $integers:tt [[$(#[$more:meta])*]] $activation:tt
        [$(#[$doc:meta])*] $($rest:tt)*
    })*) => {
        layers! {
            $($(#[$doc])* $(#[$more])* $Name $(($arg: $ty))? |$vx| $vx.$name($(*$arg)?);)*
        }
    };
}

unary_table!(table modules);

layers! {
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
/// The stream of random numbers comes from the [`Factory`], as initial values do: each layer has one
/// of its own, and the same program with the same seed drops the same elements. Ranks whose
/// factories have the same seed drop the same elements too; give each rank's factory a seed of its
/// own where they shall differ (data-parallel replicas then take the parameters of rank 0).
///
/// The `k`-th use draws from what that stream and `k` determine: a run repeats, whatever else
/// draws random numbers. How many uses there were is part of the module's state, as `uses`: a run
/// that resumes from it draws what it would have drawn. On a tape that knows the step and the
/// micro-batch ([`Tape::draw_at`]), the `k`-th use of that forward pass draws from what these determine,
/// and no use is counted: micro-batches may run in any order, on any rank.
#[derive(Debug)]
pub struct Dropout {
    p: f64,
    stream: Rng,
    uses: Count,
    training: Training,
}

impl Dropout {
    /// Drops with probability `p`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a `p` outside 0 to 1.
    pub fn new(p: f64, f: &mut Factory) -> Result<Dropout> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::InvalidArgument {
                op: "Dropout::new",
                reason: format!("{p} is no probability"),
            });
        }
        Ok(Dropout {
            p,
            stream: f.rng.split(),
            uses: Count::default(),
            training: Training::default(),
        })
    }
}

impl Module for Dropout {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        if !self.training.is_on() || self.p == 0.0 {
            return Ok(x.clone());
        }
        x.dropout(self.p, &mut tape.draw(&self.stream, &self.uses))
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.count("uses", &self.uses);
        v.training(&self.training);
    }
}
