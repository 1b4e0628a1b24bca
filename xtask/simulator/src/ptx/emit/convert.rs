//! `cvt` between integers, floats and the half types.

use super::super::LoadError;
use super::super::ast::Ty;
use super::float::rounding;
use super::fun::Fun;
use super::memory::spell;

impl Fun<'_> {
    pub fn cvt(&mut self) -> Result<(), LoadError> {
        let integral = self.mods.take_one(&["rni", "rzi", "rmi", "rpi"]);
        let mode = self.mods.take_one(&["rna", "rn", "rz", "rm", "rp"]);
        let (flush, saturate, relu) = (
            self.mods.take("ftz"),
            self.mods.take("sat"),
            self.mods.take("relu"),
        );
        let (to, from) = (self.ty()?, self.ty()?);
        if matches!(to, Ty::F16x2 | Ty::BF16x2) {
            return self.cvt_pair(to, from, mode, relu);
        }
        if relu {
            return Err(self.unknown());
        }
        let source = match from {
            Ty::F16 => format!("half({})", self.arg(1, Ty::B(16))?),
            Ty::BF16 => format!("brain({})", self.arg(1, Ty::B(16))?),
            Ty::F(_) | Ty::U(_) | Ty::S(_) => self.arg(1, from)?,
            _ => return Err(self.unknown()),
        };
        let floating = matches!(from, Ty::F(_) | Ty::F16 | Ty::BF16);
        let source = if flush && from == Ty::F(32) {
            format!("ftz({source})")
        } else {
            source
        };
        let wide = if from == Ty::F(64) { "64" } else { "32" };
        let turn = rounding(integral.or(mode));
        let text = match to {
            Ty::U(bits) | Ty::S(bits) if floating => {
                if integral.is_none() {
                    return Err(self.unknown());
                }
                let sign = if to.signed() { 's' } else { 'u' };
                format!("to_{sign}{bits}(integral{wide}({turn}, {source}))")
            }
            Ty::U(bits) | Ty::S(bits) => {
                let sign = if to.signed() { 's' } else { 'u' };
                match saturate {
                    true => format!("sat_{sign}{bits}({source})"),
                    false => format!("({sign}{bits}){source}"),
                }
            }
            Ty::F(_) | Ty::F16 | Ty::BF16 | Ty::TF32 => {
                let Some(text) = to_float(to, from, &source, integral.is_some(), mode, turn) else {
                    return Err(self.unknown());
                };
                let text = match (saturate, to) {
                    (false, _) => text,
                    (true, Ty::F(bits)) => format!("sat{bits}({text})"),
                    (true, _) => return Err(self.unknown()),
                };
                if flush && to == Ty::F(32) {
                    format!("ftz({text})")
                } else {
                    text
                }
            }
            _ => return Err(self.unknown()),
        };
        // A result narrower than its register is extended by its sign.
        let carrier = match to {
            Ty::F16 | Ty::BF16 | Ty::TF32 => Ty::B(to.bits()),
            other => other,
        };
        self.result(carrier, &text)
    }

    /// `cvt.rn.bf16x2.f32 d, a, b`: a goes to the upper half.
    fn cvt_pair(
        &mut self,
        to: Ty,
        from: Ty,
        mode: Option<&str>,
        relu: bool,
    ) -> Result<(), LoadError> {
        let name = match (to, mode) {
            (Ty::F16x2, Some("rn")) => "half_rn",
            (Ty::F16x2, Some("rz")) => "half_rz",
            (Ty::BF16x2, Some("rn")) => "brain_rn",
            (Ty::BF16x2, Some("rz")) => "brain_rz",
            _ => return Err(self.unknown()),
        };
        if from != Ty::F(32) {
            return Err(self.unknown());
        }
        let single = spell(if to == Ty::F16x2 { Ty::F16 } else { Ty::BF16 });
        let wrap = |text: String| match relu {
            true => format!("relu_{single}({name}({text}))"),
            false => format!("{name}({text})"),
        };
        let (high, low) = (wrap(self.arg(1, from)?), wrap(self.arg(2, from)?));
        self.result(Ty::B(32), &format!("(u32){high} << 16 | (u32){low}"))
    }
}

fn to_float(
    to: Ty,
    from: Ty,
    source: &str,
    integral: bool,
    mode: Option<&str>,
    turn: u32,
) -> Option<String> {
    let integer = matches!(from, Ty::U(_) | Ty::S(_));
    Some(match (to, from) {
        (Ty::F(bits), _) if integer => match turn {
            0 => format!("(f{bits}){source}"),
            _ => format!("int_to_f{bits}r({turn}, {source})"),
        },
        (Ty::F(bits), Ty::F(same)) if bits == same => match integral {
            true => format!("integral{bits}({turn}, {source})"),
            false => source.to_owned(),
        },
        (Ty::F(32), Ty::F(64)) if turn != 0 => format!("f64_to_f32r({turn}, {source})"),
        (Ty::F(32), Ty::F(64)) => format!("(f32){source}"),
        (Ty::F(bits), Ty::F(_) | Ty::F16 | Ty::BF16) if !integral => format!("(f{bits}){source}"),
        (Ty::TF32, Ty::F(32)) if mode == Some("rna") => format!("tf32_rna({source})"),
        (Ty::TF32, Ty::F(32)) if mode == Some("rn") => format!("tf32_rn({source})"),
        (Ty::F16, Ty::F16) if integral => format!("half_rn(integral32({turn}, {source}))"),
        (Ty::F16 | Ty::BF16, _) if !integral => {
            let kind = if to == Ty::F16 { "half" } else { "brain" };
            let mode = mode.unwrap_or("rn");
            if to == Ty::BF16 && !matches!(mode, "rn" | "rz") {
                return None;
            }
            // Wider sources are made odd in f32 first, so that they are rounded once.
            let narrow = match from {
                Ty::F(32) | Ty::F16 | Ty::BF16 => source.to_owned(),
                Ty::F(64) => format!("narrow_odd({source})"),
                Ty::U(8 | 16 | 32) | Ty::S(8 | 16 | 32) => format!("narrow_odd((f64){source})"),
                _ => return None,
            };
            format!("{kind}_{mode}({narrow})")
        }
        _ => return None,
    })
}
