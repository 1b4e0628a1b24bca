//! Random programs: the simulator reports exactly those in which two uses of some bytes are not ordered. What is ordered
//! is worked out here in another way, as sets of earlier operations.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;

use std::collections::HashSet;

use driver::*;
use simulator::driver::alloc::*;
use simulator::driver::context::*;
use simulator::driver::copy::*;
use simulator::driver::event::*;
use simulator::driver::pointers::Out;
use simulator::driver::set::*;
use simulator::driver::stream::*;

const N: usize = 64;
const STEPS: usize = 60;
const PROGRAM: &str = "SIMULATOR_TEST_RANDOM";

struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }
}

/// Operations by their numbers.
type Set = HashSet<usize>;

/// What an operation has used: buffers, and whether it wrote to them.
type Uses = Vec<(usize, bool)>;

/// The program's own view of itself.
struct Model {
    /// Handles of streams. The first one is the default stream, the second one takes turns with it, the others do not.
    streams: Vec<u64>,
    /// The operations of each stream, and all that is ordered before its next one.
    known: Vec<Set>,
    host: Set,
    /// Events, with what is ordered before those who wait for them.
    events: Vec<(u64, Option<Set>)>,
    /// The uses and the predecessors of each operation.
    operations: Vec<(Uses, Set)>,
    /// The streams of the operations.
    places: Vec<usize>,
    /// The values that are everywhere in a buffer, if the program is right.
    values: Vec<i32>,
}

impl Model {
    /// What is ordered before the next operation of a stream.
    fn before(&self, stream: usize) -> Set {
        let mut before = self.known[stream].clone();
        before.extend(&self.host);
        match stream {
            0 => before.extend(&self.known[1]),
            1 => before.extend(&self.known[0]),
            _ => {}
        }
        before
    }

    /// A stream for which `stream` has to wait before it uses a buffer so.
    fn lacks(&self, stream: usize, buffer: usize, writes: bool) -> Option<usize> {
        let before = self.before(stream);
        let mut all = self.operations.iter().enumerate();
        let missing = all.find(|(number, (uses, _))| {
            let mut uses = uses.iter();
            !before.contains(number)
                && uses.any(|(used, also)| *used == buffer && (writes || *also))
        });
        missing.map(|(number, _)| self.places[number])
    }

    /// An operation is enqueued.
    fn add(&mut self, stream: usize, uses: Uses, also: Option<Set>) {
        let mut before = self.before(stream);
        before.extend(also.into_iter().flatten());
        self.places.push(stream);
        let number = self.operations.len();
        self.operations.push((uses, before.clone()));
        before.insert(number);
        self.known[stream] = before;
    }

    fn races(&self) -> bool {
        let all = self.operations.iter().enumerate();
        all.clone().any(|(number, (uses, _))| {
            all.clone().skip(number + 1).any(|(_, (later, before))| {
                let mut pairs = uses
                    .iter()
                    .flat_map(|one| later.iter().map(move |other| (one, other)));
                !before.contains(&number)
                    && pairs
                        .any(|((one, writes), (other, also))| one == other && (*writes || *also))
            })
        })
    }
}

