//! Operands to C expressions. Registers hold bits (`u16`, `u32`, `u64`); an expression of type f32 is made of them, and
//! goes back into them, without a conversion.

use std::fmt::Write as _;

use super::super::LoadError;
use super::super::ast::{Operand, Ty};
use super::super::declare::literal;
use super::fun::{Fun, clean};

/// Special registers of 32 bits, and what they are in C.
const SPECIAL: &[(&str, &str)] = &[
    ("%tid.x", "c->tid[0]"),
    ("%tid.y", "c->tid[1]"),
    ("%tid.z", "c->tid[2]"),
    ("%ntid.x", "c->ntid[0]"),
    ("%ntid.y", "c->ntid[1]"),
    ("%ntid.z", "c->ntid[2]"),
    ("%ctaid.x", "c->ctaid[0]"),
    ("%ctaid.y", "c->ctaid[1]"),
    ("%ctaid.z", "c->ctaid[2]"),
    ("%nctaid.x", "c->nctaid[0]"),
    ("%nctaid.y", "c->nctaid[1]"),
    ("%nctaid.z", "c->nctaid[2]"),
    ("%laneid", "c->lane"),
    ("%warpid", "c->warp"),
    ("%nwarpid", "64u"),
    ("%smid", "0u"),
    ("%nsmid", "108u"),
    ("%clock", "(u32)now_ns()"),
    ("%clock_hi", "(u32)(now_ns() >> 32)"),
    ("%dynamic_smem_size", "c->dynamic_shared"),
    ("%total_smem_size", "c->total_shared"),
    ("%lanemask_eq", "(1u << c->lane)"),
    ("%lanemask_lt", "((1u << c->lane) - 1)"),
    ("%lanemask_le", "((2u << c->lane) - 1)"),
    ("%lanemask_gt", "(~((2u << c->lane) - 1))"),
    ("%lanemask_ge", "(~((1u << c->lane) - 1))"),
    ("WARP_SZ", "32u"),
];

/// Special registers of 64 bits.
const SPECIAL_WIDE: &[(&str, &str)] = &[
    ("%clock64", "now_ns()"),
    ("%globaltimer", "now_ns()"),
    ("%gridid", "c->grid"),
];

impl<'a> Fun<'a> {
    /// The C variable of a register, and its type.
    pub fn register(&mut self, name: &str) -> Result<(String, Ty), LoadError> {
        let function = self.function;
        for scope in self.scopes(self.inst.scope) {
            for regs in &function.scopes[scope].regs {
                let found = match regs.count {
                    None => regs.name == name,
                    Some(count) => {
                        let digits = name.strip_prefix(regs.name.as_str());
                        digits
                            .and_then(|digits| digits.parse::<u32>().ok())
                            .is_some_and(|n| n < count)
                    }
                };
                if found {
                    let variable = format!("r{scope}{}", clean(name));
                    self.registers.insert(variable.clone(), regs.ty);
                    return Ok((variable, regs.ty));
                }
            }
        }
        Err(self.bad(format!("there is no register '{name}'")))
    }

    /// The address of a variable, in its own space.
    fn address_of(&mut self, name: &str) -> Option<String> {
        for scope in self.scopes(self.inst.scope) {
            let local = self
                .locals
                .iter()
                .find(|(at, local, _)| *at == scope && *local == name);
            if let Some((_, _, offset)) = local {
                return Some(format!("((u64)frame + {offset})"));
            }
        }
        let own = (Some(self.number), name);
        if let Some(at) = self
            .names
            .shared
            .get(&own)
            .or_else(|| self.names.shared.get(&(None, name)))
        {
            self.need.shared.insert(*at);
            return Some(format!("((u64)c->places[{at}])"));
        }
        if let Some(at) = self.names.vars.get(name) {
            return Some(format!("c->vars[{at}]"));
        }
        if let Some(number) = self.names.functions.get(name) {
            return Some(format!("(CODE_WINDOW + {number})"));
        }
        if self.function.entry && self.function.params.iter().any(|var| var.name == name) {
            let (place, _) = self.param(name)?;
            return Some(format!("((u64)({place} - c->params))"));
        }
        None
    }

