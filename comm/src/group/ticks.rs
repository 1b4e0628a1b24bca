//! [`Clock`]: moments that cost little to note.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A moment, by a [`Clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tick(pub(super) u64);

/// A clock of the process, for a record that somebody reads: nothing is decided by it. Where Linux takes its own time
/// from the processor's counter, which it has found to run evenly on all cores, this one reads the counter, too: 22 ns,
/// where [`Instant::now`] takes 50 (a virtual machine, 2026-11). Elsewhere it asks the system.
///
/// Ticks become durations when somebody reads them, by the way that counter and system have gone since the start. Where
/// the machine has slept meanwhile, in which the two may differ, earlier moments are wrong, but lie between the start and
/// the reading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    /// The counter at the start; none where the system is asked.
    counter: Option<u64>,
}

impl Clock {
    pub(super) fn start() -> Clock {
        let is_counted = has_counter(); // which takes its time, once
        Clock {
            start: Instant::now(),
            counter: is_counted.then(count),
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
        let (Tick(now), elapsed) = (self.now(), nanoseconds(self.elapsed()));
        let ticks = [self.counter.unwrap_or(0), now];
        move |Tick(tick)| Duration::from_nanos(scaled(tick, ticks, elapsed))
    }
}

/// How far `tick` is on the way from the first of these ticks to the last, if all of it is `length`.
fn scaled(tick: u64, [first, last]: [u64; 2], length: u64) -> u64 {
    if tick <= first {
        return 0;
    }
    if tick >= last {
        return length;
    }
    let share = (tick - first) as f64 / (last - first) as f64;
    (share * length as f64) as u64
}

/// Those of 500 years at most.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether the system takes its time from the counter: asked once.
fn has_counter() -> bool {
    const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    const YES: u8 = 1;
    const NO: u8 = 2;
    // The answer is all that is told; who comes at the same time asks, too.
    static ANSWER: AtomicU8 = AtomicU8::new(0);
    match ANSWER.load(Relaxed) {
        YES => true,
        NO => false,
        _ => {
            let has = cfg!(target_arch = "x86_64")
                && std::fs::read_to_string(SOURCE).is_ok_and(|source| source.trim() == "tsc");
            ANSWER.store(if has { YES } else { NO }, Relaxed);
            has
        }
    }
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
    fn ticks_are_scaled_to_the_time_that_has_passed() {
        assert_eq!(scaled(150, [100, 200], 1000), 500);
        assert_eq!(scaled(100, [100, 200], 1000), 0);
        assert_eq!(scaled(200, [100, 200], 1000), 1000);
        // Of other processors, or of a counter that has begun anew.
        assert_eq!(scaled(99, [100, 200], 1000), 0);
        assert_eq!(scaled(201, [100, 200], 1000), 1000);
        assert_eq!(scaled(50, [100, 60], 1000), 0);
        assert_eq!(scaled(150, [100, 60], 1000), 1000);
        assert_eq!(scaled(100, [100, 100], 1000), 0);
    }

    #[test]
    fn ticks_are_the_systems_time() {
        let asked = Clock {
            start: Instant::now(),
            counter: None,
        };
        for clock in [Clock::start(), asked] {
            let before = clock.elapsed();
            std::thread::sleep(Duration::from_millis(20));
            let tick = clock.now();
            let after = clock.elapsed();
            std::thread::sleep(Duration::from_millis(20));
            let read = clock.reader()(tick);
            // A machine that others use, too.
            let slack = Duration::from_millis(15);
            assert!(
                before <= read && read <= after + slack,
                "{before:?} {read:?} {after:?}"
            );
            assert!(read + slack >= Duration::from_millis(20), "{read:?}");
        }
    }
}
