//! [`Clock`]: moments that cost little to note.
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A moment, by a [`Clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tick(pub(super) u64);

/// A clock of the process. Where Linux takes its own time from the processor's counter, which it has found to run
/// evenly on all cores, this one reads the counter, too: 22 ns, where [`Instant::now`] takes 50 (a virtual machine,
/// 2026-11). Elsewhere it asks the system. Ticks become durations when somebody reads them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    /// The counter at the start; none where the system is asked.
    counter: Option<u64>,
}

impl Clock {
    pub(super) fn start() -> Clock {
        Clock {
            start: Instant::now(),
            counter: has_counter().then(count),
        }
    }

    pub(super) fn now(&self) -> Tick {
        match self.counter {
            Some(_) => Tick(count()),
            None => Tick(nanoseconds(self.start.elapsed())),
        }
    }

    /// The time from the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Tells how long after the start a tick was.
    pub(super) fn reader(&self) -> impl Fn(Tick) -> Duration {
        let (Tick(now), elapsed) = (self.now(), self.start.elapsed());
        let first = self.counter.unwrap_or(0);
        let unit = nanoseconds(elapsed) as f64 / now.saturating_sub(first).max(1) as f64;
        move |Tick(tick)| {
            let after = tick.saturating_sub(first) as f64 * unit;
            Duration::from_nanos(after as u64)
        }
    }
}

/// Those of 500 years at most.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether the system takes its time from the counter.
fn has_counter() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    *HAS.get_or_init(|| {
        cfg!(target_arch = "x86_64")
            && std::fs::read_to_string(SOURCE).is_ok_and(|source| source.trim() == "tsc")
    })
}

#[cfg(target_arch = "x86_64")]
fn count() -> u64 {
    // SAFETY: every processor of this architecture has the instruction; the system may forbid it to programs, but
    // not where its own clock, which runs in the program, uses it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn count() -> u64 {
    unreachable!("no counter was found")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_the_systems_time() {
        let with = |counter: Option<u64>| Clock {
            counter,
            ..Clock::start()
        };
        for clock in [Clock::start(), with(None)] {
            let before = clock.elapsed();
            std::thread::sleep(Duration::from_millis(20));
            let tick = clock.now();
            let after = clock.elapsed();
            std::thread::sleep(Duration::from_millis(20));
            let read = clock.reader()(tick);
            let slack = Duration::from_millis(1);
            assert!(
                before <= read && read <= after + slack,
                "{before:?} {read:?} {after:?}"
            );
            assert!(read + slack >= Duration::from_millis(20), "{read:?}");
        }
    }
}
