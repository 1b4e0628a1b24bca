//! Initial values of parameters, from an explicit stream of random numbers.

use crate::error::{Error, Result};
use phalanx_tensor::{DType, Device, Rng, Shape, Tensor};

/// Where new parameters come from: their element type, their device, and the random numbers.
///
/// Layers take it by `&mut`, in the order in which they are made: the same program with the same
/// seed makes the same model, on any device. Where a rank makes a part of a model only, each part
/// comes from the factory [`at`](Factory::at) its path.
///
/// ```
/// use phalanx_autograd::nn::{Factory, Linear};
/// use phalanx_tensor::{DType, Device};
///
/// let mut f = Factory::new(Device::cpu(0), 42);
/// let first = Linear::new(784, 128, &mut f)?;
/// f.device = Device::cpu(1); // the rest of the model lives elsewhere
/// f.dtype = DType::F64;
/// let second = Linear::new(128, 10, &mut f)?;
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Factory {
    /// The element type; `f32` at first.
    pub dtype: DType,
    /// The device.
    pub device: Device,
    /// The random numbers.
    pub rng: Rng,
}

impl Factory {
    /// `f32` parameters on `device`, from the random numbers of `seed`.
    pub fn new(device: Device, seed: u64) -> Factory {
        Factory {
            dtype: DType::F32,
            device,
            rng: Rng::new(seed),
        }
    }

    /// A factory for the part of a model at `path`, the names of its modules with dots between them:
    /// its random numbers follow from this factory's seed and the path alone, and not from what has
    /// been made before. So a rank that builds some layers of a model gives them the values that they
    /// have where all are built, in whatever order.
    ///
    /// Paths join: `f.at("3").at("conv1")` is `f.at("3.conv1")`.
    ///
    /// ```
    /// use phalanx_autograd::nn::{Factory, Linear};
    /// use phalanx_tensor::Device;
    ///
    /// let f = Factory::new(Device::cpu(0), 42);
    /// let layer = |i: usize| Linear::new(4, 4, &mut f.at(&i.to_string()));
    /// let weight = |layer: &Linear| layer.weight.read(|w| w.to_vec::<f32>());
    /// let all = [layer(0)?, layer(1)?, layer(2)?];
    /// let last = layer(2)?; // as a rank that has this one only
    /// assert_eq!(weight(&last)?, weight(&all[2])?);
    /// assert_ne!(weight(&last)?, weight(&all[1])?);
    /// # Ok::<(), phalanx_autograd::Error>(())
    /// ```
    #[must_use]
    pub fn at(&self, path: &str) -> Factory {
        let rng = self.rng.clone();
        Factory {
            rng: path
                .split('.')
                .fold(rng, |rng, name| rng.fold_in(hash(name))),
            ..*self
        }
    }

    /// A tensor with these initial values.
    ///
    /// # Errors
    /// As [`Init::tensor`].
    pub fn tensor(&mut self, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        init.tensor(shape, self.dtype, self.device, &mut self.rng)
    }
}

/// The 64 bits of FNV-1a (Fowler, Noll and Vo), which are the same on every machine.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Which number of connections sets the scale: the factor that keeps the variance of activations,
/// or that of gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fan {
    /// Connections into an output: activations keep their variance.
    #[default]
    In,
    /// Connections out of an input: gradients keep their variance.
    Out,
}

/// A distribution of initial values, as in `torch.nn.init`.
///
/// A weight is `[out, in, …]`: `fan_in` is the product of all extents but the first, `fan_out` that
/// of all but the second.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Init {
    /// One value.
    Constant(f64),
    /// Uniform in `low .. high`.
    Uniform {
        /// The lower bound.
        low: f64,
        /// The upper bound.
        high: f64,
    },
    /// Normal.
    Normal {
        /// The mean.
        mean: f64,
        /// The standard deviation.
        std: f64,
    },
    /// Normal with mean 0, drawn again outside of two standard deviations (PyTorch's
    /// `trunc_normal_(std=std, a=-2*std, b=2*std)`).
    TruncatedNormal {
        /// The standard deviation before the cut.
        std: f64,
    },
    /// Uniform with bound `gain · √(3 / fan)` (He et al. 2015); the gain for ReLU is √2.
    KaimingUniform {
        /// The activation's factor.
        gain: f64,
        /// Which fan.
        fan: Fan,
    },
    /// Normal with standard deviation `gain / √fan` (He et al. 2015); the gain for ReLU is √2.
    KaimingNormal {
        /// The activation's factor.
        gain: f64,
        /// Which fan.
        fan: Fan,
    },
    /// Uniform with bound `gain · √(6 / (fan_in + fan_out))` (Glorot and Bengio 2010).
    XavierUniform {
        /// The activation's factor.
        gain: f64,
    },
    /// Normal with standard deviation `gain · √(2 / (fan_in + fan_out))` (Glorot and Bengio 2010).
    XavierNormal {
        /// The activation's factor.
        gain: f64,
    },
}

