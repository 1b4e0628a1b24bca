//! [`Job`]: a program under mpirun, from its start until nothing of it is left.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::hosts::{self, Hosts};
use crate::lines::{Line, lines};
use crate::{machine, rank, signals};

/// How long the job may go on after a rank's process has ended with a failure, or after Ctrl-C. Ranks end together.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often to look at what else there is but lines.
const TICK: Duration = Duration::from_millis(20);
/// Names the job in the environment of all its processes.
pub const MARK: &str = "PHALANX_JOB";

/// What is to be run.
pub struct Job<'a> {
    pub program: &'a Path,
    pub args: &'a [String],
    pub ranks: usize,
    pub hosts: Option<&'a Hosts>,
    /// It is ended by force when it takes longer.
    pub limit: Option<Duration>,
}

/// How a job has ended.
pub struct End {
    pub code: u8,
    /// Whether a rank did not end by itself, and the launcher had to end it. (mpirun itself hangs now and then when all
    /// ranks have ended, and one of them without having ended MPI: it waits for a lock of its own. 1 job in 80, Open MPI
    /// 4.1. That is no fault of the ranks.)
    pub by_force: bool,
    pub time: Duration,
}

impl Job<'_> {
    /// Runs the job; `each` gets its lines, `tick` is called every [`TICK`]. When it returns, or unwinds, no process of
    /// the job lives, and its files are gone. The code is that of the first rank to fail; where none did, mpirun's own.
    pub fn run(&self, mut each: impl FnMut(&Line), mut tick: impl FnMut()) -> Result<End> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let mark = format!("{}-{number}", std::process::id());
        let folder = Folder::new(&mark)?;
        let program = fs::canonicalize(self.program)
            .with_context(|| format!("there is no {}", self.program.display()))?;
        let start = Instant::now();
        let child = self
            .command(&program, &mark, &folder.0)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // The terminal sends Ctrl-C to a whole group of processes: mpirun gets it from us, and once.
            .process_group(0)
            .spawn()
            .context("cannot start mpirun")?;
        // It comes after the folder, and so goes before it.
        let mut running = Running { mark: &mark, child };
        let child = &mut running.child;
        let lines = lines(child);
        let (mut code, mut interrupted) = (None, None);
        let mut signals = signals::Listener::default();
        let mut by_force = false;
        // When the job should have begun to end.
        let mut ending: Option<Instant> = None;
        while code.is_none() {
            let next = Instant::now() + TICK;
            while Instant::now() < next {
                match lines.recv_timeout(TICK) {
                    Ok(line) => each(&line),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => thread::sleep(TICK),
                }
            }
            tick();
            if let Some(signal) = signals.take() {
                signals::send(child.id(), signal);
                interrupted.get_or_insert(signal);
                ending.get_or_insert_with(Instant::now);
            }
            if ending.is_none() && rank::first_failure(&folder.0).is_some() {
                ending = Some(Instant::now());
            }
            code = child.try_wait()?.map(|status| status.code().unwrap_or(1));
            let is_over = self.limit.is_some_and(|limit| start.elapsed() > limit);
            let is_slow = ending.is_some_and(|since| since.elapsed() > PATIENCE);
            if code.is_none() && (is_over || is_slow) {
                // Its own words may be lost: on the way from a host whose link is down.
                let who = rank::first_failure(&folder.0).map(|note| format!(": {}", note.end()));
                let (time, who) = (start.elapsed(), who.unwrap_or_default());
                let is_rank = |pid: &u32| {
                    let exe = fs::read_link(format!("/proc/{pid}/exe"));
                    exe.is_ok_and(|exe| exe == program)
                };
                by_force = processes(|m| m == mark).iter().any(is_rank);
                let what = if by_force {
                    "the job"
                } else {
                    "mpirun, without a rank,"
                };
                each(&Line::ours(format!(
                    "{what} is ended by force after {time:.1?}{who}"
                )));
                kill(|m| m == mark);
                child.kill()?;
                child.wait()?;
                code = Some(1);
            }
        }
        kill(|m| m == mark);
        // Readers end with the last writer, and `kill` has left none.
        lines.iter().for_each(|line| each(&line));
        let failure = rank::first_failure(&folder.0).filter(|_| interrupted.is_none());
        if let Some(complaint) = failure.as_ref().and_then(rank::Note::complaint) {
            each(&Line::ours(complaint));
        }
        let code = match interrupted {
            Some(signal) => Some(128 + signal),
            None => failure.map(|note| note.code()).or(code),
        };
        let code = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        Ok(End {
            code,
            by_force,
            time: start.elapsed(),
        })
    }

    fn command(&self, program: &Path, mark: &str, folder: &Path) -> Result<Command> {
        let folder = folder.display();
        let mut words: Vec<String> = vec!["mpirun".into()];
        let mut add = |text: &str| words.extend(text.split(' ').map(str::to_owned));
        add(&format!(
            "-n {} --tag-output --oversubscribe -x {MARK}",
            self.ranks
        ));
        match (machine::cores_of_a_rank(self.ranks), self.hosts) {
            (Some(each), None) => add(&format!(
                "--use-hwthread-cpus --map-by slot:PE={each} --bind-to hwthread:if-supported"
            )),
            // Each host would hand out the same cores.
            _ => add("--bind-to none"),
        }
        // When a rank has failed, mpirun asks the others to end, and kills them 1 s later: on each host, one after the
        // other. Ours end together before they are asked.
        add("--mca odls_base_sigkill_timeout 0");
        add(&format!(
            "--mca orte_tmpdir_base {folder} --mca btl_vader_backing_directory {folder}"
        ));
        if let Some(hosts) = self.hosts {
            let network = hosts::NETWORK;
            add(&format!("--host {}", hosts.list(self.ranks)));
            add(&format!(
                "--mca btl_tcp_if_include {network} --mca oob_tcp_if_include {network}"
            ));
            add("--mca pml ob1 --mca btl self,vader,tcp --mca plm_rsh_agent");
            words.push(format!("{} rsh", env::current_exe()?.display()));
        }
        let this = env::current_exe()?.display().to_string();
        words.extend([this, "rank".into(), folder.to_string(), "--".into()]);
        words.push(program.display().to_string());
        words.extend(self.args.iter().cloned());
        let mut command = match self.hosts {
            None => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]);
                command
            }
            Some(hosts) => {
                let quoted: Vec<_> = words.iter().map(|word| quote(word)).collect();
                let line = format!("exec {}", quoted.join(" "));
                let mut command = hosts::on(hosts.prefix(), &hosts::address(1), &line);
                command.env(hosts::PREFIX, hosts.prefix());
                command
            }
        };
        command.env(MARK, mark);
        // In containers and namespaces one is root.
        command.envs([
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ]);
        Ok(command)
    }
}

