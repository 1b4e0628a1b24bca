//! The conformance suite on cards: ranks as threads of this process, each with a card of its own.

mod cases;
#[path = "../../tensor/tests/cuda/counts.rs"]
mod counts;
#[path = "cards/failures.rs"]
mod failures;
mod ports;
#[path = "cards/processes.rs"]
mod processes;
mod scenes;
#[path = "cards/splits.rs"]
mod splits;
#[path = "../../tensor/tests/cuda/support.rs"]
mod support;

use phalanx_comm::{
    DType, Device, Error, Label, LaunchConfig, LaunchError, Message, ReduceOp, Tensor, launch,
};
use phalanx_tensor::WriteFault;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::cards;

fn config(ranks: usize) -> LaunchConfig {
    LaunchConfig::new(ranks)
        .deadline(Duration::from_secs(60))
        .device(Device::cuda(0))
}

fn conforms(test: &str, ranks: usize) {
    let Some(_turn) = cards(test, ranks) else {
        return;
    };
    for (name, case) in cases::ALL {
        let start = Instant::now();
        let end = launch(config(ranks), |group| {
            case(&*group)?;
            group.barrier()?.wait()
        });
        end.unwrap_or_else(|e| panic!("{name} on {ranks} ranks: {e}"));
        println!("{name} on {ranks} ranks: {:?}", start.elapsed());
    }
}

#[test]
fn one_rank() {
    conforms("one_rank", 1);
}

#[test]
fn two_ranks() {
    conforms("two_ranks", 2);
}

#[test]
fn four_ranks() {
    conforms("four_ranks", 4);
}

