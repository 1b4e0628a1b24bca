//! `cargo xtask kernels`: compiles every kernel for all architectures, with no card, and prints what it takes: registers,
//! local memory, shared memory. A kernel that uses local memory, by a stack or for want of registers, is a failure unless
//! `spills.txt` says why it may.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::ahead::{Usage, compile};
use super::nvrtc::Nvrtc;

/// What may use local memory, and why.
const ALLOWED: &str = include_str!("spills.txt");

/// What to print.
#[derive(clap::Args)]
pub struct Args {
    /// Print every kernel of every type, not the worst of each family.
    #[arg(long)]
    all: bool,
}

/// Why kernels cannot be compiled here, if they cannot. Fetches NVRTC if it is not here.
pub fn obstacle() -> Option<String> {
    Nvrtc::find().err()
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let nvrtc = match Nvrtc::find() {
        Ok(nvrtc) => nvrtc,
        Err(why) => {
            println!("SKIPPED: the registers and spills of kernels: {why}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let compiled = compile(&nvrtc)?;
    let lines = match args.all {
        true => each(&compiled.usages),
        false => worst(&compiled.usages),
    };
    lines.iter().for_each(|line| println!("{line}"));
    println!("compiled by {nvrtc}\n");
    let (lines, good) = judge(&compiled.usages, &allowed(ALLOWED)?);
    lines.iter().for_each(|line| println!("{line}"));
    Ok(super::code(good))
}

/// A line for each kernel.
fn each(usages: &[Usage]) -> Vec<String> {
    let width = usages.iter().map(|u| u.variant.len() + u.kernel.len() + 1);
    let width = width.max().unwrap_or(0);
    let head = format!(
        "{:<width$}  architecture  registers  stack  stores  loads  shared",
        "kernel"
    );
    let line = |u: &Usage| {
        let name = format!("{} {}", u.variant, u.kernel);
        let [stores, loads] = u.spills;
        format!(
            "{name:<width$}  {:>12}  {:>9}  {:>5}  {stores:>6}  {loads:>5}  {:>6}",
            format!("sm_{}", u.capability),
            u.registers,
            u.stack,
            u.shared
        )
    };
    [head].into_iter().chain(usages.iter().map(line)).collect()
}

/// A line for each family: the most that a kernel of it takes, and which one that is.
fn worst(usages: &[Usage]) -> Vec<String> {
    let mut families: BTreeMap<&str, Vec<&Usage>> = BTreeMap::new();
    for usage in usages {
        families.entry(&usage.family).or_default().push(usage);
    }
    let width = families
        .keys()
        .map(|family| family.len())
        .max()
        .unwrap_or(0);
    let head = format!(
        "{:<width$}  kernels  registers  stack  stores  loads  shared  most registers",
        "family"
    );
    let line = |(family, all): (&&str, &Vec<&Usage>)| {
        let most = |of: fn(&Usage) -> u32| all.iter().map(|u| of(u)).max().unwrap_or(0);
        let widest = all.iter().max_by_key(|u| u.registers);
        let widest = widest.map_or(String::new(), |u| {
            format!("{} {} on sm_{}", u.variant, u.kernel, u.capability)
        });
        format!(
            "{family:<width$}  {:>7}  {:>9}  {:>5}  {:>6}  {:>5}  {:>6}  {widest}",
            all.len(),
            most(|u| u.registers),
            most(|u| u.stack),
            most(|u| u.spills[0]),
            most(|u| u.spills[1]),
            most(|u| u.shared),
        )
    };
    let lines = families.iter().map(line);
    [head].into_iter().chain(lines).collect()
}

/// Kernels that may use so much local memory.
#[derive(Debug, PartialEq, Eq)]
struct Allowed<'a> {
    /// A family, or a family with types.
    of: &'a str,
    /// A kernel, or `*` for all.
    kernel: &'a str,
    stack: u32,
    spills: u32,
}

impl Allowed<'_> {
    fn names(&self, usage: &Usage) -> bool {
        let is_of = self.of == usage.family || self.of == usage.variant;
        is_of && (self.kernel == "*" || self.kernel == usage.kernel)
    }

    fn covers(&self, usage: &Usage) -> bool {
        let [stores, loads] = usage.spills;
        self.names(usage) && usage.stack <= self.stack && stores + loads <= self.spills
    }
}

/// The entries of a list.
fn allowed(text: &str) -> Result<Vec<Allowed<'_>>> {
    let entries = text.lines().filter(|line| !line.starts_with('#'));
    let entries = entries.filter(|line| !line.trim().is_empty());
    let entry = |line| {
        let mut words = str::split_whitespace(line);
        let mut entry = || {
            let allowed = Allowed {
                of: words.next()?,
                kernel: words.next()?,
                stack: words.next()?.parse().ok()?,
                spills: words.next()?.parse().ok()?,
            };
            // The reason.
            words.next().map(|_| allowed)
        };
        entry().with_context(|| format!("spills.txt has a line that is no entry: {line}"))
    };
    entries.map(entry).collect()
}

