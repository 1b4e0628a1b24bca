//! Logic, shifts and bit fields.

use super::super::LoadError;
use super::super::ast::Ty;
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
                        let found = format!("bfind({a})");
                        let text = match amount {
                            true => format!("({a} ? {} - {found} : ~0u)", width - 1),
                            false => found,
                        };
                        (Ty::U(32), text)
                    }
                };
                if amount && op != "bfind" {
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
            "bmsk" => {
                let clamp = self.mods.take("clamp");
                if !clamp && !self.mods.take("wrap") {
                    return Err(self.unknown());
                }
                let ty = self.ty()?;
                let (a, b) = (self.arg(1, ty)?, self.arg(2, ty)?);
                let cut = |x: &str| match clamp {
                    true => format!("least({x}, 32)"),
                    false => format!("({x} & 31)"),
                };
                let (a, b) = (cut(&a), cut(&b));
                self.result(ty, &format!("((1ul << {b}) - 1) << {a}"))
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
}