/// The cases within a group that was split off: half of the world runs them on its own.
#[test]
fn subgroups() {
    let Some(_turn) = cards("subgroups", 4) else {
        return;
    };
    let end = launch(config(4), |world| {
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

/// A rank leaves a call out: the others hear who is missing, and read no number out of what was ended.
#[test]
fn a_call_left_out() {
    let Some(_turn) = cards("a_call_left_out", 2) else {
        return;
    };
    let config = config(2).deadline(Duration::from_secs(1));
    let end = launch(config, |group| {
        let mine = || Tensor::full([1000], 1.0, DType::F32, group.device());
        let sum = group.all_reduce(mine()?, ReduceOp::Sum)?.wait()?;
        assert_eq!(sum.to_vec::<f32>()?, [2.0; 1000]);
        if group.rank() == 1 {
            std::thread::sleep(Duration::from_millis(2500));
            return group.barrier()?.wait();
        }
        let work = group.all_reduce(mine()?, ReduceOp::Sum)?;
        let sum = match work.wait() {
            Ok(sum) => sum,
            Err(error) => return Err(error),
        };
        match sum.to_vec::<f32>() {
            Ok(numbers) => panic!("read {} out of a lost all_reduce", numbers[0]),
            Err(error) => {
                assert!(
                    matches!(error, phalanx_tensor::Error::LostWrite { .. }),
                    "{error}"
                );
                Err(group.health().expect("the world has failed"))
            }
        }
    });
    let Err(LaunchError::Ranks { first, others }) = end else {
        panic!("{end:?}")
    };
    let said = first.to_string();
    assert!(said.contains("for rank 1"), "{said}");
    assert_eq!(others.len(), 1);
    // A new world goes well.
    let end = launch(self::config(2), |group| {
        let mine = Tensor::full([10], 1.0, DType::F32, group.device())?;
        Ok::<_, Error>(
            group
                .all_reduce(mine, ReduceOp::Sum)?
                .wait()?
                .to_vec::<f32>()?,
        )
    });
    assert_eq!(end.unwrap(), vec![vec![2.0; 10]; 2]);
}

/// A call that one rank drops and the other never makes: both return well, and the launch tells what nobody was told.
#[test]
fn a_failure_that_no_program_was_told_of() {
    let Some(_turn) = cards("a_failure_that_no_program_was_told_of", 2) else {
        return;
    };
    let end = launch(config(2), |group| {
        let mine = Tensor::full([100], 1.0, DType::F32, group.device())?;
        if group.rank() == 0 {
            drop(group.all_reduce(mine, ReduceOp::Sum)?);
        }
        Ok::<_, Error>(())
    });
    let Err(LaunchError::World(error)) = end else {
        panic!("{end:?}")
    };
    let said = error.to_string();
    assert!(said.contains("all_reduce(sum) of f32 [100]"), "{said}");
}

/// A tensor is changed in place when nobody reads it any more: also where the last event of its writer is older than the
/// reader.
#[test]
fn readers_come_before_a_call_in_place() {
    let Some(_turn) = cards("readers_come_before_a_call_in_place", 2) else {
        return;
    };
    let end = launch(config(2), |group| {
        for _ in 0..4 {
            let mine = Tensor::full([100_000], 1.0, DType::F32, group.device())?;
            assert_eq!(mine.narrow(0, 0, 1)?.to_vec::<f32>()?, [1.0]); // an event behind the write
            let twice = mine.mul_scalar(2.0)?;
            let sum = group.all_reduce(mine, ReduceOp::Sum)?.wait()?;
            assert_eq!(twice.to_vec::<f32>()?, [2.0; 100_000]);
            assert_eq!(sum.to_vec::<f32>()?, [2.0; 100_000]);
        }
        Ok::<_, Error>(())
    });
    end.unwrap();
}

/// A tensor that was lost before is refused by its rank alone, and nobody has heard a word of that call: the next ones meet
/// as they should.
#[test]
fn a_lost_tensor_is_refused_before_a_word_is_said() {
    let Some(_turn) = cards("a_lost_tensor_is_refused_before_a_word_is_said", 2) else {
        return;
    };
    let end = launch(config(2).deadline(Duration::from_secs(5)), |group| {
        let mine = |value: f64| Tensor::full([100], value, DType::F32, group.device());
        if group.rank() == 0 {
            let lost = mine(7.0)?;
            let write = WriteFault::new();
            lost.set_last_write(&write);
            write.declare("on purpose");
            let error = group.all_reduce(lost, ReduceOp::Sum).unwrap_err();
            assert!(error.to_string().contains("on purpose"), "{error}");
        }
        for step in [1.0, 2.0] {
            let sum = group.all_reduce(mine(step)?, ReduceOp::Sum)?.wait()?;
            assert_eq!(sum.to_vec::<f32>()?, [2.0 * step as f32; 100]);
        }
        Ok::<_, Error>(())
    });
    end.unwrap();
}

/// Programs that hear of a failure and end well all the same: the launch has nothing to tell, as on CPUs.
#[test]
fn a_failure_that_every_program_has_heard_of() {
    let Some(_turn) = cards("a_failure_that_every_program_has_heard_of", 2) else {
        return;
    };
    let end = launch(config(2), |group| {
        let mine = Tensor::full([100], 1.0, DType::F32, group.device())?;
        let group = group.labelled(Label::new(0, group.rank() as u64, 0));
        let mut work = group.all_reduce(mine, ReduceOp::Sum)?;
        loop {
            match work.poll() {
                Ok(_) => std::thread::sleep(Duration::from_millis(1)),
                Err(Error::Divergence { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    });
    end.unwrap();
}

/// More calls are under way than a lane keeps events for, and the oldest of them never ends: it is noticed all the same.
#[test]
fn many_calls_under_way() {
    let Some(_turn) = cards("many_calls_under_way", 2) else {
        return;
    };
    let config = config(2).deadline(Duration::from_secs(1));
    let start = Instant::now();
    let end = launch(config, |group| {
        let mine = Tensor::full([100], 1.0, DType::F32, group.device())?;
        group.barrier()?.wait()?;
        if group.rank() == 1 {
            std::thread::sleep(Duration::from_millis(2500));
            return group.barrier()?.wait();
        }
        let calls = (0..100).map(|_| group.all_reduce(mine.clone(), ReduceOp::Sum));
        let mut works = calls.collect::<Result<Vec<_>, _>>()?;
        while !works[0].poll()? {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    let Err(LaunchError::Ranks { first, .. }) = end else {
        panic!("{end:?}")
    };
    let said = first.to_string();
    assert!(said.contains("for rank 1"), "{said}");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

/// Runs a test of this program by itself, in a process whose environment says so. True in that process.
fn alone(test: &str, environment: &[(&str, &str)]) -> bool {
    const CHILD: &str = "PHALANX_TEST_ALONE";
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        return true;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, test);
    let output = child.envs(environment.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // A name that no test has would pass, too.
    assert!(said.contains("test result: ok. 1 passed"), "{said}");
    false
}

/// The error of two ranks that reduce tensors of different lengths. `behind`: it comes when a lost result is read.
fn differ(behind: bool) {
    let config = config(2).deadline(Duration::from_secs(5));
    let end = launch(config, |group| {
        let len = 10 + group.rank();
        let mine = Tensor::full([len], 1.0, DType::F32, group.device())?;
        let issued = group.all_reduce(mine, ReduceOp::Sum);
        assert_eq!(issued.is_err(), !behind, "{issued:?}");
        // The world may have failed by the time that it is waited for.
        if let Ok(sum) = issued?.wait() {
            let lost = sum.to_vec::<f32>();
            assert!(lost.is_err(), "read {lost:?}");
        }
        Err::<(), Error>(group.health().expect("the world has failed"))
    });
    let Err(LaunchError::Ranks { first, others }) = end else {
        panic!("{end:?}")
    };
    for failed in others.iter().chain([&first]) {
        let said = failed.to_string();
        assert!(said.contains("disagree on the shape"), "{said}");
        assert!(said.contains("all_reduce(sum) of f32 [11]"), "{said}");
    }
    assert_eq!(others.len(), 1);
}

/// Calls that differ are found behind them, and told alike to all; nobody reads a number.
#[test]
fn calls_that_differ() {
    let Some(_turn) = cards("calls_that_differ", 2) else {
        return;
    };
    // On a card such calls hang; a simulated one would report them.
    if alone(
        "calls_that_differ",
        &[("PHALANX_SIMULATOR_NCCL_MISMATCH", "hang")],
    ) {
        differ(true);
    }
}

/// Where calls are compared before they are issued, NCCL sees none that differ.
#[test]
fn calls_that_differ_are_not_issued() {
    let Some(_turn) = cards("calls_that_differ_are_not_issued", 2) else {
        return;
    };
    if alone(
        "calls_that_differ_are_not_issued",
        &[("PHALANX_COMM_DEBUG", "1")],
    ) {
        differ(false);
    }
}

/// A rank sends and receives in one call; the other needs what is sent for what it answers. Messages that run together do
/// not wait for each other, even where calls are compared before they are issued. Nor does a send wait for its receiver.
#[test]
fn an_answer_to_a_message_that_runs_together_with_it() {
    let name = "an_answer_to_a_message_that_runs_together_with_it";
    let Some(_turn) = cards(name, 2) else {
        return;
    };
    if !alone(name, &[("PHALANX_COMM_DEBUG", "1")]) {
        return;
    }
    let has_sent = AtomicBool::new(false);
    let end = launch(config(2).deadline(Duration::from_secs(5)), |group| {
        let mut number = 0.0;
        for round in 0..4 {
            let asks = group.rank() == round % 2;
            let other = 1 - group.rank();
            if asks {
                let question = Tensor::full([4], number + 1.0, DType::F32, group.device())?;
                let answer = group.batch(vec![
                    Message::Send {
                        tensor: question,
                        destination: other,
                        tag: 0,
                    },
                    Message::Recv {
                        shape: 4.into(),
                        dtype: DType::F32,
                        source: other,
                        tag: 1,
                    },
                ])?;
                number = f64::from(answer.wait()?[0].to_vec::<f32>()?[3]);
            } else {
                let question = group.recv(4.into(), DType::F32, other, 0)?.wait()?;
                number = f64::from(question.to_vec::<f32>()?[3]) + 1.0;
                let answer = Tensor::full([4], number, DType::F32, group.device())?;
                group.send(answer, other, 1)?.wait()?;
            }
        }
        if group.rank() == 0 {
            let sent = Tensor::full([4], number, DType::F32, group.device())?;
            let sent = group.send(sent, 1, 2)?;
            has_sent.store(true, SeqCst);
            sent.wait()?;
        } else {
            while !has_sent.load(SeqCst) {
                group.health().map_or(Ok(()), Err)?;
                std::thread::yield_now();
            }
            number += f64::from(
                group
                    .recv(4.into(), DType::F32, 0, 2)?
                    .wait()?
                    .to_vec::<f32>()?[0],
            );
        }
        Ok::<_, Error>(number)
    });
    assert_eq!(end.unwrap(), [8.0, 16.0]);
}

/// One rank's tensor is in the host's memory, and the other's on its card: neither shape nor type differs.
#[test]
fn a_tensor_of_the_host_does_not_meet_one_of_a_card() {
    let Some(_turn) = cards("a_tensor_of_the_host_does_not_meet_one_of_a_card", 2) else {
        return;
    };
    if !alone(
        "a_tensor_of_the_host_does_not_meet_one_of_a_card",
        &[("PHALANX_COMM_DEBUG", "1")],
    ) {
        return;
    }
    let meet = |is_message: bool| {
        let end = launch(config(2).deadline(Duration::from_secs(5)), |group| {
            let (me, shape) = (group.rank(), [8]);
            let device = if me == 0 {
                Device::cpu(0)
            } else {
                group.device()
            };
            let mine = Tensor::zeros(shape, DType::I64, device)?;
            match (is_message, me) {
                (false, _) => group.all_reduce(mine, ReduceOp::Sum)?.wait().map(drop),
                (true, 0) => group.send(mine, 1, 0)?.wait(),
                (true, _) => group.recv(shape.into(), DType::I64, 0, 0)?.wait().map(drop),
            }?;
            group.barrier()?.wait()
        });
        let Err(LaunchError::Ranks { first, .. }) = end else {
            panic!("{end:?}")
        };
        first.to_string()
    };
    for is_message in [false, true] {
        let said = meet(is_message);
        assert!(said.contains("disagree on the device"), "{said}");
    }
    // Ranks that call different things are told so, wherever their tensors are.
    let end = launch(config(2).deadline(Duration::from_secs(5)), |group| {
        let tensor = |device| Tensor::zeros([8], DType::I64, device);
        match group.rank() {
            0 => group.all_gather(tensor(Device::cpu(0))?)?.wait(),
            _ => group
                .all_reduce(tensor(group.device())?, ReduceOp::Sum)?
                .wait(),
        }
        .map(drop)?;
        group.barrier()?.wait()
    });
    let said = end.unwrap_err().to_string();
    assert!(said.contains("disagree on the operation"), "{said}");
}

/// A group over two cards of each rank: calls on either of them, calls that meet on different ones, and what is refused.
#[test]
fn two_cards_a_rank() {
    let Some(_turn) = cards("two_cards_a_rank", 4) else {
        return;
    };
    let end = launch(config(2), |world| {
        let rank = world.rank();
        let own = [Device::cuda(rank), Device::cuda(2 + rank)];
        let refused = |wrong: &[Device], said: &str| match world.with_cards(wrong) {
            Err(error @ Error::InvalidArgument { .. }) => {
                assert!(error.to_string().contains(said), "{error}");
            }
            _ => panic!("{wrong:?} are taken"),
        };
        refused(&own[..1 + rank], "it has 2 cards, and rank 0 has 1");
        refused(&[own[0], own[0]], "none is named twice");
        refused(&[Device::cpu(0)], "is a card");
        refused(&[own[0], Device::cuda(99)], "that is there");
        let ones = |card: Device| Tensor::full([100], 1.0, DType::F32, card);
        let error = world.all_reduce(ones(own[1])?, ReduceOp::Sum).unwrap_err();
        assert!(error.to_string().contains("with_cards"), "{error}");
        let group = world.with_cards(&own)?;
        assert_eq!(group.device(), own[0]);
        for card in [own[1], own[0], own[1]] {
            let sum = group.all_reduce(ones(card)?, ReduceOp::Sum)?.wait()?;
            assert_eq!(sum.device(), card);
            assert_eq!(sum.to_vec::<f32>()?, [2.0; 100]);
        }
        // A part of it has the same cards.
        let part = group.split(Some(0), 0)?.expect("every rank has a color");
        let sum = part.all_reduce(ones(own[1])?, ReduceOp::Sum)?.wait()?;
        assert_eq!(sum.to_vec::<f32>()?, [2.0; 100]);
        // What comes without a known shape arrives on the card of the same slot.
        let next = 1 - rank;
        for slot in [1, 0] {
            if rank == 0 {
                group.send_any(ones(own[slot])?, next, 0)?.wait()?;
            } else {
                let come = group.recv_any(next, 0)?.wait()?;
                assert_eq!(come.device(), own[slot]);
                assert_eq!(come.to_vec::<f32>()?, [1.0; 100]);
            }
        }
        // On each rank another one.
        let sum = group.all_reduce(ones(own[rank])?, ReduceOp::Sum)?.wait()?;
        match sum.to_vec::<f32>() {
            Ok(_) => panic!("the sum of what never met"),
            Err(_) => Err::<(), _>(group.health().expect("the world has failed")),
        }
    });
    let Err(LaunchError::Ranks { first, .. }) = end else {
        panic!("{end:?}")
    };
    assert!(first.to_string().contains("on the device"), "{first}");
}
