//! What was put into the streams of simulated cards, and what streams and events order: a real card keeps no such record.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};

use crate::counts::of_driver;

type Turn = extern "C" fn(bool);
type Before = extern "C" fn(u64, u64) -> bool;
type Get = unsafe extern "C" fn(u64, *mut u64, *mut u64, *mut c_char, usize) -> bool;

/// An operation of a stream.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its place in the record, in the order of the calls.
    pub index: u64,
    pub card: u64,
    pub stream: u64,
    /// The kernel's name, or what else it is.
    pub name: String,
}

/// The record of a process.
#[derive(Debug)]
pub struct Trace {
    turn: Turn,
    before: Before,
    get: Get,
}

impl Trace {
    /// `None` on a real card.
    pub fn find() -> Option<Trace> {
        let [turn, before, get] = [
            c"phalanx_simulator_trace",
            c"phalanx_simulator_before",
            c"phalanx_simulator_operation",
        ]
        .map(of_driver);
        // SAFETY: the simulator's functions have these types.
        unsafe {
            Some(Trace {
                turn: std::mem::transmute::<*mut c_void, Turn>(turn?),
                before: std::mem::transmute::<*mut c_void, Before>(before?),
                get: std::mem::transmute::<*mut c_void, Get>(get?),
            })
        }
    }

    /// Starts a record.
    pub fn start(&self) {
        (self.turn)(true);
    }

    /// Ends it: what has happened.
    pub fn end(&self) -> Vec<Operation> {
        (self.turn)(false);
        (0..).map_while(|index| self.operation(index)).collect()
    }

    fn operation(&self, index: u64) -> Option<Operation> {
        let (mut card, mut stream, mut name) = (0, 0, [0; 256]);
        // SAFETY: the numbers can be written, and the text has as many bytes as is said.
        let found =
            unsafe { (self.get)(index, &mut card, &mut stream, name.as_mut_ptr(), name.len()) };
        // SAFETY: the simulator has ended the text with a zero.
        let text = unsafe { CStr::from_ptr(name.as_ptr()) };
        found.then(|| Operation {
            index,
            card,
            stream,
            name: text.to_string_lossy().into_owned(),
        })
    }

    /// Whether one operation has ended before another one begins, however long each takes.
    pub fn is_before(&self, first: &Operation, second: &Operation) -> bool {
        (self.before)(first.index, second.index)
    }
}
