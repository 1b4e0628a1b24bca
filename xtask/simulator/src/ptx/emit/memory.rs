//! Loads, stores, atomics, and what moves addresses between the state spaces.

use std::fmt::Write as _;

use super::super::LoadError;
use super::super::ast::{Operand, Ty};
use super::fun::Fun;

const SCOPES: &[&str] = &["cta", "cluster", "gpu", "sys", "weak"];
const CACHES: &[&str] = &["ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "aligned"];

impl Fun<'_> {
    /// The state space of an access; without one the address is generic.
    fn space(&mut self) -> &'static str {
        if self.mods.take("shared") || self.mods.take("shared::cta") {
            return "shared";
        }
        let space = self.mods.take_one(&["global", "const", "local", "param"]);
        space.unwrap_or("generic")
    }

    /// Takes cache hints and scopes, and says what orders the access.
    fn order(&mut self) -> Option<&'static str> {
        self.mods.ignore(SCOPES);
        self.mods.ignore(CACHES);
        self.mods
            .flags
            .retain(|flag| !flag.starts_with("L1::") && !flag.starts_with("L2::"));
        let order = [
            "volatile", "relaxed", "acquire", "release", "acq_rel", "mmio",
        ];
        self.mods.take_one(&order)
    }

    /// Takes cache hints and scopes; says whether the access is strong, so that it takes no part in data races with
    /// other strong ones. A release is a fence before it, an acquire one behind it, which is to be written then.
    fn strong(&mut self) -> (bool, String) {
        let order = self.order();
        if matches!(order, Some("release" | "acq_rel")) {
            let fence = self.fence_call();
            self.code.push_str(&fence);
        }
        let behind = match order {
            Some("acquire" | "acq_rel") => self.fence_call(),
            _ => String::new(),
        };
        (order.is_some(), behind)
    }

    fn fence_call(&mut self) -> String {
        format!("fence(c, {}, 1); ", self.site())
    }

    /// `membar` and `fence`: only what reaches beyond the block orders blocks.
    pub fn fence(&mut self) {
        let narrow = self.mods.take("cta");
        self.mods.flags.clear();
        let site = self.site();
        let _ = write!(self.code, "fence(c, {site}, {}); ", u32::from(!narrow));
    }

    fn lanes(&mut self) -> usize {
        match self.mods.take_one(&["v2", "v4"]) {
            Some("v2") => 2,
            Some(_) => 4,
            None => 1,
        }
    }

    /// The C expression of the first byte of an access of `bytes`, checked.
    fn access(
        &mut self,
        verb: &str,
        space: &str,
        at: usize,
        bytes: u32,
        strong: bool,
    ) -> Result<String, LoadError> {
        if space == "param" {
            let Operand::Address(base, offset) = self.operand(at)? else {
                return Err(self.bad("an address in brackets is missing"));
            };
            if let Operand::Name(name) = &**base
                && let Some((place, var)) = self.param(name)
            {
                if *offset < 0 || *offset as usize + bytes as usize > var.size {
                    return Err(self.bad(format!("it leaves the parameter '{name}'")));
                }
                return Ok(format!("({place} + {offset})"));
            }
            if verb != "ld" || !self.function.entry {
                return Err(self.unknown());
            }
        }
        let space = if space == "const" { "global" } else { space };
        let (address, site, kind) = (self.address(at)?, self.site(), if strong { 4 } else { 0 });
        Ok(format!(
            "{verb}_{space}(c, {site}, {address}, {bytes}, {kind})"
        ))
    }

    pub fn load(&mut self) -> Result<(), LoadError> {
        let (space, (strong, behind)) = (self.space(), self.strong());
        let (lanes, ty) = (self.lanes(), self.ty()?);
        let width = ty.bits();
        if width > 64 || width as usize * lanes > 128 {
            return Err(self.unknown());
        }
        let place = self.access("ld", space, 1, ty.bytes() * lanes as u32, strong)?;
        let _ = write!(self.code, "const u8* p = {place}; {behind}");
        let read = |at: usize| format!("L{width}(p + {})", at * ty.bytes() as usize);
        let carrier = if ty.signed() { ty } else { Ty::B(width) };
        match self.operand(0)? {
            Operand::Vector(parts) if parts.len() == lanes => {
                for (at, part) in parts.iter().enumerate() {
                    self.set(part, carrier, &read(at))?;
                }
                Ok(())
            }
            operand if lanes == 1 => self.set(operand, carrier, &read(0)),
            _ => Err(self.bad("the number of registers is not that of its elements")),
        }
    }

    pub fn store(&mut self) -> Result<(), LoadError> {
        let (space, (strong, _)) = (self.space(), self.strong());
        let (lanes, ty) = (self.lanes(), self.ty()?);
        let width = ty.bits();
        if width > 64 || space == "const" || width as usize * lanes > 128 {
            return Err(self.unknown());
        }
        let place = self.access("st", space, 0, ty.bytes() * lanes as u32, strong)?;
        let _ = write!(self.code, "u8* p = {place}; ");
        let single = [self.operand(1)?.clone()];
        let parts = match self.operand(1)? {
            Operand::Vector(parts) if parts.len() == lanes => parts.as_slice(),
            _ if lanes == 1 => &single,
            _ => return Err(self.bad("the number of registers is not that of its elements")),
        };
        for (at, part) in parts.iter().enumerate() {
            let bits = self.bits(
                part,
                if matches!(ty, Ty::F(_)) {
                    ty
                } else {
                    Ty::B(width)
                },
            )?;
            let _ = write!(
                self.code,
                "S{width}(p + {}, {bits}); ",
                at * ty.bytes() as usize
            );
        }
        Ok(())
    }

    pub fn atomic(&mut self) -> Result<(), LoadError> {
        let (space, (_, behind)) = (self.space(), self.strong());
        self.mods.take("noftz");
        let with_result = self.inst.op[0] == "atom";
        let known = [
            "add", "and", "or", "xor", "exch", "min", "max", "inc", "dec", "cas",
        ];
        let op = self.mods.take_one(&known).ok_or_else(|| self.unknown())?;
        let ty = self.ty()?;
        let name = match (op, ty) {
            ("add", Ty::F(_) | Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2) => {
                format!("at_add{}", spell(ty))
            }
            (_, Ty::F(_) | Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2) => {
                return Err(self.unknown());
            }
            ("min" | "max", Ty::S(width)) => format!("at_s{op}{width}"),
            (_, ty) if (16..=64).contains(&ty.bits()) => format!("at_{op}{}", ty.bits()),
            _ => return Err(self.unknown()),
        };
        let first = usize::from(with_result);
        let place = self.access("rw", space, first, ty.bytes(), true)?;
        let carrier = Ty::B(ty.bits());
        let literal = |ty: Ty| if matches!(ty, Ty::F(_)) { ty } else { carrier };
        let operand = self.operand(first + 1)?;
        let mut args = format!("{place}, {}", self.bits(operand, literal(ty))?);
        if op == "cas" {
            let operand = self.operand(first + 2)?;
            args = format!("{args}, {}", self.bits(operand, carrier)?);
        }
        match with_result {
            true => self.result(carrier, &format!("{name}({args})"))?,
            false => {
                let _ = write!(self.code, "{name}({args}); ");
            }
        }
        self.code.push_str(&behind);
        Ok(())
    }

    /// `cp.async`: the bytes are read at once, and land when their thread waits for them (`exec/copies.rs`).
    pub fn copy_async(&mut self) -> Result<(), LoadError> {
        if !self.mods.take("async") {
            return Err(self.unknown());
        }
        self.mods.take("all");
        let waits = self
            .mods
            .take_one(&["commit_group", "wait_group", "wait_all"]);
        if let Some(wait) = waits {
            let open = match wait {
                "commit_group" => "~0u".to_owned(),
                "wait_all" => "~1u".to_owned(),
                _ => self.arg(0, Ty::B(32))?,
            };
            let site = self.site();
            let _ = write!(self.code, "c->api->copied(c, {site}, {open}); ");
            return Ok(());
        }
        self.order();
        if !(self.mods.take("shared") || self.mods.take("shared::cta")) || !self.mods.take("global")
        {
            return Err(self.unknown());
        }
        let Operand::Number(word) = self.operand(2)? else {
            return Err(self.unknown());
        };
        let bytes: u32 = word.parse().map_err(|_| self.unknown())?;
        if !matches!(bytes, 4 | 8 | 16) {
            return Err(self.bad("it copies 4, 8 or 16 bytes"));
        }
        let (to, from) = (self.address(0)?, self.address(1)?);
        let (first, second, third) = (self.site(), self.site(), self.site());
        let have = match self.inst.operands.get(3) {
            Some(operand) => self.bits(operand, Ty::B(32))?,
            None => format!("{bytes}u"),
        };
        let _ = write!(
            self.code,
            "st_shared(c, {first}, {to}, {bytes}, 0); const u32 have = {have}; u8 part[16] = {{}}; \
             if (have >= {bytes}) __builtin_memcpy(part, ld_global(c, {second}, {from}, {bytes}, 0), {bytes}); \
             else for (u32 i = 0; i < have; i++) part[i] = *ld_global(c, {third}, {from} + i, 1, 0); \
             c->api->copy(c, {first}, (u32){to}, {bytes}, part); "
        );
        Ok(())
    }

    pub fn cvta(&mut self) -> Result<(), LoadError> {
        let back = self.mods.take("to");
        let space = self.space();
        let ty = self.ty()?;
        let from = self.arg(1, ty)?;
        let window = match space {
            "shared" => "SHARED_WINDOW",
            "local" => "LOCAL_WINDOW",
            "global" | "const" => "0",
            // A kernel parameter has no generic address here.
            _ => return Err(self.unknown()),
        };
        let sign = if back { '-' } else { '+' };
        self.result(ty, &format!("{from} {sign} {window}"))
    }

    pub fn isspacep(&mut self) -> Result<(), LoadError> {
        let space = self.space();
        let from = self.arg(1, Ty::B(64))?;
        let test = match space {
            "shared" => format!("({from} >> 56) == 0x53"),
            "local" => format!("({from} >> 56) == 0x54"),
            "global" => format!("({from} >> 56) != 0x53 && ({from} >> 56) != 0x54"),
            _ => return Err(self.unknown()),
        };
        self.result(Ty::Pred, &test)
    }

    pub fn mov(&mut self) -> Result<(), LoadError> {
        let ty = self.ty()?;
        if ty.bits() > 64 {
            return Err(self.unknown());
        }
        let carrier = if matches!(ty, Ty::Pred | Ty::F(_)) {
            ty
        } else {
            Ty::B(ty.bits())
        };
        let operand = self.operand(1)?;
        let bits = self.bits(operand, carrier)?;
        self.result(if ty == Ty::Pred { ty } else { Ty::B(ty.bits()) }, &bits)
    }
}

/// A type as PTX spells it.
pub fn spell(ty: Ty) -> String {
    match ty {
        Ty::B(bits) => format!("b{bits}"),
        Ty::U(bits) => format!("u{bits}"),
        Ty::S(bits) => format!("s{bits}"),
        Ty::F(bits) => format!("f{bits}"),
        Ty::F16 => "f16".to_owned(),
        Ty::F16x2 => "f16x2".to_owned(),
        Ty::BF16 => "bf16".to_owned(),
        Ty::BF16x2 => "bf16x2".to_owned(),
        Ty::TF32 => "tf32".to_owned(),
        Ty::Pred => "pred".to_owned(),
    }
}