    /// The bits of an operand, as an unsigned integer of the width of `ty`.
    pub fn bits(&mut self, operand: &Operand, ty: Ty) -> Result<String, LoadError> {
        let width = ty.bits();
        match operand {
            Operand::Number(word) => {
                let value = literal(word, ty)
                    .ok_or_else(|| self.bad(format!("'{word}' is not a value")))?;
                let value = if width < 64 {
                    value & ((1 << width) - 1)
                } else {
                    value
                };
                Ok(match width {
                    64 => format!("{value:#x}ul"),
                    32 => format!("{value:#x}u"),
                    _ => format!("(u{width}){value:#x}"),
                })
            }
            Operand::Name(name) => {
                let tables = SPECIAL.iter().chain(SPECIAL_WIDE);
                if let Some((_, text)) = tables.clone().find(|(special, _)| special == name) {
                    return Ok(format!("(u{width}){text}"));
                }
                match self.address_of(name) {
                    Some(address) if width >= 32 => return Ok(format!("(u{width}){address}")),
                    _ => {}
                }
                let (register, held) = self.register(name)?;
                Ok(match held.bits() == width {
                    true => register,
                    false => format!("(u{width}){register}"),
                })
            }
            Operand::Sum(name, offset) => {
                let base = self.address_of(name);
                let base =
                    base.ok_or_else(|| self.bad(format!("there is no variable '{name}'")))?;
                Ok(format!("(u{width})({base} + {offset}l)"))
            }
            Operand::Not(inner) => Ok(format!("(u{width})!{}", self.bits(inner, ty)?)),
            Operand::Vector(parts) if !parts.is_empty() => {
                let part = Ty::B(width / parts.len() as u32);
                let mut text = String::from("(");
                for (at, operand) in parts.iter().enumerate() {
                    let bits = self.bits(operand, part)?;
                    let shift = part.bits() * at as u32;
                    let joint = if at == 0 { "" } else { " | " };
                    let _ = write!(text, "{joint}(u{width})(u{width})({bits}) << {shift}");
                }
                Ok(text + ")")
            }
            _ => Err(self.bad("an operand is not of a known form")),
        }
    }

    /// An operand as a C expression to compute with: signed, unsigned, float or double by `ty`.
    pub fn value(&mut self, operand: &Operand, ty: Ty) -> Result<String, LoadError> {
        let bits = self.bits(operand, ty)?;
        Ok(match ty {
            Ty::S(width) => format!("((s{width}){bits})"),
            Ty::F(32) => format!("F({bits})"),
            Ty::F(_) => format!("D({bits})"),
            _ => format!("({bits})"),
        })
    }

    /// Operand number `at` as a C expression.
    pub fn arg(&mut self, at: usize, ty: Ty) -> Result<String, LoadError> {
        let operand = self.operand(at)?;
        self.value(operand, ty)
    }

    /// Writes the statement that puts `expression`, of type `ty`, into an operand.
    pub fn set(&mut self, operand: &Operand, ty: Ty, expression: &str) -> Result<(), LoadError> {
        let width = ty.bits();
        let bits = match ty {
            Ty::F(32) => format!("B({expression})"),
            Ty::F(_) => format!("C({expression})"),
            Ty::S(_) => format!("(s{width})({expression})"),
            Ty::Pred => format!("!!({expression})"),
            _ => format!("(u{width})({expression})"),
        };
        match operand {
            Operand::Name(name) if name == "_" => {
                let _ = write!(self.code, "(void)({bits}); ");
            }
            Operand::Name(name) => {
                let (register, held) = self.register(name)?;
                let _ = write!(self.code, "{register} = (u{})({bits}); ", held.bits());
            }
            Operand::Vector(parts) if !parts.is_empty() => {
                let part = Ty::B(width / parts.len() as u32);
                let _ = write!(self.code, "const u{width} whole = (u{width})({bits}); ");
                for (at, operand) in parts.iter().enumerate() {
                    let shift = part.bits() * at as u32;
                    self.set(operand, part, &format!("whole >> {shift}"))?;
                }
            }
            _ => return Err(self.bad("a result is not of a known form")),
        }
        Ok(())
    }

    /// Puts `expression` into the first operand.
    pub fn result(&mut self, ty: Ty, expression: &str) -> Result<(), LoadError> {
        let operand = self.operand(0)?;
        self.set(operand, ty, expression)
    }

    /// The address in brackets at operand `at`.
    pub fn address(&mut self, at: usize) -> Result<String, LoadError> {
        let Operand::Address(base, offset) = self.operand(at)? else {
            return Err(self.bad("an address in brackets is missing"));
        };
        let base = match &**base {
            Operand::Number(word) => self.bits(&Operand::Number(word.clone()), Ty::B(64))?,
            base => self.bits(base, Ty::B(64))?,
        };
        Ok(match offset {
            0 => format!("({base})"),
            _ => format!("({base} + {offset}l)"),
        })
    }
}
