//! Declarations of variables: alignment, type, array sizes and initialisers.

use super::LoadError;
use super::ast::{Ty, Var};
use super::parse::{Parser, integer};

impl Parser {
    /// Variables of one declaration, to its semicolon.
    pub(super) fn variables(&mut self, space: &str, external: bool) -> Result<Vec<Var>, LoadError> {
        let mut vars = vec![self.variable(space, external)?];
        if self.eat(',') {
            return Err(self.bad("a declaration of several variables is not known"));
        }
        self.expect(';')?;
        vars.retain(|var| !var.name.is_empty());
        Ok(vars)
    }

    /// One variable: `.align 4 .b8 name[16] = {1, 2}`.
    pub(super) fn variable(&mut self, space: &str, external: bool) -> Result<Var, LoadError> {
        let (mut align, mut lanes) = (None, 1);
        let ty = loop {
            let word = self.word()?;
            match word.trim_start_matches('.') {
                "align" => align = Some(self.number()? as u32),
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                // What a pointer parameter points to says nothing about the parameter.
                "ptr" | "global" | "const" | "shared" | "local" | "attribute" | "managed" => {}
                other => match Ty::parse(other) {
                    Some(ty) => break ty,
                    None => return Err(self.bad(format!("the type '{word}' is not known"))),
                },
            }
        };
        let mut name = self.word()?;
        // `.param .u64 .ptr .global .align 4 name`: the attributes of what is pointed to stand behind the type.
        while name.starts_with('.') {
            if name == ".align" {
                self.number()?;
            }
            name = self.word()?;
        }
        let element = (ty.bytes() * lanes) as usize;
        let mut count = 1usize;
        while self.eat('[') {
            if self.eat(']') {
                count = 0;
            } else {
                count = count.saturating_mul(self.number()? as usize);
                self.expect(']')?;
            }
        }
        // What lies within a block or a thread has addresses of 32 bits; the rest is held to what a card has.
        let most = if space == "global" { 1 << 40 } else { 1 << 30 };
        let size = element.saturating_mul(count);
        if size > most || align.is_some_and(|align| !align.is_power_of_two() || align > 4096) {
            return Err(self.bad(format!(
                "the size or the alignment of '{name}' is not possible"
            )));
        }
        let mut var = Var {
            name,
            space: space.to_owned(),
            align: align.unwrap_or(element.max(1) as u32),
            size,
            external,
            bytes: Vec::new(),
            pointers: Vec::new(),
        };
        if self.eat('=') {
            self.initialiser(&mut var, ty)?;
            if var.bytes.len() > var.size && count != 0 {
                return Err(self.bad(format!("the initialiser of '{}' is too long", var.name)));
            }
        }
        Ok(var)
    }

    fn initialiser(&mut self, var: &mut Var, ty: Ty) -> Result<(), LoadError> {
        if self.eat('{') {
            while !self.eat('}') {
                self.initialiser(var, ty)?;
                self.eat(',');
            }
            return Ok(());
        }
        let negative = self.eat('-');
        let word = self.word()?;
        if !word.starts_with(|first: char| first.is_ascii_digit()) {
            let name = if word == "generic" {
                self.expect('(')?;
                let name = self.word()?;
                self.expect(')')?;
                name
            } else {
                word
            };
            let offset = if self.eat('+') { self.number()? } else { 0 };
            if ty.bytes() != 8 {
                return Err(self.bad("an address in an initialiser must be of 64 bits"));
            }
            var.pointers.push((var.bytes.len(), name, offset));
            var.bytes.extend([0; 8]);
            return Ok(());
        }
        let bits =
            literal(&word, ty).ok_or_else(|| self.bad(format!("'{word}' is not a value")))?;
        let bits = if negative { bits.wrapping_neg() } else { bits };
        var.bytes.extend(&bits.to_le_bytes()[..ty.bytes() as usize]);
        Ok(())
    }
}

/// The bits of a literal of type `ty`.
pub fn literal(word: &str, ty: Ty) -> Option<u64> {
    let (negative, word) = match word.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    let sign = |bits: u64, top: u32| if negative { bits ^ 1 << top } else { bits };
    if let Some(hex) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
        let bits = sign(u64::from_str_radix(hex, 16).ok()?, 31);
        return Some(match ty {
            Ty::F(64) => f64::from(f32::from_bits(bits as u32)).to_bits(),
            _ => bits,
        });
    }
    if let Some(hex) = word.strip_prefix("0d").or_else(|| word.strip_prefix("0D")) {
        let bits = sign(u64::from_str_radix(hex, 16).ok()?, 63);
        return Some(match ty {
            Ty::F(32) => u64::from((f64::from_bits(bits) as f32).to_bits()),
            _ => bits,
        });
    }
    if let (Ty::F(bits), Some(_)) = (ty, word.find(['.', 'e'])) {
        let value: f64 = word.parse().ok()?;
        let value = if negative { -value } else { value };
        return Some(match bits {
            32 => u64::from((value as f32).to_bits()),
            _ => value.to_bits(),
        });
    }
    let value = integer(word)?;
    Some(if negative {
        value.wrapping_neg()
    } else {
        value
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_have_the_bits_that_they_say() {
        assert_eq!(literal("0f3F800000", Ty::F(32)), Some(0x3f80_0000));
        assert_eq!(
            literal("0d3FF0000000000000", Ty::F(64)),
            Some(1f64.to_bits())
        );
        assert_eq!(literal("-1", Ty::S(32)), Some(u64::MAX));
        assert_eq!(literal("0x10", Ty::U(32)), Some(16));
        assert_eq!(literal("what", Ty::U(32)), None);
    }
}
