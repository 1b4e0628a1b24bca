//! What the lanes of a warp do together. Each lane hands its part to the engine, which waits for the others and
//! answers all of them.

use std::fmt::Write as _;

use super::super::LoadError;
use super::super::ast::{Operand, Ty};
use super::fun::Fun;

/// What kind of a common operation it is; `exec/warp.rs` has the same numbers.
const SHUFFLE: u32 = 1;
const VOTE: u32 = 2;
const MATCH: u32 = 3;
const REDUX: u32 = 4;
const MMA: u32 = 5;
const MATRIX: u32 = 6;

/// The shapes and types of `mma.sync` that are known: their number, and how many registers A and B have.
const MMAS: &[(&str, [Ty; 4], u32, usize, usize)] = &[
    (
        "m16n8k16",
        [Ty::F(32), Ty::BF16, Ty::BF16, Ty::F(32)],
        0,
        4,
        2,
    ),
    (
        "m16n8k16",
        [Ty::F(32), Ty::F16, Ty::F16, Ty::F(32)],
        1,
        4,
        2,
    ),
    (
        "m16n8k8",
        [Ty::F(32), Ty::TF32, Ty::TF32, Ty::F(32)],
        2,
        4,
        2,
    ),
    (
        "m16n8k8",
        [Ty::F(32), Ty::BF16, Ty::BF16, Ty::F(32)],
        3,
        2,
        1,
    ),
    ("m16n8k8", [Ty::F(32), Ty::F16, Ty::F16, Ty::F(32)], 4, 2, 1),
    (
        "m16n8k4",
        [Ty::F(32), Ty::TF32, Ty::TF32, Ty::F(32)],
        5,
        2,
        1,
    ),
];

