//! Shows how a training goes: a bar on a terminal, a line per epoch elsewhere. Both on stderr; stdout is for results.

use indicatif::{ProgressBar, ProgressStyle};

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

    /// A step was taken.
    pub fn step(&self, loss: f32) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("loss {loss:.3}"));
            bar.inc(1);
        }
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
