//! Drills that are no cells of a table (`cells.rs`): how a job ends, how soon, and who is named.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::{Outcome, Said, listen};
use crate::hosts::Hosts;
use crate::job::{self, End};
use crate::signals;

/// The deadline of `comm/tests/drill.rs`, also for its start.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// How long a rank computes in it beside one that fails.
const BACKWARD: Duration = Duration::from_secs(3);
/// How long a rank is stopped in it: for more than half of the deadline, or for more than all of it.
const PAUSE: Duration = Duration::from_millis(2000);
const STOP: Duration = Duration::from_millis(5000);
/// After the deadline, everything ends within this.
const GRACE: Duration = Duration::from_secs(3);

/// Where it shows at once, within this. 0.2 s were seen, and 0.6 s beside ten busy loops on two cores.
const AT_ONCE: Duration = Duration::from_millis(1500);

/// With a deadline to pass before.
const AT_DEADLINE: Duration = DEADLINE.saturating_add(GRACE);

/// Whom the culprit's end must be heard from: each of the two other ranks. Its own words prove nothing.
const OTHERS: &[Option<usize>] = &[Some(0), Some(2)];

/// A way to go wrong: what rank 1 does, who must say what of it, and when the job has ended at the latest; at the
/// earliest too, where a rank has something to finish.
pub struct Drill {
    pub name: &'static str,
    says: &'static str,
    speakers: &'static [Option<usize>],
    code: u8,
    least: Duration,
    most: Duration,
}

pub const DRILLS: &[Drill] = &[
    drill("return", "rank 1 returned without the call", AT_ONCE),
    Drill {
        code: 7,
        ..drill("exit", "rank 1 returned without the call", AT_ONCE)
    },
    // Rank 0 computes meanwhile, is left in peace, and saves what it has.
    Drill {
        speakers: &[Some(0)],
        least: BACKWARD,
        ..drill(
            "busy-error",
            "saved the last Ok(\"weights\"), since rank 1 failed: no such file: weights",
            BACKWARD.saturating_add(AT_ONCE),
        )
    },
    Drill {
        speakers: &[Some(0)],
        least: BACKWARD,
        ..drill(
            "busy-panic",
            "saved the last Ok(\"weights\"), since rank 1 panicked: the dog ate my gradients",
            BACKWARD.saturating_add(AT_ONCE),
        )
    },
    // Rank 0 computes for ever, and is ended when the deadline has passed, with the code of the first to fail.
    Drill {
        speakers: &[Some(0)],
        code: 7,
        least: DEADLINE,
        ..drill(
            "stuck",
            "rank 0 has not ended 3s after the world has failed, so its process is ended: rank 1 returned",
            AT_DEADLINE,
        )
    },
    // It is stopped for more than half of the deadline: nobody is late, and all goes on.
    Drill {
        code: 0,
        least: PAUSE,
        ..drill("pause", "it went on", PAUSE.saturating_add(AT_ONCE))
    },
    // For more than all of it: the others are told in time, and wait in their `exit` until it goes on and hears of it.
    Drill {
        least: STOP,
        ..drill(
            "stop",
            "for rank 1, which gives no sign: rank 1 has issued 1 collectives",
            STOP.saturating_add(GRACE),
        )
    },
    // The world fails while data moves, and the next one in the same processes is a good one.
    drill("again", "again: Ok(\"reduced\")", AT_DEADLINE),
];

const fn drill(name: &'static str, says: &'static str, most: Duration) -> Drill {
    Drill {
        name,
        says,
        speakers: OTHERS,
        code: 1,
        least: Duration::ZERO,
        most,
    }
}

impl Drill {
    /// Three ranks. The time counts from the fault, by rank 1's clock, to when no process is left: what mpirun takes to
    /// start, 0.3 s here and seconds on a busy machine, is no part of it.
    pub fn run(&self, program: &Path, hosts: Option<&Hosts>) -> Result<Outcome> {
        let (end, said) = listen(program, &[self.name], 3, hosts, |_| ())?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        said_by(&said, self.speakers, self.says)?;
        ensure!(!end.by_force, "it does not end by itself\n{said}");
        let fault = said.find(Some(1), "fault at ").map(str::parse::<u64>);
        let fault = fault.with_context(|| format!("rank 1 tells of no fault\n{said}"))??;
        let time = now.checked_sub(Duration::from_nanos(fault));
        let time = time.context("the fault comes after the end")?;
        let least = self.least;
        ensure!(time >= least, "it took {time:.1?}, not {least:?}\n{said}");
        judge(&end, &said, self.code, time, self.most)
    }
}

