//! Integer arithmetic, and the half types; f32 and f64 are in `float`.

use std::fmt::Write as _;

use super::super::LoadError;
use super::super::ast::Ty;
use super::fun::Fun;
use super::memory::spell;

impl Fun<'_> {
    pub fn arithmetic(&mut self) -> Result<(), LoadError> {
        let op = self.inst.op[0].as_str();
        match self.mods.types.first() {
            Some(Ty::F(_)) => return self.float(),
            Some(Ty::F16 | Ty::BF16 | Ty::F16x2 | Ty::BF16x2) => return self.half(),
            _ => {}
        }
        if op == "dp4a" {
            let (a, b) = (self.ty()?, self.ty()?);
            let bits = [
                self.arg(1, Ty::B(32))?,
                self.arg(2, Ty::B(32))?,
                self.arg(3, Ty::B(32))?,
            ];
            let [x, y, z] = bits;
            let (a, b) = (i32::from(a.signed()), i32::from(b.signed()));
            return self.result(Ty::B(32), &format!("dp4({x}, {y}, {z}, {a}, {b})"));
        }
        if self.mods.take("cc") || matches!(op, "addc" | "subc" | "madc") {
            return self.carried();
        }
        let part = self.mods.take_one(&["lo", "hi", "wide"]);
        let saturated = self.mods.take("sat");
        let ty = self.ty()?;
        let width = ty.bits();
        if !matches!(
            ty,
            Ty::U(16 | 32 | 64) | Ty::S(16 | 32 | 64) | Ty::B(16 | 32 | 64)
        ) {
            if matches!((op, ty), ("add" | "sub" | "min" | "max", _)) {
                return Err(self.unknown());
            }
            return Err(self.unknown());
        }
        if saturated && !(matches!(op, "add" | "sub") && ty == Ty::S(32)) {
            return Err(self.unknown());
        }
        // Wrapping arithmetic is done on unsigned integers, which C defines.
        let plain = Ty::B(width);
        let wide = if width == 64 { "128" } else { "64" };
        let sign = if ty.signed() { 's' } else { 'u' };
        let product = |a: &str, b: &str| format!("(({sign}{wide}){a} * ({sign}{wide}){b})");
        match op {
            "add" | "sub" => {
                let sign = if op == "add" { '+' } else { '-' };
                if saturated {
                    let (a, b) = (self.arg(1, ty)?, self.arg(2, ty)?);
                    return self.result(ty, &format!("sat_s32((s128){a} {sign} {b})"));
                }
                let (a, b) = (self.arg(1, plain)?, self.arg(2, plain)?);
                self.result(plain, &format!("{a} {sign} {b}"))
            }
            "mul" | "mad" => {
                let (a, b) = (self.arg(1, ty)?, self.arg(2, ty)?);
                let (result, text) = match part {
                    Some("lo") => {
                        let (a, b) = (self.arg(1, plain)?, self.arg(2, plain)?);
                        let wrap = if width == 64 { "u64" } else { "u32" };
                        (plain, format!("({wrap}){a} * {b}"))
                    }
                    Some("hi") => (plain, format!("(u{width})({} >> {width})", product(&a, &b))),
                    Some("wide") if width < 64 => {
                        let double = if ty.signed() {
                            Ty::S(width * 2)
                        } else {
                            Ty::U(width * 2)
                        };
                        (double, product(&a, &b))
                    }
                    _ => return Err(self.unknown()),
                };
                if op == "mul" {
                    return self.result(result, &text);
                }
                let sum = Ty::B(result.bits());
                let third = self.arg(3, sum)?;
                self.result(sum, &format!("(u{})({text}) + {third}", sum.bits()))
            }
            "div" | "rem" => {
                let (a, b) = (self.arg(1, plain)?, self.arg(2, plain)?);
                self.result(plain, &format!("{sign}{op}{width}({a}, {b})"))
            }
            "abs" => {
                let a = self.arg(1, ty)?;
                let wrapped = self.arg(1, plain)?;
                self.result(plain, &format!("{a} < 0 ? 0 - {wrapped} : {wrapped}"))
            }
            "neg" => {
                let a = self.arg(1, plain)?;
                self.result(plain, &format!("0 - {a}"))
            }
            "min" | "max" => {
                let (a, b) = (self.arg(1, ty)?, self.arg(2, ty)?);
                let test = if op == "min" { '<' } else { '>' };
                self.result(ty, &format!("{a} {test} {b} ? {a} : {b}"))
            }
            "sad" => {
                let (a, b, c) = (self.arg(1, ty)?, self.arg(2, ty)?, self.arg(3, plain)?);
                self.result(plain, &format!("{c} + ({a} < {b} ? (u{width}){b} - (u{width}){a} : (u{width}){a} - (u{width}){b})"))
            }
            "mul24" | "mad24" if width == 32 && part == Some("lo") => {
                let (a, b) = (self.arg(1, ty)?, self.arg(2, ty)?);
                let cut = if ty.signed() {
                    "(s64)(s32)((u32){} << 8 >> 8)"
                } else {
                    "(u64)({} & 0xffffff)"
                };
                let cut = |x: &str| match ty.signed() {
                    true => format!("(s64)((s32)((u32){x} << 8) >> 8)"),
                    false => cut.replace("{}", x),
                };
                let text = format!("(u32)({} * {})", cut(&a), cut(&b));
                if op == "mul24" {
                    return self.result(plain, &text);
                }
                let third = self.arg(3, plain)?;
                self.result(plain, &format!("{text} + {third}"))
            }
            _ => Err(self.unknown()),
        }
    }

    /// Sums that take and leave the carry bit.
    fn carried(&mut self) -> Result<(), LoadError> {
        let op = self.inst.op[0].as_str();
        let leaves = self.inst.op.iter().any(|part| part == "cc");
        self.mods.take("cc");
        let part = self.mods.take_one(&["lo", "hi"]);
        let ty = self.ty()?;
        let width = ty.bits();
        if !matches!(width, 32 | 64) || (op.starts_with("mad") && part.is_none()) {
            return Err(self.unknown());
        }
        let plain = Ty::B(width);
        let takes = op.ends_with('c');
        let carry = if takes { "carry" } else { "0" };
        let sum = if op.starts_with("mad") {
            let (a, b) = (self.arg(1, ty)?, self.arg(2, ty)?);
            let kind = if ty.signed() { "s128" } else { "u128" };
            let shift = if part == Some("hi") { width } else { 0 };
            let third = self.arg(3, plain)?;
            format!("(u128)(u{width})((({kind}){a} * ({kind}){b}) >> {shift}) + {third} + {carry}")
        } else {
            let (a, b) = (self.arg(1, plain)?, self.arg(2, plain)?);
            let sign = if op.starts_with("add") { '+' } else { '-' };
            format!("(u128){a} {sign} {b} {sign} {carry}")
        };
        let _ = write!(self.code, "const u128 sum = {sum}; ");
        self.result(plain, &format!("(u{width})sum"))?;
        if leaves {
            let _ = write!(self.code, "carry = (u64)(sum >> {width}) & 1; ");
        }
        Ok(())
    }

    /// f16, bf16 and pairs of them.
    fn half(&mut self) -> Result<(), LoadError> {
        let op = self.inst.op[0].as_str();
        let ty = self.ty()?;
        self.mods.take("rn");
        let nan = self.mods.take("NaN");
        let relu = self.mods.take("relu");
        let (single, pair) = match ty {
            Ty::F16x2 => (Ty::F16, true),
            Ty::BF16x2 => (Ty::BF16, true),
            other => (other, false),
        };
        let count = match op {
            "neg" | "abs" | "ex2" | "tanh" => 1,
            "add" | "sub" | "mul" | "min" | "max" => 2,
            "fma" => 3,
            _ => return Err(self.unknown()),
        };
        if (nan && !matches!(op, "min" | "max")) || (relu && op != "fma") {
            return Err(self.unknown());
        }
        let name = format!("{op}{}_{}", if nan { "nan" } else { "" }, spell(single));
        let carrier = Ty::B(ty.bits());
        let mut args = Vec::new();
        for at in 0..count {
            args.push(self.arg(at + 1, carrier)?);
        }
        let args = args.join(", ");
        let mut text = match pair {
            true => format!("PAIR{count}({name}, {args})"),
            false => format!("{name}({args})"),
        };
        if relu {
            let _ = write!(self.code, "const u{} plain = {text}; ", ty.bits());
            let name = format!("relu_{}", spell(single));
            text = if pair {
                format!("PAIR1({name}, plain)")
            } else {
                format!("{name}(plain)")
            };
        }
        self.result(carrier, &text)
    }
}