/// Judges the kernels, in the words of a test program; whether all is well.
fn judge(usages: &[Usage], allowed: &[Allowed<'_>]) -> (Vec<String>, bool) {
    let mut lines = Vec::new();
    let (mut passed, mut failed) = (0, 0);
    for usage in usages {
        let [stores, loads] = usage.spills;
        let is_clean = usage.stack == 0 && stores + loads == 0;
        if is_clean || allowed.iter().any(|entry| entry.covers(usage)) {
            passed += 1;
            continue;
        }
        failed += 1;
        lines.push(format!(
            "test {} {} on sm_{} uses no local memory ... FAILED: {} bytes of stack, {stores} of spill stores, {loads} of \
             spill loads",
            usage.variant, usage.kernel, usage.capability, usage.stack
        ));
    }
    for entry in allowed {
        let mut own = usages.iter().filter(|usage| entry.names(usage));
        let is_needed = own.any(|usage| usage.stack > 0 || usage.spills != [0, 0]);
        if !is_needed {
            failed += 1;
            lines.push(format!(
                "test spills.txt names only what spills ... FAILED: {} {} does not",
                entry.of, entry.kernel
            ));
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    lines.push(format!(
        "test result: {word}. {passed} passed; {failed} failed"
    ));
    (lines, failed == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(stack: u32, spills: [u32; 2]) -> Usage {
        Usage {
            family: "unary".to_owned(),
            variant: "unary-f32".to_owned(),
            kernel: "sin".to_owned(),
            capability: 90,
            registers: 32,
            stack,
            spills,
            shared: 0,
        }
    }

    #[test]
    fn what_spills_must_be_on_the_list() {
        let good = |usages: &[Usage], list: &str| judge(usages, &allowed(list).unwrap()).1;
        assert!(good(&[usage(0, [0, 0])], ""));
        assert!(!good(&[usage(8, [0, 0])], ""));
        assert!(!good(&[usage(0, [0, 4])], ""));
        let list = "# a list\n\nunary sin 8 0 its table lies on the stack";
        assert!(good(&[usage(8, [0, 0])], list));
        assert!(!good(&[usage(12, [0, 0])], list));
        assert!(!good(&[usage(8, [4, 0])], list));
        assert!(good(&[usage(8, [4, 4])], "unary-f32 sin 8 8 because"));
        assert!(good(&[usage(8, [0, 0])], "unary * 8 0 because"));
        assert!(!good(&[usage(8, [0, 0])], "unary-f16 sin 8 0 because"));
        // Who is on the list for nothing.
        assert!(!good(&[usage(0, [0, 0])], list));
    }

    #[test]
    fn each_entry_has_a_reason() {
        assert!(allowed("unary sin 8 0").is_err());
        assert!(allowed("unary sin eight 0 because").is_err());
        allowed(ALLOWED).unwrap();
    }
}
