//! Shows how a training goes: a bar on a terminal, a line per epoch elsewhere. Both on stderr; stdout is for results.

use indicatif::{ProgressBar, ProgressStyle};
use phalanx_tensor::Tensor;

use crate::cli::remark;

/// One rank's view of the training. Only rank 0 shows anything.
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts to show a training of `steps` steps, if this is `rank` 0.
    pub fn start(rank: usize, steps: usize) -> Self {
        let bar = (rank == 0).then(|| {
            // Where stderr is no terminal, the bar draws nothing.
            let bar = ProgressBar::new(steps as u64);
            let line = "{bar:32} step {pos}/{len}, {msg}, {eta} to go";
            bar.set_style(
                ProgressStyle::with_template(line).unwrap_or(ProgressStyle::default_bar()),
            );
            bar
        });
        Progress { bar }
    }

    /// A step was taken, with this loss.
    ///
    /// # Errors
    /// The loss cannot be read. It is read only now and then, and only where somebody sees it: who reads a value waits
    /// for the card that computes it.
    pub fn step(&self, loss: &Tensor) -> Result<(), phalanx_tensor::Error> {
        const EVERY: u64 = 16;
        if let Some(bar) = &self.bar {
            if !bar.is_hidden() && bar.position().is_multiple_of(EVERY) {
                bar.set_message(format!("loss {:.3}", loss.item::<f64>()?));
            }
            bar.inc(1);
        }
        Ok(())
    }

    /// An epoch has ended.
    pub fn epoch(&self, epoch: usize, epochs: usize, loss: f64, accuracy: f64) {
        if let Some(bar) = &self.bar {
            let percent = 100.0 * accuracy;
            let line =
                format!("epoch {epoch}/{epochs}: loss {loss:.4}, test accuracy {percent:.1} %");
            // Printed above the bar, or plainly where there is none.
            bar.suspend(|| remark(line));
        }
    }

    /// The training has ended.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
