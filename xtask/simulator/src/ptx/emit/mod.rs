//! A [`Unit`] to C: one C function for each function of PTX, registers as local variables that hold bits, and a table
//! of the places where something can go wrong. What is not known is an error that names the instruction.

mod arith;
mod bits;
mod compare;
mod control;
mod convert;
mod float;
mod fun;
mod memory;
mod operand;
mod warp;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use super::LoadError;
use super::ast::{Function, Inst, Place, Unit, Var};
use fun::Fun;

/// A place in the code where the engine may have to say something.
#[derive(Debug, Clone)]
pub struct Site {
    pub place: Place,
    /// The number of the function in which it stands.
    pub function: usize,
    /// The instruction, `ld.global.f32`.
    pub text: String,
}

/// What the engine must know of a kernel.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    /// The number of its C function, `K<number>`.
    pub number: usize,
    pub params: Vec<Var>,
    pub max_threads: Option<u32>,
    /// Ranges of sites that it and the functions that it calls may use.
    pub sites: Vec<std::ops::Range<usize>>,
    /// Where each shared variable of the module lies in the block's shared memory, if the kernel uses it.
    pub places: Vec<u32>,
    pub static_shared: usize,
    /// The most local memory that a thread may use, in bytes.
    pub local: usize,
    /// Whether its threads ever wait for each other.
    pub waits: bool,
}

/// A module, translated.
#[derive(Debug, Clone)]
pub struct Translation {
    pub source: String,
    pub entries: Vec<Entry>,
    pub sites: Vec<Site>,
    pub functions: Vec<String>,
    /// The variables in global and constant memory; generated code asks for their addresses by this order.
    pub vars: Vec<Var>,
    pub files: Vec<(u32, String)>,
}

/// What a function was found to need.
#[derive(Debug, Default)]
struct Need {
    sites: std::ops::Range<usize>,
    frame: usize,
    waits: bool,
    calls: BTreeSet<usize>,
    shared: BTreeSet<usize>,
}

/// The tables that all functions of a module share while they are translated.
struct Names<'a> {
    unit: &'a Unit,
    vars: HashMap<&'a str, usize>,
    functions: HashMap<&'a str, usize>,
    /// Shared variables: of the module by name, of a function by its number and the name.
    shared: HashMap<(Option<usize>, &'a str), usize>,
}

/// Local memory is given for this many levels of a recursive function.
const RECURSION: usize = 24;

/// Translates `unit`.
pub fn emit(unit: &Unit) -> Result<Translation, LoadError> {
    let device = |var: &&Var| matches!(var.space.as_str(), "global" | "const");
    let vars: Vec<Var> = unit.vars.iter().filter(device).cloned().collect();
    let mut shared: Vec<&Var> = Vec::new();
    let mut names = Names {
        unit,
        vars: HashMap::new(),
        functions: HashMap::new(),
        shared: HashMap::new(),
    };
    for (at, var) in unit.vars.iter().filter(device).enumerate() {
        names.vars.insert(&var.name, at);
    }
    for var in unit.vars.iter().filter(|var| var.space == "shared") {
        names.shared.insert((None, &var.name), shared.len());
        shared.push(var);
    }
    for (number, function) in unit.functions.iter().enumerate() {
        names.functions.insert(&function.name, number);
        let own = function.scopes.iter().flat_map(|scope| &scope.vars);
        for var in own.filter(|var| var.space == "shared") {
            names.shared.insert((Some(number), &var.name), shared.len());
            shared.push(var);
        }
    }
    let mut source = String::new();
    let (mut sites, mut needs) = (Vec::new(), Vec::new());
    for (number, function) in unit.functions.iter().enumerate() {
        if !function.external {
            let _ = writeln!(source, "{};", fun::signature(number, function));
        }
    }
    let starts: Vec<Inst> = unit.functions.iter().map(start).collect();
    for (number, function) in unit.functions.iter().enumerate() {
        if function.external {
            needs.push(Need::default());
            continue;
        }
        let (text, need) = Fun::translate(&names, number, function, &starts[number], &mut sites)?;
        source.push_str(&text);
        needs.push(need);
    }
    let mut entries = Vec::new();
    for (number, function) in unit.functions.iter().enumerate() {
        if function.entry && !function.external {
            entries.push(entry(number, unit, &needs, &shared));
        }
    }
    Ok(Translation {
        source,
        entries,
        sites,
        functions: unit.functions.iter().map(|f| f.name.clone()).collect(),
        vars,
        files: unit.files.clone(),
    })
}

/// What stands for the head of a function where an instruction is asked for.
fn start(function: &Function) -> Inst {
    Inst {
        guard: None,
        op: vec![function.name.clone()],
        operands: Vec::new(),
        place: function.place,
        scope: 0,
    }
}

fn entry(number: usize, unit: &Unit, needs: &[Need], shared: &[&Var]) -> Entry {
    let mut reached = BTreeSet::from([number]);
    let mut open = vec![number];
    while let Some(at) = open.pop() {
        open.extend(needs[at].calls.iter().filter(|call| reached.insert(**call)));
    }
    let used: BTreeSet<usize> = reached
        .iter()
        .flat_map(|at| needs[*at].shared.clone())
        .collect();
    let mut places = vec![0; shared.len()];
    let mut end = 0u32;
    // What the launch sizes lies behind everything else.
    for external in [false, true] {
        for at in used.iter().filter(|at| shared[**at].external == external) {
            end = end.next_multiple_of(shared[*at].align.max(1));
            places[*at] = end;
            end += if external { 0 } else { shared[*at].size as u32 };
        }
    }
    let function = &unit.functions[number];
    Entry {
        name: function.name.clone(),
        number,
        params: function.params.clone(),
        max_threads: function.max_threads,
        sites: reached.iter().map(|at| needs[*at].sites.clone()).collect(),
        places,
        static_shared: end as usize,
        local: depth(number, needs, &mut BTreeMap::new(), &mut Vec::new()),
        waits: reached.iter().any(|at| needs[*at].waits),
    }
}

/// The most local memory along any chain of calls from `at`.
fn depth(
    at: usize,
    needs: &[Need],
    known: &mut BTreeMap<usize, usize>,
    path: &mut Vec<usize>,
) -> usize {
    if let Some(bytes) = known.get(&at) {
        return *bytes;
    }
    if path.contains(&at) {
        return path.iter().map(|at| needs[*at].frame).sum::<usize>() * RECURSION;
    }
    path.push(at);
    let calls = needs[at].calls.iter();
    let below = calls.map(|call| depth(*call, needs, known, path)).max();
    path.pop();
    let bytes = needs[at].frame + below.unwrap_or(0);
    known.insert(at, bytes);
    bytes
}