impl Init {
    /// Uniform with bound `1 / √fan_in`: PyTorch's default for the weights and biases of linear and
    /// convolutional layers, where `fan_in` is the weight's.
    pub fn fan_in_uniform(fan_in: usize) -> Init {
        let bound = if fan_in == 0 {
            0.0
        } else {
            (fan_in as f64).sqrt().recip()
        };
        Init::Uniform {
            low: -bound,
            high: bound,
        }
    }

    /// A tensor with such values. Drawn as `f64` or `f32`; a half type rounds what `f32` has.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where a fan is asked of a shape with fewer than two axes; as
    /// [`Tensor::rand`].
    pub fn tensor(
        self,
        shape: impl Into<Shape>,
        dtype: DType,
        device: Device,
        rng: &mut Rng,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let drawn = if dtype == DType::F64 {
            dtype
        } else {
            DType::F32
        };
        let uniform = |shape: Shape, low: f64, high: f64, rng: &mut Rng| -> Result<Tensor> {
            let t = Tensor::rand(shape, drawn, device, rng)?;
            Ok(t.mul_scalar(high - low)?.add_scalar(low)?)
        };
        let normal = |shape: Shape, mean: f64, std: f64, rng: &mut Rng| -> Result<Tensor> {
            let t = Tensor::randn(shape, drawn, device, rng)?;
            Ok(t.mul_scalar(std)?.add_scalar(mean)?)
        };
        let t = match self {
            Init::Constant(value) => return Ok(Tensor::full(shape, value, dtype, device)?),
            Init::Uniform { low, high } => uniform(shape, low, high, rng)?,
            Init::Normal { mean, std } => normal(shape, mean, std, rng)?,
            Init::TruncatedNormal { std } => {
                let mut t = Tensor::randn(&shape, drawn, device, rng)?;
                // One element in 22 lies outside; each round leaves a 22nd of those.
                let limit = Tensor::full((), 2.0, drawn, device)?;
                loop {
                    let outside = t.abs()?.gt(&limit)?;
                    if outside.sum_all()?.item::<f64>()? == 0.0 {
                        break;
                    }
                    t = Tensor::where_cond(
                        &outside,
                        &Tensor::randn(&shape, drawn, device, rng)?,
                        &t,
                    )?;
                }
                t.mul_scalar(std)?
            }
            Init::KaimingUniform { gain, fan } => {
                let bound = gain * (3.0 / choose(&shape, fan)?).sqrt();
                uniform(shape, -bound, bound, rng)?
            }
            Init::KaimingNormal { gain, fan } => {
                let std = gain / choose(&shape, fan)?.sqrt();
                normal(shape, 0.0, std, rng)?
            }
            Init::XavierUniform { gain } => {
                let (fan_in, fan_out) = fans(&shape)?;
                let bound = gain * (6.0 / (fan_in + fan_out)).sqrt();
                uniform(shape, -bound, bound, rng)?
            }
            Init::XavierNormal { gain } => {
                let (fan_in, fan_out) = fans(&shape)?;
                normal(shape, 0.0, gain * (2.0 / (fan_in + fan_out)).sqrt(), rng)?
            }
        };
        Ok(t.cast(dtype)?)
    }
}

fn choose(shape: &Shape, fan: Fan) -> Result<f64> {
    let (fan_in, fan_out) = fans(shape)?;
    Ok(match fan {
        Fan::In => fan_in,
        Fan::Out => fan_out,
    })
}

/// `fan_in` and `fan_out` of a weight.
fn fans(shape: &Shape) -> Result<(f64, f64)> {
    let &[out, inputs, ref window @ ..] = &shape[..] else {
        return Err(Error::InvalidArgument {
            op: "init",
            reason: format!("a weight of shape {shape} has no fan: it needs two axes"),
        });
    };
    // In `f64`, which cannot overflow: a weight without elements may have any other extents.
    let window: f64 = window.iter().map(|&n| n as f64).product();
    Ok((inputs as f64 * window, out as f64 * window))
}
