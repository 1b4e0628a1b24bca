//! Timing: warm up, take several samples, keep the median and the extremes.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

/// How long to measure.
#[derive(Args, Clone, Copy, Debug)]
pub struct Sampling {
    /// Length of one sample, in seconds; the warm-up is as long
    #[arg(long, default_value = "0.3", value_parser = length, allow_negative_numbers = true)]
    pub seconds: f64,
    /// Number of samples; the median counts
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub samples: u32,
}

fn length(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    // A day: what is longer is a mistake, and `Duration` has an end.
    if seconds > 0.0 && seconds <= 86_400.0 {
        Ok(seconds)
    } else {
        Err("expected seconds above 0, a day at the most".to_owned())
    }
}

/// The median of some samples, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle sample (the mean of the two middle ones).
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Sums up `figures`.
    ///
    /// # Panics
    /// There are none.
    pub fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let (low, high) = (figures[(figures.len() - 1) / 2], figures[figures.len() / 2]);
        Spread {
            median: (low + high) / 2.0,
            min: figures[0],
            max: figures[figures.len() - 1],
        }
    }

    /// Every figure times `factor`.
    pub fn scaled(self, factor: f64) -> Self {
        Spread {
            median: self.median * factor,
            min: self.min * factor,
            max: self.max * factor,
        }
    }
}

/// Calls of `run` per second: after a warm-up, one figure per sample.
///
/// # Errors
/// The first error of `run`.
pub fn rates<E>(sampling: Sampling, run: impl FnMut() -> Result<(), E>) -> Result<Vec<f64>, E> {
    rates_until(sampling, run, || Ok(()))
}

/// The same where `run` only issues work: a sample ends with `finish`, which waits for all of it.
///
/// # Errors
/// The first error of either.
pub fn rates_until<E>(
    sampling: Sampling,
    mut run: impl FnMut() -> Result<(), E>,
    mut finish: impl FnMut() -> Result<(), E>,
) -> Result<Vec<f64>, E> {
    let length = Duration::from_secs_f64(sampling.seconds);
    let (start, mut warm) = (Instant::now(), 0u32);
    while warm < 3 || start.elapsed() < length {
        run()?;
        warm += 1;
        // What is issued ahead must not outlast the warm-up by far.
        if warm.is_power_of_two() {
            finish()?;
        }
    }
    finish()?;
    let calls = calls_per_sample(sampling, start.elapsed().as_secs_f64() / f64::from(warm));
    (0..sampling.samples)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..calls {
                run()?;
            }
            finish()?;
            Ok(f64::from(calls) / start.elapsed().as_secs_f64())
        })
        .collect()
}

/// How many calls of `seconds` each fill one sample.
pub fn calls_per_sample(sampling: Sampling, seconds: f64) -> u32 {
    (sampling.seconds / seconds.max(1e-9))
        .ceil()
        .clamp(1.0, 1e6) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let odd = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!(
            odd,
            Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            }
        );
        let even = Spread::of(vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!(
            even,
            Spread {
                median: 2.5,
                min: 1.0,
                max: 4.0
            }
        );
        assert_eq!(even.scaled(2.0).median, 5.0);
    }

    #[test]
    fn samples_are_as_many_as_asked_for() {
        let sampling = Sampling {
            seconds: 0.001,
            samples: 5,
        };
        let rates = rates(sampling, || {
            std::thread::sleep(Duration::from_micros(100));
            Ok::<_, ()>(())
        });
        let rates = rates.unwrap();
        assert_eq!(rates.len(), 5);
        assert!(
            rates.iter().all(|&rate| rate > 0.0 && rate < 10_000.0),
            "{rates:?}"
        );
    }
}
