//! Ranks as processes, which torchrun's variables tell of each other.

use super::ports::free_port;
use super::support::cards;
use super::{cases, config};
use phalanx_comm::{Error, Ranks, RunConfig, run};
use std::process::{Child, Command, Stdio};

/// This process as one rank of several, in which the environment says so.
fn in_processes() {
    let config = RunConfig::new(Ranks::OrAlone(1)).launch(config(1));
    let end = run(config, |group| {
        for (name, case) in cases::ALL {
            case(&*group)?;
            group.barrier()?.wait()?;
            println!("{name} on rank {}", group.rank());
        }
        Ok::<_, Error>(group.size())
    });
    let sizes: Vec<usize> = end
        .unwrap_or_else(|e| panic!("{e}"))
        .into_iter()
        .map(|(_, size)| size)
        .collect();
    assert_eq!(sizes, [2]);
}

/// Ranks as processes that nobody but torchrun's variables tell of each other: what they say beside their calls goes
/// through the store.
#[test]
fn two_processes() {
    conform("processes::two_processes", Sharing::Nothing);
}

/// The same on one card, which NCCL lets ranks share if each seems to have a host of its own.
#[test]
fn two_processes_on_one_card() {
    conform("processes::two_processes_on_one_card", Sharing::Card);
}

fn conform(test: &str, sharing: Sharing) {
    let wanted = match sharing {
        Sharing::Nothing => 2,
        Sharing::Card => 1,
    };
    let Some(_turn) = cards(test, wanted) else {
        return;
    };
    if std::env::var("PHALANX_TEST_ALONE").is_ok_and(|name| name == test) {
        return in_processes();
    }
    for said in two_ranks_of(test, sharing) {
        assert_eq!(said.matches(" on rank ").count(), cases::ALL.len());
    }
}

/// What two ranks have in common.
#[derive(Clone, Copy)]
pub enum Sharing {
    Nothing,
    Card,
}

/// Runs a test of this program in two processes of its own, the ranks of a world; what they say.
pub fn two_ranks_of(test: &str, sharing: Sharing) -> [String; 2] {
    let port = free_port().to_string();
    let process = |rank: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", test, "--nocapture"]);
        child.env("PHALANX_TEST_ALONE", test);
        child.env("WORLD_SIZE", "2").env("RANK", rank);
        child.env("LOCAL_WORLD_SIZE", "2");
        match sharing {
            Sharing::Nothing => child.env("LOCAL_RANK", rank),
            Sharing::Card => {
                child.env("NCCL_HOSTID", format!("rank{rank}"));
                child.env("LOCAL_RANK", "0")
            }
        };
        child
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", &port);
        child.stdout(Stdio::piped()).stderr(Stdio::piped());
        child.spawn().unwrap()
    };
    let ranks = ["0", "1"].map(process);
    ranks.map(Child::wait_with_output).map(|rank| {
        let rank = rank.unwrap();
        let said = String::from_utf8_lossy(&rank.stdout).into_owned();
        let errors = String::from_utf8_lossy(&rank.stderr).into_owned();
        assert!(rank.status.success(), "{said}{errors}");
        said
    })
}
