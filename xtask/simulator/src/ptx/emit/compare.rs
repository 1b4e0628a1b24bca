//! Comparisons, and choices by them.

use std::fmt::Write as _;

use super::super::LoadError;
use super::super::ast::{Operand, Ty};
use super::fun::Fun;

/// The comparisons of PTX.
const TESTS: &[&str] = &[
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu",
    "geu", "num", "nan",
];

impl Fun<'_> {
    pub fn compare(&mut self) -> Result<(), LoadError> {
        let op = self.inst.op[0].as_str();
        match op {
            "selp" => {
                let ty = self.ty()?;
                let carrier = if matches!(ty, Ty::F(_)) {
                    ty
                } else {
                    Ty::B(ty.bits())
                };
                let (first, second) = (self.operand(1)?, self.operand(2)?);
                let (a, b) = (self.bits(first, carrier)?, self.bits(second, carrier)?);
                let test = self.arg(3, Ty::Pred)?;
                self.result(Ty::B(ty.bits()), &format!("{test} ? {a} : {b}"))
            }
            "slct" => {
                let flush = self.mods.take("ftz");
                let (ty, test) = (self.ty()?, self.ty()?);
                let carrier = if matches!(ty, Ty::F(_)) {
                    ty
                } else {
                    Ty::B(ty.bits())
                };
                let (first, second) = (self.operand(1)?, self.operand(2)?);
                let (a, b) = (self.bits(first, carrier)?, self.bits(second, carrier)?);
                let value = self.arg(3, test)?;
                let value = if flush {
                    format!("ftz({value})")
                } else {
                    value
                };
                self.result(Ty::B(ty.bits()), &format!("{value} >= 0 ? {a} : {b}"))
            }
            "testp" => {
                let kind = self.mods.take_one(&[
                    "finite",
                    "infinite",
                    "number",
                    "notanumber",
                    "normal",
                    "subnormal",
                ]);
                let ty = self.ty()?;
                let a = self.arg(1, ty)?;
                let text = match kind {
                    Some("finite") => format!("__builtin_isfinite({a})"),
                    Some("infinite") => format!("__builtin_isinf_sign({a}) != 0"),
                    Some("number") => format!("{a} == {a}"),
                    Some("notanumber") => format!("{a} != {a}"),
                    Some("normal") => format!("__builtin_isnormal({a})"),
                    Some("subnormal") => {
                        format!("{a} != 0 && __builtin_isfinite({a}) && !__builtin_isnormal({a})")
                    }
                    _ => return Err(self.unknown()),
                };
                self.result(Ty::Pred, &text)
            }
            _ => self.set_op(),
        }
    }

    /// `setp` and `set`.
    fn set_op(&mut self) -> Result<(), LoadError> {
        let test = self.mods.take_one(TESTS).ok_or_else(|| self.unknown())?;
        let joint = self.mods.take_one(&["and", "or", "xor"]);
        let flush = self.mods.take("ftz");
        let whole = self.inst.op[0] == "set";
        let result = if whole { Some(self.ty()?) } else { None };
        let ty = self.ty()?;
        let pair = matches!(ty, Ty::F16x2 | Ty::BF16x2);
        let floating = pair || matches!(ty, Ty::F(_) | Ty::F16 | Ty::BF16);
        // One comparison, or one for each half of a pair.
        let mut yes = Vec::new();
        for half in 0..if pair { 2 } else { 1 } {
            let (a, b) = (
                self.side(1, ty, half, flush)?,
                self.side(2, ty, half, flush)?,
            );
            yes.push(comparison(test, floating, &a, &b).ok_or_else(|| self.unknown())?);
        }
        let sign = match joint {
            Some("and") => " && ",
            Some("or") => " || ",
            _ => " != ",
        };
        let third = match joint {
            Some(_) => Some(self.arg(3, Ty::Pred)?),
            None => None,
        };
        let joined = |test: &str| match &third {
            Some(third) => format!("((({test}) != 0){sign}!!{third})"),
            None => format!("({test})"),
        };
        if let Some(result) = result {
            let (true_bits, width) = match result {
                Ty::F(32) if !pair => (0x3f80_0000u64, 32),
                Ty::F16 | Ty::F16x2 => (0x3c00, 16),
                Ty::BF16 | Ty::BF16x2 => (0x3f80, 16),
                Ty::U(bits) | Ty::S(bits) | Ty::B(bits) if bits <= 32 && !pair => {
                    ((1 << bits) - 1, bits)
                }
                Ty::U(32) | Ty::S(32) if pair => (0xffff, 16),
                _ => return Err(self.unknown()),
            };
            if pair != (width == 16 && result.bits() == 32) {
                return Err(self.unknown());
            }
            let parts = yes.iter().enumerate().map(|(half, test)| {
                format!("({} ? {true_bits:#x}u << {} : 0u)", joined(test), 16 * half)
            });
            let text = parts.collect::<Vec<_>>().join(" | ");
            return self.result(Ty::B(result.bits()), &text);
        }
        match self.operand(0)? {
            Operand::Pair(first, second) => {
                // The second predicate is the opposite comparison, or that of the upper half.
                let other = if pair {
                    joined(&yes[1])
                } else {
                    joined(&format!("!({})", yes[0]))
                };
                let _ = write!(
                    self.code,
                    "const u8 yes = {}, no = {other}; ",
                    joined(&yes[0])
                );
                self.set(first, Ty::Pred, "yes")?;
                self.set(second, Ty::Pred, "no")
            }
            _ if pair => Err(self.unknown()),
            _ => self.result(Ty::Pred, &joined(&yes[0])),
        }
    }

    /// An operand of a comparison, as a C expression that `<` understands.
    fn side(&mut self, at: usize, ty: Ty, half: u32, flush: bool) -> Result<String, LoadError> {
        Ok(match ty {
            Ty::F16 => format!("half({})", self.arg(at, Ty::B(16))?),
            Ty::BF16 => format!("brain({})", self.arg(at, Ty::B(16))?),
            Ty::F16x2 => format!("half((u16)({} >> {}))", self.arg(at, Ty::B(32))?, 16 * half),
            Ty::BF16x2 => format!(
                "brain((u16)({} >> {}))",
                self.arg(at, Ty::B(32))?,
                16 * half
            ),
            Ty::F(32) if flush => format!("ftz({})", self.arg(at, ty)?),
            _ => self.arg(at, ty)?,
        })
    }
}

/// A comparison in C. The ordered ones are false for a NaN, `ne` too; those that end with `u` are true for it.
fn comparison(test: &str, floating: bool, a: &str, b: &str) -> Option<String> {
    Some(match (test, floating) {
        ("eq", _) => format!("{a} == {b}"),
        ("ne", true) => format!("({a} < {b} || {a} > {b})"),
        ("ne", false) => format!("{a} != {b}"),
        ("lt" | "lo", _) => format!("{a} < {b}"),
        ("le" | "ls", _) => format!("{a} <= {b}"),
        ("gt" | "hi", _) => format!("{a} > {b}"),
        ("ge" | "hs", _) => format!("{a} >= {b}"),
        ("equ", true) => format!("!({a} < {b} || {a} > {b})"),
        ("neu", true) => format!("{a} != {b}"),
        ("ltu", true) => format!("!({a} >= {b})"),
        ("leu", true) => format!("!({a} > {b})"),
        ("gtu", true) => format!("!({a} <= {b})"),
        ("geu", true) => format!("!({a} < {b})"),
        ("num", true) => format!("({a} == {a} && {b} == {b})"),
        ("nan", true) => format!("({a} != {a} || {b} != {b})"),
        _ => return None,
    })
}
