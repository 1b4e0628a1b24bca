//! Logic, shifts, bit fields, and comparisons.

use super::super::LoadError;
use super::super::ast::{Operand, Ty};
use super::fun::Fun;

impl Fun<'_> {
    pub fn bits_op(&mut self) -> Result<(), LoadError> {
        let op = self.inst.op[0].as_str();
        match op {
            "and" | "or" | "xor" | "not" | "cnot" => {
                let ty = self.ty()?;
                let a = self.arg(1, ty)?;
                let text = match (op, ty) {
                    ("not", Ty::Pred) => format!("!{a}"),
                    ("not", _) => format!("~{a}"),
                    ("cnot", _) => format!("{a} == 0"),
                    _ => {
                        let sign = match op {
                            "and" => '&',
                            "or" => '|',
                            _ => '^',
                        };
                        format!("{a} {sign} {}", self.arg(2, ty)?)
                    }
                };
                self.result(ty, &text)
            }
            "shl" | "shr" => {
                let ty = self.ty()?;
                let width = ty.bits();
                if !matches!(width, 16 | 32 | 64) {
                    return Err(self.unknown());
                }
                let (a, n) = (self.arg(1, Ty::B(width))?, self.arg(2, Ty::B(32))?);
                let name = match (op, ty.signed()) {
                    ("shl", _) => "shl",
                    (_, true) => "sar",
                    _ => "shr",
                };
                self.result(Ty::B(width), &format!("{name}{width}({a}, {n})"))
            }
            "shf" => {
                let left = self.mods.take("l");
                let right = self.mods.take("r");
                let clamp = self.mods.take("clamp");
                if left == right || !(clamp || self.mods.take("wrap")) {
                    return Err(self.unknown());
                }
                let ty = self.ty()?;
                let (a, b, n) = (self.arg(1, ty)?, self.arg(2, ty)?, self.arg(3, ty)?);
                let n = if clamp {
                    format!("least({n}, 32)")
                } else {
                    format!("{n} & 31")
                };
                self.result(
                    ty,
                    &format!("fs{}({a}, {b}, {n})", if left { 'l' } else { 'r' }),
                )
            }
            "popc" | "clz" | "brev" | "bfind" => {
                let amount = self.mods.take("shiftamt");
                let ty = self.ty()?;
                let width = ty.bits();
                let a = self.arg(1, Ty::B(width))?;
                let (result, text) = match op {
                    "popc" => (Ty::U(32), format!("(u32)__builtin_popcountl({a})")),
                    "clz" => (Ty::U(32), format!("clz{width}({a})")),
                    "brev" => (ty, format!("brev{width}({a})")),
                    _ => {
                        let a = match ty.signed() {
                            true => format!("({a} >> {} ? (u{width})~{a} : {a})", width - 1),
                            false => a,
                        };
                        if amount {
                            return Err(self.unknown());
                        }
                        (Ty::U(32), format!("bfind({a})"))
                    }
                };
                if amount {
                    return Err(self.unknown());
                }
                self.result(result, &text)
            }
            "bfe" | "bfi" => {
                let ty = self.ty()?;
                let (width, plain) = (ty.bits(), Ty::B(ty.bits()));
                let a = self.arg(1, plain)?;
                let text = if op == "bfe" {
                    let (p, n) = (self.arg(2, Ty::B(32))?, self.arg(3, Ty::B(32))?);
                    format!(
                        "{}bfe({a}, {p}, {n}, {width})",
                        if ty.signed() { 's' } else { 'u' }
                    )
                } else {
                    let (b, p, n) = (
                        self.arg(2, plain)?,
                        self.arg(3, Ty::B(32))?,
                        self.arg(4, Ty::B(32))?,
                    );
                    format!("bfi({a}, {b}, {p}, {n}, {width})")
                };
                self.result(plain, &text)
            }
            "prmt" => {
                let ty = self.ty()?;
                let (a, b, n) = (self.arg(1, ty)?, self.arg(2, ty)?, self.arg(3, ty)?);
                self.result(ty, &format!("prmt({a}, {b}, {n})"))
            }
            "lop3" => {
                let ty = self.ty()?;
                let (a, b) = (self.arg(1, ty)?, self.arg(2, ty)?);
                let (c, table) = (self.arg(3, ty)?, self.arg(4, ty)?);
                self.result(ty, &format!("lop3({a}, {b}, {c}, {table})"))
            }
            _ => {
                self.mods = Default::default();
                Err(self.unknown())
            }
        }
    }

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
        let known = [
            "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu",
            "gtu", "geu", "num", "nan",
        ];
        let test = self.mods.take_one(&known).ok_or_else(|| self.unknown())?;
        let joint = self.mods.take_one(&["and", "or", "xor"]);
        let flush = self.mods.take("ftz");
        let whole = self.inst.op[0] == "set";
        let result = if whole { Some(self.ty()?) } else { None };
        let ty = self.ty()?;
        let mut side = |at: usize| -> Result<String, LoadError> {
            let text = match ty {
                Ty::F16 => format!("half({})", self.arg(at, Ty::B(16))?),
                Ty::BF16 => format!("brain({})", self.arg(at, Ty::B(16))?),
                Ty::F16x2 | Ty::BF16x2 => return Err(self.unknown()),
                _ => self.arg(at, ty)?,
            };
            Ok(if flush && ty == Ty::F(32) {
                format!("ftz({text})")
            } else {
                text
            })
        };
        let (a, b) = (side(1)?, side(2)?);
        let floating = matches!(ty, Ty::F(_) | Ty::F16 | Ty::BF16);
        let text = match (test, floating) {
            ("eq", _) => format!("{a} == {b}"),
            // An ordered comparison is false for a NaN, `ne` too.
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
            _ => return Err(self.unknown()),
        };
        let sign = match joint {
            Some("and") => " && ",
            Some("or") => " || ",
            _ => " != ",
        };
        let third = match joint {
            Some(_) => Some(self.arg(3, Ty::Pred)?),
            None => None,
        };
        let joined = |test: String| match &third {
            Some(third) => format!("(({test}){sign}!!{third})"),
            None => format!("({test})"),
        };
        if let Some(result) = result {
            let (yes, no) = if result == Ty::F(32) {
                ("0x3f800000u", "0")
            } else {
                ("~0u", "0")
            };
            return self.result(
                Ty::B(result.bits()),
                &format!("{} ? {yes} : {no}", joined(text)),
            );
        }
        match self.operand(0)? {
            Operand::Pair(first, second) => {
                use std::fmt::Write as _;
                let _ = write!(
                    self.code,
                    "const u8 yes = {}, no = {}; ",
                    joined(text.clone()),
                    joined(format!("!({text})"))
                );
                self.set(first, Ty::Pred, "yes")?;
                self.set(second, Ty::Pred, "no")
            }
            _ => self.result(Ty::Pred, &joined(text)),
        }
    }
}
