//! Models of messages, whose two ends find each other in a mailbox: one message from rank 0 to rank 1.

use super::tensors::{check_all, filled, ones};
use super::whole::run_with;
use crate::backends::Backend;
use crate::backends::local::LocalGroup;
use crate::check::{self, Room};
use crate::error::Result;
use crate::work::Pending;
use phalanx_tensor::DType;
use smallvec::smallvec;

/// How often a thread loses its turn at other times than when it waits.
const PREEMPTIONS: usize = 3;

/// Issues this rank's end of a message of so many chunks.
fn issue(g: &LocalGroup, chunks: usize) -> Result<Box<dyn Pending>> {
    let me = g.membership();
    g.issue(match me.rank {
        0 => check::send(me, ones(me, chunks), 1, 0)?,
        _ => {
            let room = filled(me, chunks, 0.0);
            let mut call = check::recv(me, room.shape().clone(), DType::F32, 0, 0)?;
            call.outputs = smallvec![Room::Given(room)];
            call
        }
    })
}

/// Waits for it; the receiver has what was sent.
fn wait(g: &LocalGroup, work: Box<dyn Pending>) {
    let got = work.wait().unwrap();
    match g.membership().rank {
        0 => assert!(got.is_empty()),
        _ => check_all(g.membership(), &got, 1.0),
    }
}

/// Plays one message, which the rank `drops` does not wait for.
fn play(name: &str, chunks: usize, drops: Option<usize>) {
    run_with(name, 2, PREEMPTIONS, move |g| {
        let work = issue(g, chunks).unwrap();
        match drops == Some(g.membership().rank) {
            true => drop(work),
            false => wait(g, work),
        }
    });
}

/// It is carried out by the end that comes last.
#[test]
fn the_ends_of_a_message_meet() {
    play("the ends of a message meet", 0, None);
}

/// It is carried out by whoever waits.
#[test]
fn a_sender_drops_its_end() {
    play("a sender drops its end", 1, Some(0));
}

#[test]
fn a_receiver_drops_its_end() {
    play("a receiver drops its end", 1, Some(1));
}

/// Who comes first to the second message takes the slot of the first one again, or another one where the peer has not left
/// that one yet.
#[test]
fn a_slot_of_messages_is_taken_again() {
    run_with(
        "a slot of messages is taken again",
        2,
        PREEMPTIONS - 1,
        |g| {
            for _ in 0..2 {
                let work = issue(g, 0).unwrap();
                wait(g, work);
            }
        },
    );
}