fn random() {
    let mut random = Random(std::env::var(PROGRAM).unwrap().parse().unwrap());
    let gpu = Gpu::new(0);
    let streams = vec![0, blocking_stream(), stream(), stream()];
    let mut model = Model {
        known: vec![Set::new(); streams.len()],
        streams,
        host: Set::new(),
        events: (0..3).map(|_| (event(), None)).collect(),
        operations: Vec::new(),
        places: Vec::new(),
        values: vec![0; 4],
    };
    let mut buffers: Vec<u64> = (0..model.values.len())
        .map(|_| ints(model.streams[2], N))
        .collect();
    for buffer in &buffers {
        good!(cuMemsetD32Async(*buffer, 0, N, model.streams[2]));
    }
    good!(cuCtxSynchronize());
    // In every second program some waits are missing.
    let careless = random.below(2) == 0;
    let n = N as i32;
    // The number in the model of the buffer that stands at each place now.
    let mut ids: Vec<usize> = (0..buffers.len()).collect();
    let mut next = ids.len();
    let event_of_a_join = event();
    let mut codes = Vec::new();
    for _ in 0..STEPS {
        if codes.iter().any(|code| *code != 0) {
            break;
        }
        let at = random.below(model.streams.len());
        let stream = model.streams[at];
        let [x, y, z] = [(); 3].map(|()| random.below(buffers.len()));
        let event = random.below(model.events.len());
        for (buffer, writes) in [(ids[x], true), (ids[y], false), (ids[z], false)] {
            while let Some(other) = model.lacks(at, buffer, writes) {
                if careless && random.below(6) == 0 {
                    break;
                }
                codes.push(call!(cuEventRecord(event_of_a_join, model.streams[other])));
                codes.push(call!(cuStreamWaitEvent(stream, event_of_a_join, 0)));
                model.add(other, Uses::new(), None);
                let known = model.known[other].clone();
                model.add(at, Uses::new(), Some(known));
            }
        }
        codes.push(match random.below(12) {
            0 | 1 => {
                model.add(at, vec![(ids[x], true)], None);
                model.values[x] += 1;
                gpu.increment(stream, buffers[x], n)
            }
            2 | 3 => {
                model.add(
                    at,
                    vec![(ids[x], true), (ids[y], false), (ids[z], false)],
                    None,
                );
                model.values[x] = model.values[y].wrapping_add(model.values[z]);
                gpu.add(stream, buffers[x], buffers[y], buffers[z], n)
            }
            4 => {
                model.add(at, vec![(ids[x], true)], None);
                model.values[x] = z as i32;
                gpu.fill(stream, buffers[x], z as i32, n)
            }
            5 if x != y => {
                model.add(at, vec![(ids[x], true), (ids[y], false)], None);
                model.values[x] = model.values[y];
                call!(cuMemcpyDtoDAsync_v2(buffers[x], buffers[y], 4 * N, stream))
            }
            6 => {
                model.add(at, vec![(ids[x], true)], None);
                model.values[x] = 9;
                call!(cuMemsetD32Async(buffers[x], 9, N, stream))
            }
            7 => {
                let code = call!(cuEventRecord(model.events[event].0, stream));
                model.add(at, Uses::new(), None);
                model.events[event].1 = Some(model.known[at].clone());
                code
            }
            8 => {
                if let Some(known) = model.events[event].1.clone() {
                    model.add(at, Uses::new(), Some(known));
                }
                call!(cuStreamWaitEvent(stream, model.events[event].0, 0))
            }
            9 if random.below(4) == 0 => {
                let known = model.events[event].1.clone();
                model.host.extend(known.into_iter().flatten());
                call!(cuEventSynchronize(model.events[event].0))
            }
            10 if random.below(4) == 0 => {
                let known = model.known[at].clone();
                model.host.extend(known);
                call!(cuStreamSynchronize(stream))
            }
            11 => {
                // The buffer is freed, and another one takes its place.
                model.add(at, vec![(ids[x], true)], None);
                let mut code = call!(cuMemFreeAsync(buffers[x], stream));
                (ids[x], next) = (next, next + 1);
                if code == 0 {
                    model.add(at, vec![(ids[x], true)], None);
                    code = call!(cuMemAllocAsync(Out::to(&mut buffers[x]), 4 * N, stream));
                }
                if code == 0 {
                    model.add(at, vec![(ids[x], true)], None);
                    model.values[x] = 5;
                    code = call!(cuMemsetD32Async(buffers[x], 5, N, stream));
                }
                code
            }
            _ => 0,
        });
    }
    codes.push(call!(cuCtxSynchronize()));
    let races = model.races();
    assert_eq!(codes.iter().any(|code| *code != 0), races, "{codes:?}");
    if !races {
        for (buffer, value) in buffers.iter().zip(&model.values) {
            assert_eq!(read(*buffer, N, model.streams[2]), (0, vec![*value; N]));
            free(*buffer, model.streams[2]);
        }
    }
    println!("{}", if races { "it races" } else { "it is right" });
}

#[test]
fn program() {
    run_program(&[("random", random)]);
}

#[test]
fn exactly_the_programs_that_race_are_reported() {
    let mut right = 0;
    let programs = 300;
    for program in 0..programs {
        let variables = [
            (PROGRAM, &*program.to_string()),
            ("PHALANX_SIMULATOR_SEED", &*program.to_string()),
        ];
        let outcome = run("random", &variables);
        if outcome.output.contains("it is right") {
            outcome.finds_nothing();
            right += 1;
        } else {
            outcome.finds(&["GPU 0"]);
        }
    }
    println!("{right} of {programs} programs are right");
    assert!((75..=225).contains(&right), "{right}");
}
