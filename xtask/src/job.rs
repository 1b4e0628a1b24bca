//! [`Job`]: a program under mpirun, from its start until nothing of it is left.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::hosts::{self, Hosts};
use crate::signals;

/// How long mpirun may go on after a rank has ended. Ranks end together, and if they don't, mpirun gives them 1 s.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Names the job in the environment of all its processes.
const MARK: &str = "PHALANX_JOB";

/// Begins the name of the file in the job's folder that holds the code with which a rank has ended.
const CODE: &str = "code-";

/// What is to be run.
pub struct Job<'a> {
    pub program: &'a Path,
    pub args: &'a [String],
    pub ranks: usize,
    pub hosts: Option<&'a Hosts>,
}

/// A line that a rank, or mpirun itself, has written.
pub struct Line {
    pub rank: Option<usize>,
    pub is_error: bool,
    pub text: String,
}

/// How a job has ended.
pub struct End {
    pub code: u8,
    pub time: Duration,
}

/// Why there is no MPI here, if there is none.
pub fn obstacle() -> Option<String> {
    let version = Command::new("mpirun").arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    match version {
        Err(_) => {
            Some("there is no mpirun (Debian: libopenmpi-dev openmpi-bin libclang-dev)".into())
        }
        Ok(text) if !text.contains("Open MPI") => Some("its mpirun is not Open MPI's".into()),
        Ok(_) => None,
    }
}

impl Job<'_> {
    /// Runs the job; `each` gets its lines, and the processes' numbers when the first line comes, `tick` is called
    /// every 20 ms. When it returns, no process of the job lives, and its files are gone.
    pub fn run(&self, mut each: impl FnMut(&Line), mut tick: impl FnMut(&Running)) -> Result<End> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let mark = format!("{}-{number}", std::process::id());
        let folder = Folder::new(&mark)?;
        let program = fs::canonicalize(self.program)
            .with_context(|| format!("there is no {}", self.program.display()))?;
        let start = Instant::now();
        let mut child = self
            .command(&program, &mark, &folder.0)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start mpirun")?;
        let lines = lines(&mut child);
        let mut running = Running {
            mark,
            program,
            peak: 0,
            gone: None,
        };
        let mut code = None;
        let mut interrupted: Option<Instant> = None;
        while code.is_none() {
            while let Ok(line) = lines.recv_timeout(Duration::from_millis(20)) {
                each(&line);
            }
            tick(&running);
            if let Some(signal) = signals::take() {
                signals::send(child.id(), signal);
                interrupted.get_or_insert_with(Instant::now);
            }
            code = child.try_wait()?.map(|status| status.code().unwrap_or(1));
            let out_of_patience =
                running.look() || interrupted.is_some_and(|i| i.elapsed() > 2 * PATIENCE);
            if code.is_none() && out_of_patience {
                eprintln!("a rank has ended, but mpirun has not: it is ended by force");
                running.kill();
                child.kill()?;
                child.wait()?;
                code = Some(folder.first_failure().unwrap_or(1));
            }
        }
        running.kill();
        // Readers end with the last writer, and `kill` has left none.
        lines.iter().for_each(|line| each(&line));
        let code = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        Ok(End {
            code,
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
        // Without a binding a rank's own threads may use all cores.
        add("--bind-to none");
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
            words.push(format!("{} rsh", std::env::current_exe()?.display()));
        }
        if self.hosts.is_some() {
            // Over hosts mpirun is slow to hear of a rank's end: each rank's code is noted where it ends;
            // one that a signal has ended passes the signal on, so that mpirun names it.
            words.extend(["sh", "-c"].map(str::to_owned));
            words.push(format!(
                "\"$0\" \"$@\"; code=$?; echo $code > {folder}/{CODE}$OMPI_COMM_WORLD_RANK; [ $code -gt 128 ] && kill -$((code - 128)) $$; exit $code"
            ));
        }
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

/// The processes of a job.
pub struct Running {
    mark: String,
    program: PathBuf,
    peak: usize,
    gone: Option<Instant>,
}

impl Running {
    /// The ranks' processes, by age.
    pub fn ranks(&self) -> Vec<u32> {
        let is_rank = |pid: &u32| {
            let exe = fs::read_link(format!("/proc/{pid}/exe"));
            exe.is_ok_and(|exe| exe == self.program)
        };
        self.processes().into_iter().filter(is_rank).collect()
    }

    /// Whether a rank has been gone for too long.
    fn look(&mut self) -> bool {
        let ranks = self.ranks().len();
        self.peak = self.peak.max(ranks);
        if ranks < self.peak {
            self.gone.get_or_insert_with(Instant::now);
        }
        self.gone.is_some_and(|gone| gone.elapsed() > PATIENCE)
    }

    /// All processes of the job that live.
    fn processes(&self) -> Vec<u32> {
        let wanted = format!("{MARK}={}", self.mark);
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut pids: Vec<u32> = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment
                    .split(|&b| b == 0)
                    .any(|v| v == wanted.as_bytes())
            })
            .collect();
        pids.sort_unstable();
        pids
    }

    /// Ends what is left.
    fn kill(&self) {
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            left.into_iter()
                .for_each(|pid| signals::send(pid, signals::KILL));
            thread::sleep(Duration::from_millis(10));
        }
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

