//! Where the world fails, each rank's last calls are written: those of the guilty one, too.

use phalanx_comm::{DType, LaunchConfig, ReduceOp, Tensor, launch};
use std::fs;
use std::path::PathBuf;

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("phalanx-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder); // of a process of the same number, long ago
    folder
}

#[test]
fn every_rank_writes_what_it_called() {
    let folder = folder("record");
    let config = LaunchConfig::new(3).flight_record(&folder);
    let end = launch(config, |g| {
        let mine = Tensor::ones([2], DType::F32, g.device())?;
        g.all_reduce(mine, ReduceOp::Sum)?.wait()?;
        if g.rank() == 1 {
            g.split(Some(0), 0)?; // the others call a barrier
        }
        g.barrier()?.wait()
    });
    let error = end.expect_err("rank 1 differs").to_string();
    for rank in 0..3 {
        let text = fs::read_to_string(folder.join(format!("rank-{rank}.json"))).unwrap();
        assert!(text.contains("all_reduce(sum) of f32 [2]"), "{text}");
        let last = if rank == 1 { "split" } else { "barrier" };
        assert!(text.contains(last), "{text}");
        assert!(text.contains("disagree on the operation"), "{text}");
    }
    assert!(error.contains("rank 1"), "{error}");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_rank_that_returned_too_early_has_a_record_too() {
    let folder = folder("early");
    let config = LaunchConfig::new(2).flight_record(&folder);
    let end = launch(config, |g| {
        g.barrier()?.wait()?;
        if g.rank() == 0 {
            return Ok(());
        }
        g.barrier()?.wait()
    });
    assert!(end.is_err());
    let text = fs::read_to_string(folder.join("rank-0.json")).unwrap();
    assert!(
        text.contains("it returned well") && text.contains("barrier"),
        "{text}"
    );
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn nothing_is_written_where_all_goes_well() {
    let folder = folder("well");
    let config = LaunchConfig::new(2).flight_record(&folder);
    launch(config, |g| g.barrier()?.wait()).unwrap();
    assert!(!folder.exists());
}
