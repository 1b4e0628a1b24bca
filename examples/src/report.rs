//! What a training ends with: a summary for people, one line of JSON for machines, the curves for a chart.

use std::fmt;

use phalanx_autograd::Param;
use phalanx_tensor::Device;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// How a training went, step by step and epoch by epoch.
#[derive(Clone, Debug, Default)]
pub struct Curves {
    /// Mean loss over all ranks, for each step.
    pub losses: Vec<f32>,
    /// Share of the test images classified correctly, after each epoch.
    pub accuracies: Vec<f64>,
}

/// What was trained, how, and to what effect. Serialised, it is the examples' JSON line.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The program.
    pub example: &'static str,
    /// The model.
    pub model: String,
    /// What carries the gradients between ranks.
    pub backend: String,
    /// The kind of device.
    pub device: String,
    /// Number of ranks.
    pub world_size: usize,
    /// Compute threads of each rank.
    pub threads: usize,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images in a step, over all ranks: what was asked for, rounded up to a multiple of their number.
    pub batch_size: usize,
    /// Where the random numbers start.
    pub seed: u64,
    /// Optimizer steps taken.
    pub steps: usize,
    /// Mean loss over the last epoch.
    pub train_loss: f64,
    /// Share of the test images classified correctly, 0 to 1.
    pub test_accuracy: f64,
    /// Training images seen per second, over all ranks.
    pub samples_per_second: f64,
    /// Time spent training; evaluation is not counted.
    pub seconds: f64,
    /// Greatest number of bytes that rank 0's device held at a time.
    pub peak_bytes: usize,
    /// Of the bytes of rank 0's parameters, one after the other, in the order of their names' visit.
    pub parameters_sha256: String,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} on {} ({}, {}): {}, {} of {}",
            self.model,
            count(self.world_size, "rank"),
            self.backend,
            self.device,
            count(self.epochs, "epoch"),
            count(self.steps, "step"),
            count(self.batch_size, "image")
        )?;
        writeln!(f, "  test accuracy  {:.1} %", 100.0 * self.test_accuracy)?;
        writeln!(f, "  training loss  {:.4}", self.train_loss)?;
        writeln!(
            f,
            "  training time  {:.1} s, {:.0} images/s",
            self.seconds, self.samples_per_second
        )?;
        let mebibytes = self.peak_bytes as f64 / (1 << 20) as f64;
        writeln!(f, "  peak memory    {mebibytes:.1} MiB on rank 0")?;
        write!(f, "  parameters     sha256 {}", self.parameters_sha256)
    }
}

/// A number of things, as in `1 rank` and `2 ranks`.
pub fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// The SHA-256 of the parameters' bytes, one after the other, in hexadecimal.
///
/// # Errors
/// A parameter cannot be read.
pub fn fingerprint<'a>(
    parameters: impl IntoIterator<Item = &'a Param>,
) -> Result<String, phalanx_tensor::Error> {
    let mut hash = Sha256::new();
    for parameter in parameters {
        parameter.read(|value| {
            let value = match value.device().is_cpu() {
                true => value.contiguous()?,
                false => value.to_device(Device::cpu(0))?,
            };
            hash.update(value.as_bytes()?);
            Ok::<_, phalanx_tensor::Error>(())
        })?;
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