/// All processes that live of the jobs whose marks are wanted. A mark is the launcher's process and a number: `512-0`.
pub fn processes(wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_wanted = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|&b| b == 0);
        variables.any(|variable| {
            let variable = String::from_utf8_lossy(variable);
            let (name, value) = variable.split_once('=').unwrap_or_default();
            name == MARK && wanted(value)
        })
    };
    pids.filter(is_wanted).collect()
}

/// Ends what is left of the jobs whose marks are wanted.
pub fn kill(wanted: impl Fn(&str) -> bool) {
    for _ in 0..100 {
        let left = processes(&wanted);
        if left.is_empty() {
            return;
        }
        left.into_iter()
            .for_each(|pid| signals::send(pid, signals::KILL));
        thread::sleep(Duration::from_millis(10));
    }
}

/// A job that has been started. However it is left, nobody stays behind: ranks are in mpirun's group of processes, not in
/// ours, and would go on without a launcher.
struct Running<'a> {
    mark: &'a str,
    child: Child,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        kill(|mark| mark == self.mark);
        // As a rule it has ended long since, and there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the job's files are, shared memory among them.
struct Folder(PathBuf);

impl Folder {
    fn new(mark: &str) -> Result<Folder> {
        let memory = Path::new("/dev/shm");
        let base = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        let path = base.join(format!("phalanx-{mark}"));
        fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The rsh agent: mpirun calls it with a host and a command.
pub fn rsh(args: &[String]) -> Result<std::process::ExitCode> {
    let args: Vec<_> = args.iter().skip_while(|arg| arg.starts_with('-')).collect();
    ensure!(args.len() >= 2, "rsh needs a host and a command");
    let prefix = std::env::var(hosts::PREFIX).context("rsh serves `launch --hosts` only")?;
    let line: Vec<_> = args[1..].iter().map(|arg| arg.as_str()).collect();
    Err(hosts::on(&prefix, args[0], &line.join(" ")).exec().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_panic_leaves_no_process_of_the_job() {
        let mark = format!("{}-panic", std::process::id());
        let count = || processes(|m| m == mark).len();
        let mut command = Command::new("sh");
        command
            .args(["-c", "sleep 60 & exec sleep 60"])
            .env(MARK, &mark);
        let child = command.process_group(0).spawn().unwrap();
        let running = Running { mark: &mark, child };
        let start = Instant::now();
        while count() < 2 && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(count(), 2);
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _running = running;
            panic!("a closure of the launcher's panics");
        }));
        assert!(unwound.is_err());
        assert_eq!(count(), 0);
    }
}
