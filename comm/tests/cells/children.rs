//! The cells on threads, each a process that runs three of them: started, watched and judged.

use crate::cards;
use crate::judge::End;
use crate::site;
use crate::table::{Backend, Cell};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// No cell takes so long, unless it hangs. It is killed then.
const LIMIT: Duration = Duration::from_secs(if cfg!(phalanx_tsan) { 60 } else { 25 });

/// Runs every cell whose name has one of these words in it, all without any; prints what libtest prints.
pub fn run(words: &[String]) -> ExitCode {
    if let Some(why) = cards::missing() {
        println!("SKIPPED: the cells on cards: {why}");
        println!("\ntest result: ok. 1 passed; 0 failed; finished in 0.00s");
        return ExitCode::SUCCESS;
    }
    let wanted = |cell: &Cell| {
        let name = format!("{cell}");
        words.is_empty() || words.iter().any(|word| name.contains(word))
    };
    let start = Instant::now();
    let (mut passed, mut failed) = (0, 0);
    let backend = Backend::on(cards::first_device());
    for cell in Cell::all(backend).filter(wanted) {
        let end = play(cell).unwrap_or_else(|error| panic!("{cell}: {error}"));
        let second = end.judge_second(cell, backend).transpose();
        let judgement = end.judge(cell, backend);
        match judgement.and_then(|text| second.map(|_| text)) {
            Ok(text) => {
                println!("test {cell} ... ok ({text})");
                passed += 1;
            }
            Err(why) => {
                println!("test {cell} ... FAILED: {why}");
                eprintln!("{cell} said:\n{}", end.said);
                failed += 1;
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let took = start.elapsed().as_secs_f64();
    println!("\ntest result: {word}. {passed} passed; {failed} failed; finished in {took:.2}s");
    ExitCode::from(u8::from(failed > 0))
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays among the system's temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Plays a cell in a process of its own.
fn play(cell: Cell) -> io::Result<End> {
    let name = format!("phalanx-cell-{}-{cell}", std::process::id()).replace('/', "-");
    let folder = Folder(std::env::temp_dir().join(name));
    fs::create_dir_all(&folder.0)?;
    let said = folder.0.join("said");
    let out = File::create(&said)?;
    // ThreadSanitizer is not to count threads that nobody has joined: it would change the code.
    let mut options = std::env::var("TSAN_OPTIONS").unwrap_or_default();
    options.push_str(" report_thread_leaks=0");
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--play", &cell.to_string()])
        .arg(&folder.0)
        .env("TSAN_OPTIONS", options)
        .envs(cards::environment(cell))
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    let start = Instant::now();
    let mut by_force = false;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if start.elapsed() > LIMIT => {
                by_force = true;
                child.kill()?;
                break child.wait()?;
            }
            None => sleep(Duration::from_millis(5)),
        }
    };
    Ok(End {
        at: site::now(),
        said: text(&said),
        code: status.code(),
        by_force,
    })
}

fn text(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