/// A cable is cut while large reductions go on.
pub fn cable(program: &Path, hosts: usize) -> Result<Outcome> {
    let hosts = &Hosts::new(hosts)?;
    let mut cut: Option<Instant> = None;
    let mut failure = None;
    let (end, said) = listen(program, &["link"], hosts.count, Some(hosts), |said| {
        if cut.is_none() && said.count(Some(0), "reduced") >= 3 {
            failure = hosts.cut(2).err();
            cut = Some(Instant::now());
        }
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let cut = cut.with_context(|| format!("no reduction has ended\n{said}"))?;
    // What rank 1 says is lost with the link. That the launcher ends the job by force is in order here, and nowhere else:
    // mpirun waits for word from its part on the host that nobody reaches.
    said_by(&said, &[Some(0)], "for rank 1, which gives no sign: ")?;
    judge(&end, &said, 1, cut.elapsed(), DEADLINE + GRACE)
}

/// Fails unless each of these has said so; `None` is the launcher.
fn said_by(said: &Said, speakers: &[Option<usize>], says: &str) -> Result<()> {
    for &speaker in speakers {
        let who = speaker.map_or("the launcher".to_owned(), |rank| format!("rank {rank}"));
        let count = said.count(speaker, says);
        ensure!(count > 0, "{who} does not say `{says}`\n{said}");
    }
    Ok(())
}

fn judge(end: &End, said: &Said, code: u8, time: Duration, limit: Duration) -> Result<Outcome> {
    ensure!(end.code == code, "code {}, not {code}\n{said}", end.code);
    ensure!(
        time <= limit,
        "it took {time:.1?}, more than {limit:?}\n{said}"
    );
    Ok(Outcome::Passed(format!("code {code}, {time:.1?}")))
}

/// Ctrl-C on `cargo xtask launch`, while the example `ddp` trains.
pub fn interrupt(program: &Path, hosts: Option<&Hosts>) -> Result<Outcome> {
    let mut launch = Command::new(std::env::current_exe()?);
    launch.args(["launch", "--tests", "-n", "2"]);
    if let Some(hosts) = hosts {
        launch.args(["--hosts", &hosts.count.to_string()]);
    }
    launch.args(["ddp", "--", "--epochs", "1000"]);
    launch.stdin(Stdio::null()).stdout(Stdio::null());
    let mut launch = launch.stderr(Stdio::null()).spawn()?;
    let jobs = format!("{}-", launch.id());
    let training = || {
        let processes = job::processes(|mark| mark.starts_with(&jobs));
        let exe = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe"));
        let ranks = processes.iter().filter_map(|pid| exe(pid).ok());
        ranks.filter(|exe| exe == program).count() == 2
    };
    let trained = wait_until(Duration::from_secs(60), || {
        signals::seen().is_some() || training()
    });
    // It may find itself before, in or after `MPI_Init`; here it is in the midst of training.
    thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    signals::send(launch.id(), signals::INTERRUPT);
    let mut status = None;
    let ended = wait_until(2 * GRACE, || {
        status = launch.try_wait().unwrap_or_default();
        status.is_some()
    });
    let time = start.elapsed();
    if !ended {
        launch.kill()?;
        launch.wait()?;
        // It could not do so itself.
        job::kill(|mark| mark.starts_with(&jobs));
    }
    ensure!(trained, "it does not start");
    let code = status.context("Ctrl-C does not end it")?.code();
    ensure!(code == Some(130), "it ended with {code:?}, not 130");
    ensure!(time <= GRACE, "it took {time:.1?}, more than {GRACE:?}");
    left_by(launch.id())?;
    Ok(Outcome::Passed(format!("code 130, {time:.1?}")))
}

/// Whether `reached` holds before so much time has passed.
fn wait_until(limit: Duration, mut reached: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if reached() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

/// No process, no namespace and no file in shared memory of this process's jobs.
pub fn nothing_left() -> Result<Outcome> {
    left_by(std::process::id())?;
    Ok(Outcome::Passed("no process, namespace or file".into()))
}

/// Fails if something is left of the jobs of the launcher with this number.
fn left_by(launcher: u32) -> Result<()> {
    for (folder, name) in [
        ("/run/netns", format!("phx{launcher}-")),
        ("/dev/shm", format!("phalanx-{launcher}-")),
    ] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries {
            if entry.file_name().to_string_lossy().starts_with(&name) {
                bail!("{} is left", entry.path().display());
            }
        }
    }
    let jobs = format!("{launcher}-");
    if let Some(process) = job::processes(|mark| mark.starts_with(&jobs)).first() {
        bail!("process {process} is left");
    }
    Ok(())
}