impl Folder {
    /// The code of the first rank that noted its failure.
    fn first_failure(&self) -> Option<i32> {
        let notes = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let notes = notes.filter(|note| note.file_name().to_string_lossy().starts_with(CODE));
        let mut failures: Vec<_> = notes
            .filter_map(|note| {
                let code: i32 = fs::read_to_string(note.path()).ok()?.trim().parse().ok()?;
                (code != 0).then_some((note.metadata().ok()?.modified().ok()?, code))
            })
            .collect();
        failures.sort_unstable();
        failures.first().map(|(_, code)| *code)
    }
}

/// The lines of both streams, as they come.
fn lines(child: &mut Child) -> Receiver<Line> {
    let (sender, receiver) = channel();
    let streams: [(bool, Option<Box<dyn Read + Send>>); 2] = [
        (false, child.stdout.take().map(|s| Box::new(s) as _)),
        (true, child.stderr.take().map(|s| Box::new(s) as _)),
    ];
    for (is_error, stream) in streams {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream.into_iter().next()?).split(b'\n') {
                let line = line.ok()?;
                sender
                    .send(parse(&String::from_utf8_lossy(&line), is_error))
                    .ok()?;
            }
            Some(())
        });
    }
    receiver
}

/// `[1,2]<stderr>:text` is what rank 2 wrote; anything else is mpirun's.
fn parse(line: &str, is_error: bool) -> Line {
    let tagged = || {
        let (tag, rest) = line.strip_prefix("[")?.split_once("]<")?;
        let (_, rank) = tag.split_once(',')?;
        let (stream, text) = rest.split_once(">:")?;
        Some((rank.parse().ok()?, stream == "stderr", text.to_owned()))
    };
    match tagged() {
        Some((rank, is_error, text)) => Line {
            rank: Some(rank),
            is_error,
            text,
        },
        None => Line {
            rank: None,
            is_error,
            text: line.to_owned(),
        },
    }
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The rsh agent: mpirun calls it with a host and a command.
pub fn rsh(args: &[String]) -> Result<std::process::ExitCode> {
    use std::os::unix::process::CommandExt;
    let args: Vec<_> = args.iter().skip_while(|arg| arg.starts_with('-')).collect();
    ensure!(args.len() >= 2, "rsh needs a host and a command");
    let prefix = std::env::var(hosts::PREFIX).context("rsh serves `launch --hosts` only")?;
    let line: Vec<_> = args[1..].iter().map(|arg| arg.as_str()).collect();
    Err(hosts::on(&prefix, args[0], &line.join(" ")).exec().into())
}
