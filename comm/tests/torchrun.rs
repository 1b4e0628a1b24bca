//! Processes that were started in torchrun's manner: this test program, started once more for each rank, with
//! torchrun's variables.

mod child;
mod ports;

use child::again;
use phalanx_comm::{
    DType, Error, LaunchConfig, OnFailure, Ranks, ReduceOp, RunConfig, StoreServer, Tensor, report,
    run,
};
use ports::free_port;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a rank of the drill does.
const DRILL: &str = "PHALANX_TEST_DRILL";
const PATIENCE: Duration = Duration::from_secs(60);

/// How a rank ended.
struct End {
    code: Option<i32>,
    output: String,
}

/// The process of a rank of `size`, which plays `drill`.
fn rank(drill: &str, rank: usize, size: usize, port: u16) -> Command {
    let mut command = again("rank_of_a_drill").unwrap();
    // A process that is ended has threads that nobody has joined: ThreadSanitizer is not to change its code for that.
    let mut options = std::env::var("TSAN_OPTIONS").unwrap_or_default();
    options.push_str(" report_thread_leaks=0");
    command
        .env("TSAN_OPTIONS", options)
        .env(DRILL, drill)
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", size.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("LOCAL_WORLD_SIZE", size.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env("TORCHELASTIC_RUN_ID", "drill")
        .env("TORCHELASTIC_RESTART_COUNT", "0")
        .env_remove("TORCHELASTIC_USE_AGENT_STORE")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for processes, and ends those that take too long.
fn ends(children: Vec<Child>) -> Vec<End> {
    let start = Instant::now();
    let all = children.into_iter().map(|mut child| {
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > PATIENCE {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        End {
            code: output.status.code(),
            output: text(&output.stdout) + &text(&output.stderr),
        }
    });
    all.collect()
}

fn play(drill: &str, size: usize) -> Vec<End> {
    let port = free_port();
    let start = |r| rank(drill, r, size, port).spawn().unwrap();
    ends((0..size).map(start).collect())
}

#[track_caller]
fn says(end: &End, code: Option<i32>, line: &str) {
    assert_eq!(end.code, code, "{}", end.output);
    assert!(end.output.contains(line), "no `{line}` in: {}", end.output);
}

/// One rank of a drill: what the processes run that the tests below start.
#[test]
fn rank_of_a_drill() {
    let Ok(drill) = std::env::var(DRILL) else {
        return;
    };
    let config = LaunchConfig::new(1)
        .deadline(PATIENCE)
        .start_deadline(PATIENCE);
    let config = match &*drill {
        "alone" => config.start_deadline(Duration::from_millis(500)),
        "hangs" => config.on_failure(OnFailure::EndAfter(Duration::from_millis(300))),
        "late" => config.deadline(Duration::from_millis(500)),
        _ => config,
    };
    let config = RunConfig::new(Ranks::OrAlone(1)).launch(config);
    if drill == "twice" {
        // Rank 0 takes its time over the end of the first.
        let first = run(config.clone(), |group| {
            if group.rank() == 2 {
                std::thread::sleep(Duration::from_millis(300));
            }
            Ok::<_, Error>(())
        });
        first.unwrap();
    }
    let end = run(config, |group| {
        let (rank, size, device) = (group.rank(), group.size(), group.device());
        let sizes = || -> Result<Vec<i64>, Error> {
            let mine = Tensor::from_slice(&[10 * rank as i64], [], device)?;
            Ok(group.all_gather(mine)?.wait()?.to_vec::<i64>()?)
        };
        let text = |error: Error| error.to_string();
        group.barrier().and_then(|work| work.wait()).map_err(text)?;
        match (&*drill, rank) {
            ("fails", 1) => return Err("no such file: weights".to_owned()),
            ("panics", 1) => panic!("on purpose"),
            ("hangs", 1) => return Err("no such file: weights".to_owned()),
            ("hangs", 0) => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            ("dies", 1) => std::process::abort(),
            ("dies at the store", 0) => std::process::abort(),
            ("late", 1) => {
                std::thread::sleep(Duration::from_millis(1500));
            }
            ("leaves", 0) => return Ok(()),
            ("drops", _) => {
                let call = match rank {
                    1 => group.barrier().map(drop),
                    _ => group
                        .broadcast(Tensor::ones([1], DType::F32, device).unwrap(), 0)
                        .map(drop),
                };
                return call.map_err(text);
            }
            ("trains", _) => {
                let gradient = Tensor::ones([1 << 20], DType::F32, device).unwrap();
                group
                    .all_reduce(gradient, ReduceOp::Avg)
                    .map(drop)
                    .map_err(text)?;
            }
            _ => {}
        }
        if drill == "leaves" {
            // Rank 0 has gone, and its process still serves the store.
            std::thread::sleep(Duration::from_millis(300));
            let rest = group.split((rank > 0).then_some(0), 0);
            return match rest {
                Ok(_) => Err("it met a rank that has left".into()),
                Err(error) => Err(error.to_string()),
            };
        }
        let want: Vec<i64> = (0..size as i64).map(|r| 10 * r).collect();
        assert_eq!(sizes().map_err(text)?, want);
        report(format_args!(
            "rank {rank} of {size} gathered {want:?} by {}",
            group.backend()
        ));
        if drill == "rest" && rank > 0 {
            let rest = group.split(Some(u32::from(rank > 0)), 0).map_err(text)?;
            std::thread::sleep(Duration::from_millis(300)); // rank 0 has long returned
            let rest = rest.ok_or("no group")?;
            rest.barrier().and_then(|work| work.wait()).map_err(text)?;
            report("the rest has met");
        } else if drill == "rest" {
            group.split(Some(0), 0).map(drop).map_err(text)?;
        }
        Ok(())
    });
    match end {
        Ok(_) => std::process::exit(0),
        Err(error) => {
            report(format_args!("error: {error}"));
            std::process::exit(1);
        }
    }
}

#[test]
fn two_processes_meet_and_talk() {
    for (rank, end) in play("meets", 2).iter().enumerate() {
        says(
            end,
            Some(0),
            &format!("rank {rank} of 2 gathered [0, 10] by store"),
        );
    }
}

/// Where torchrun's agent has a store of its own at the port, ours is one above.
#[test]
fn the_agents_own_store_is_left_alone() {
    let (agent, port) = loop {
        let port = free_port();
        if let Ok(agent) = TcpListener::bind(("127.0.0.1", port)) {
            break (agent, port);
        }
    };
    let start = |r| {
        let mut command = rank("meets", r, 2, port);
        command
            .env("TORCHELASTIC_USE_AGENT_STORE", "True")
            .spawn()
            .unwrap()
    };
    for (rank, end) in ends(vec![start(0), start(1)]).iter().enumerate() {
        says(end, Some(0), &format!("rank {rank} of 2 gathered"));
    }
    drop(agent);
}

/// One program after the other: each has a world of its own, at the same address.
#[test]
fn a_process_may_run_several_programs() {
    for (rank, end) in play("twice", 3).iter().enumerate() {
        says(end, Some(0), &format!("rank {rank} of 3 gathered"));
    }
}

/// The store is served as long as somebody may need it.
#[test]
fn rank_0_may_return_first() {
    for end in &play("rest", 3)[1..] {
        says(end, Some(0), "the rest has met");
    }
}

#[test]
fn who_waits_for_a_rank_that_has_returned_is_told() {
    let all = play("leaves", 3);
    says(&all[0], Some(0), "");
    for end in &all[1..] {
        says(end, Some(1), "rank 0 returned without the call that rank ");
    }
}

/// All ranks drop calls that differ, and return well: who is the last to come compares them, and its process says so.
#[test]
fn a_failure_that_no_program_was_told_of_is_the_launchs() {
    let all = play("drops", 3);
    let failed: Vec<&End> = all.iter().filter(|end| end.code != Some(0)).collect();
    assert!(!failed.is_empty(), "all went well");
    for end in failed {
        says(
            end,
            Some(1),
            "error: the ranks of group world disagree on the operation of number 1: rank 1 called barrier",
        );
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let port = free_port();
    let start = Instant::now();
    let all = ends(vec![
        rank("alone", 0, 3, port).spawn().unwrap(),
        rank("alone", 1, 3, port).spawn().unwrap(),
    ]);
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    for end in &all {
        let line = "in the start (number 0 of group world) for rank 2: it has not come to the store at 127.0.0.1:";
        says(end, Some(1), line);
    }
    // Nor rank 0, which serves the store.
    let all = ends(vec![rank("alone", 1, 2, port).spawn().unwrap()]);
    let line = format!(
        "error: rank 1 cannot reach the store at 127.0.0.1:{port}, which rank 0's process serves: connect failed after"
    );
    says(&all[0], Some(1), &line);
}

#[test]
fn what_goes_wrong_is_told_to_the_others() {
    for (drill, culprit, line) in [
        ("fails", 1, "rank 1 failed: no such file: weights"),
        ("panics", 1, "rank 1 panicked: on purpose"),
        (
            "dies",
            1,
            "rank 1 failed: its connection to the store has ended without a word",
        ),
        (
            "late",
            1,
            "waited 500ms in all_gather of i64 [] (number 1 of group world) for rank 1",
        ),
        (
            "dies at the store",
            0,
            "cannot reach the store at 127.0.0.1:",
        ),
    ] {
        let start = Instant::now();
        let all = play(drill, 3);
        for (rank, end) in all.iter().enumerate() {
            match rank == culprit {
                false => says(end, Some(1), line),
                true => assert_ne!(end.code, Some(0), "{}", end.output),
            }
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{drill}: {:?}",
            start.elapsed()
        );
    }
}

/// A rank that makes no call when the world has failed is ended after the time that the policy gives.
#[test]
fn who_goes_on_for_too_long_is_ended() {
    let all = play("hangs", 2);
    let line = "rank 0 has not ended 300ms after the world has failed, so its process is ended: rank 1 failed: no such file";
    says(&all[0], Some(1), line);
    says(&all[1], Some(1), "error: rank 1: no such file: weights");
}

#[test]
fn data_are_sent_to_mpirun() {
    for (rank, end) in play("trains", 2).iter().enumerate() {
        says(
            end,
            Some(1),
            &format!(
                "all_reduce on rank {rank}: a group over the store carries barrier, broadcast"
            ),
        );
        says(end, Some(1), "For CPU tensors start the program by mpirun");
    }
}

#[test]
fn a_rank_of_another_epoch_is_refused() {
    let port = free_port();
    let server = StoreServer::bind(&format!("127.0.0.1:{port}"), "drill/1/0").unwrap();
    let all = ends(vec![rank("alone", 1, 2, port).spawn().unwrap()]);
    says(
        &all[0],
        Some(1),
        "it serves the job `drill/1/0`, and not `drill/0/0`",
    );
    drop(server);
}

/// Somebody else has the port: rank 0 waits for it, and says so.
#[test]
fn a_port_that_is_taken_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let all = ends(vec![rank("alone", 0, 2, port).spawn().unwrap()]);
    says(
        &all[0],
        Some(1),
        &format!("error: rank 0 cannot reach the store at 127.0.0.1:{port}: bind failed after"),
    );
    says(&all[0], Some(1), "MASTER_PORT a free port of it");
    drop(taken);
    // An address of no host, and one that only this host reaches.
    let mut elsewhere = rank("alone", 0, 2, port);
    let all = ends(vec![
        elsewhere.env("MASTER_ADDR", "192.0.2.1").spawn().unwrap(),
    ]);
    says(&all[0], Some(1), "MASTER_ADDR is an address of its host");
    let mut two_hosts = rank("alone", 0, 2, port);
    let all = ends(vec![
        two_hosts.env("LOCAL_WORLD_SIZE", "1").spawn().unwrap(),
    ]);
    says(
        &all[0],
        Some(1),
        "MASTER_ADDR stands for an address that only this host itself reaches, but 1 of the 2 ranks",
    );
}

#[test]
fn wrong_variables_are_named() {
    for (variable, value, line) in [
        (
            "RANK",
            "4",
            "error: RANK=4 in the environment is not below WORLD_SIZE=4",
        ),
        (
            "MASTER_PORT",
            "abc",
            "error: MASTER_PORT=abc in the environment is no port",
        ),
        (
            "MASTER_ADDR",
            "",
            "error: WORLD_SIZE=4 in the environment speaks of 4 processes, but MASTER_ADDR",
        ),
        (
            "LOCAL_RANK",
            "",
            "error: WORLD_SIZE=4 in the environment speaks of 4 processes, but LOCAL_RANK",
        ),
        (
            "LOCAL_RANK",
            "7",
            "error: LOCAL_RANK=7 in the environment is not below LOCAL_WORLD_SIZE=4",
        ),
    ] {
        let mut command = rank("alone", 1, 4, 29500);
        let all = ends(vec![command.env(variable, value).spawn().unwrap()]);
        says(&all[0], Some(1), line);
    }
}
