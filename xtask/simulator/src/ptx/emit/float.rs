//! f32 and f64: IEEE results in the rounding mode that the instruction names, and the approximations.

use super::super::LoadError;
use super::super::ast::Ty;
use super::fun::Fun;

/// The rounding modes as the device code numbers them.
pub fn rounding(mode: Option<&str>) -> u32 {
    match mode {
        Some("rm" | "rmi") => 1,
        Some("rp" | "rpi") => 2,
        Some("rz" | "rzi") => 3,
        _ => 0,
    }
}

impl Fun<'_> {
    pub fn float(&mut self) -> Result<(), LoadError> {
        let op = self.inst.op[0].as_str();
        if matches!(
            self.mods.types.first(),
            Some(Ty::F16 | Ty::BF16 | Ty::F16x2 | Ty::BF16x2)
        ) {
            self.mods.take("approx");
            self.mods.take("ftz");
            return self.half_function();
        }
        let mode = self.mods.take_one(&["rn", "rz", "rm", "rp"]);
        let (flush, saturate) = (self.mods.take("ftz"), self.mods.take("sat"));
        let approximate = self.mods.take("approx") || self.mods.take("full");
        let nan = self.mods.take("NaN");
        let ty = self.ty()?;
        let (Ty::F(32) | Ty::F(64)) = ty else {
            return Err(self.unknown());
        };
        let (width, turn) = (ty.bits(), rounding(mode));
        let suffix = if width == 32 { "f" } else { "" };
        let count = match op {
            "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => 2,
            "fma" | "mad" => 3,
            _ => 1,
        };
        // On f64 `ftz` is a part of the name of an approximation, whose subnormal results vanish.
        let flush32 = flush && width == 32;
        let mut args = Vec::new();
        for at in 0..count {
            let text = self.arg(at + 1, ty)?;
            args.push(if flush32 {
                format!("ftz({text})")
            } else {
                text
            });
        }
        let (a, b) = (args[0].clone(), args.get(1).cloned().unwrap_or_default());
        let exact = |plain: String, name: &str| match turn {
            0 => plain,
            _ => format!("{name}{width}r({turn}, {})", args.join(", ")),
        };
        let modes = mode.is_some();
        let mut text = match op {
            "add" => exact(format!("{a} + {b}"), "add"),
            "sub" if turn == 0 => format!("{a} - {b}"),
            "sub" => format!("add{width}r({turn}, {a}, -{b})"),
            "mul" => exact(format!("{a} * {b}"), "mul"),
            "fma" | "mad" if modes => {
                exact(format!("__builtin_fma{suffix}({})", args.join(", ")), "fma")
            }
            "div" if modes || approximate => exact(format!("{a} / {b}"), "div"),
            "rcp" if turn != 0 => format!("div{width}r({turn}, 1, {a})"),
            "rcp" if modes || approximate => format!("1 / {a}"),
            "sqrt" if turn != 0 => format!("sqrt{width}r({turn}, 0, {a})"),
            "sqrt" if modes || approximate => format!("__builtin_sqrt{suffix}({a})"),
            "rsqrt" if approximate && width == 32 => format!("rsqrt_approx({a})"),
            "rsqrt" if approximate => format!("rsqrt_approx64({a})"),
            "ex2" | "lg2" | "sin" | "cos" | "tanh"
                if width == 32 && (approximate || op == "tanh") =>
            {
                format!("{op}_approx({a})")
            }
            "abs" => format!("__builtin_fabs{suffix}({a})"),
            "neg" => format!("-{a}"),
            "min" | "max" => format!("{op}{}{width}({a}, {b})", if nan { "nan" } else { "" }),
            "copysign" => format!("copysign{width}({a}, {b})"),
            _ => return Err(self.unknown()),
        };
        if nan && !matches!(op, "min" | "max") {
            return Err(self.unknown());
        }
        if saturate {
            text = format!("sat{width}({text})");
        }
        if flush32 {
            text = format!("ftz({text})");
        }
        self.result(ty, &text)
    }

    fn half_function(&mut self) -> Result<(), LoadError> {
        match self.inst.op[0].as_str() {
            "ex2" | "tanh" => self.arithmetic(),
            _ => Err(self.unknown()),
        }
    }
}
