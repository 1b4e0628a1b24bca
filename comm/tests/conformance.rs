//! One suite for every backend: see `cases`. Here, the threads of this process.

mod cases;

use phalanx_comm::{LaunchConfig, launch};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The devices' accounts are the process's: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Every case, on worlds of 1 to 8 ranks. Nothing stays behind.
#[test]
fn local() {
    let _one = ONE.lock();
    // ThreadSanitizer is twenty times slower.
    let sizes: &[usize] = if cfg!(phalanx_tsan) {
        &[1, 2, 3, 5]
    } else {
        &[1, 2, 3, 4, 5, 6, 7, 8]
    };
    for &world_size in sizes {
        let config = LaunchConfig::new(world_size).deadline(Duration::from_secs(60));
        for (name, case) in cases::ALL {
            let start = Instant::now();
            let end = launch(config.clone(), |group| {
                case(&*group)?;
                group.barrier()?.wait()
            });
            end.unwrap_or_else(|e| panic!("{name} on {world_size} ranks: {e}"));
            println!("{name} on {world_size} ranks: {:?}", start.elapsed());
        }
        for rank in 0..world_size {
            let live = phalanx_comm::Device::cpu(rank).memory().unwrap().live;
            assert_eq!(live, 0, "cpu:{rank} after {world_size} ranks");
        }
    }
}

/// The cases within a group that was split off: half of the world runs them on its own.
#[test]
fn local_subgroups() {
    let _one = ONE.lock();
    let end = launch(7, |world| {
        let color = (world.rank() % 2) as u32;
        let group = world.split(Some(color), -(world.rank() as i32))?;
        let group = group.expect("every rank has a color");
        for (_, case) in cases::ALL {
            case(&*group)?;
        }
        world.barrier()?.wait()
    });
    end.unwrap_or_else(|e| panic!("{e}"));
}