impl Fun<'_> {
    pub fn warp(&mut self) -> Result<(), LoadError> {
        let op = self.inst.op[0].as_str();
        if op == "activemask" {
            // A lane alone is always a possible answer, and the one that relies on nothing.
            self.ty()?;
            return self.result(Ty::B(32), "1u << c->lane");
        }
        if !self.mods.take("sync") {
            return Err(self.unknown());
        }
        self.need.waits = true;
        match op {
            "shfl" => self.shuffle(),
            "mma" => self.mma(),
            "ldmatrix" => self.matrix(),
            _ => self.vote(),
        }
    }

    fn shuffle(&mut self) -> Result<(), LoadError> {
        let mode = match self.mods.take_one(&["up", "down", "bfly", "idx"]) {
            Some("up") => 0,
            Some("down") => 1,
            Some("bfly") => 2,
            Some(_) => 3,
            None => return Err(self.unknown()),
        };
        let ty = self.ty()?;
        let (value, lane) = (self.arg(1, Ty::B(32))?, self.arg(2, Ty::B(32))?);
        let (clamp, mask) = (self.arg(3, Ty::B(32))?, self.arg(4, Ty::B(32))?);
        let site = self.site();
        let _ = write!(
            self.code,
            "Shuffle s = {{ {value}, {lane}, {clamp}, {mode}, 0, 0 }}; c->api->warp(c, {site}, {SHUFFLE}, {mask}, &s); "
        );
        match self.operand(0)? {
            Operand::Pair(value, valid) => {
                self.set(value, Ty::B(ty.bits()), "s.result")?;
                self.set(valid, Ty::Pred, "s.valid")
            }
            operand => self.set(operand, Ty::B(ty.bits()), "s.result"),
        }
    }

    /// `vote`, `match` and `redux`: a value in, a value out.
    fn vote(&mut self) -> Result<(), LoadError> {
        let op = self.inst.op[0].as_str();
        let known: &[&'static str] = match op {
            "vote" => &["all", "any", "uni", "ballot"],
            "match" => &["any", "all"],
            _ => &["add", "min", "max", "and", "or", "xor"],
        };
        let flag = self.mods.take_one(known).ok_or_else(|| self.unknown())?;
        let mut mode = known.iter().position(|name| *name == flag).unwrap_or(0);
        let ty = self.ty()?;
        if op == "redux" && ty.signed() {
            mode += 8;
        }
        let (kind, input) = match op {
            "vote" => (VOTE, Ty::Pred),
            "match" => (MATCH, ty),
            _ => (REDUX, ty),
        };
        let operand = self.operand(1)?;
        let (value, mask) = (self.bits(operand, input)?, self.arg(2, Ty::B(32))?);
        let site = self.site();
        let _ = write!(
            self.code,
            "Vote s = {{ (u32){value}, {mode}, 0, 0, (u64){value} }}; c->api->warp(c, {site}, {kind}, {mask}, &s); "
        );
        let output = if op == "vote" { ty } else { Ty::B(32) };
        match self.operand(0)? {
            Operand::Pair(value, all) => {
                self.set(value, output, "s.result")?;
                self.set(all, Ty::Pred, "s.all")
            }
            operand => self.set(operand, output, "s.result"),
        }
    }

    fn mma(&mut self) -> Result<(), LoadError> {
        self.mods.take("aligned");
        let right = self.mods.take("row") && self.mods.take("col");
        let types = std::mem::take(&mut self.mods.types);
        let known = MMAS
            .iter()
            .find(|(shape, wanted, ..)| types == wanted && self.mods.take(shape));
        let Some((_, _, kind, a, b)) = known.filter(|_| right) else {
            return Err(self.unknown());
        };
        let _ = write!(self.code, "Mma s; s.kind = {kind}; ");
        for (at, name, count) in [(1, 'a', *a), (2, 'b', *b), (3, 'c', 4)] {
            let parts = match self.operand(at)? {
                Operand::Vector(parts) if parts.len() == count => parts.as_slice(),
                single if count == 1 => std::slice::from_ref(single),
                _ => return Err(self.bad("a fragment has another number of registers")),
            };
            for (index, part) in parts.iter().enumerate() {
                let bits = self.bits(part, if name == 'c' { Ty::F(32) } else { Ty::B(32) })?;
                let _ = write!(self.code, "s.{name}[{index}] = {bits}; ");
            }
        }
        let site = self.site();
        let _ = write!(self.code, "c->api->warp(c, {site}, {MMA}, ~0u, &s); ");
        let Operand::Vector(parts) = self.operand(0)? else {
            return Err(self.bad("a fragment is missing"));
        };
        for (index, part) in parts.iter().enumerate() {
            self.set(part, Ty::B(32), &format!("s.d[{index}]"))?;
        }
        Ok(())
    }

    fn matrix(&mut self) -> Result<(), LoadError> {
        self.mods.take("aligned");
        let turned = u32::from(self.mods.take("trans"));
        let count = match self.mods.take_one(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some(_) => 4,
            None => return Err(self.unknown()),
        };
        let shared = self.mods.take("shared") || self.mods.take("shared::cta");
        let ty = self.ty()?;
        if !self.mods.take("m8n8") || !shared || ty != Ty::B(16) {
            return Err(self.unknown());
        }
        let (address, read, site) = (self.address(1)?, self.site(), self.site());
        let _ = write!(
            self.code,
            "Matrix s; s.count = {count}; s.turned = {turned}; \
             if (c->lane < 8 * {count}) __builtin_memcpy(s.row, ld_shared(c, {read}, {address}, 16, 0), 16); \
             c->api->warp(c, {site}, {MATRIX}, ~0u, &s); "
        );
        let parts = match self.operand(0)? {
            Operand::Vector(parts) => parts.as_slice(),
            single => std::slice::from_ref(single),
        };
        if parts.len() != count {
            return Err(self.bad("the number of registers is not that of the matrices"));
        }
        for (index, part) in parts.iter().enumerate() {
            self.set(part, Ty::B(32), &format!("s.out[{index}]"))?;
        }
        Ok(())
    }
}
