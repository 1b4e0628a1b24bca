//! Branches, calls, ends, and the barriers of a block.

use std::fmt::Write as _;

use super::super::LoadError;
use super::super::ast::{Operand, Ty, Var};
use super::fun::Fun;

impl<'a> Fun<'a> {
    pub fn control(&mut self) -> Result<(), LoadError> {
        self.mods.take("uni");
        match self.inst.op[0].as_str() {
            "bra" => {
                let Operand::Name(name) = self.operand(0)? else {
                    return Err(self.bad("a label is missing"));
                };
                let label = self.label(name)?;
                self.count_jump(&[&label]);
                let _ = write!(self.code, "goto {label};");
                Ok(())
            }
            "brx" if self.mods.take("idx") => self.branch_table(),
            "call" => self.call(),
            "exit" if !self.function.entry => Err(self.unknown()),
            "ret" | "exit" => {
                self.code.push_str(self.leave());
                Ok(())
            }
            "trap" | "brkpt" => {
                let site = self.site();
                let _ = write!(self.code, "c->api->fail(c, {site}, TRAP, 0, 0);");
                Ok(())
            }
            _ => Err(self.unknown()),
        }
    }

    /// Counts a jump that may go backwards, so that a thread which waits in a loop gives way, and does not hang.
    fn count_jump(&mut self, labels: &[&str]) {
        if labels.iter().any(|label| self.passed.contains(*label)) {
            let site = self.site();
            let _ = write!(
                self.code,
                "if (RARE(!--c->fuel)) c->api->tired(c, {site}); "
            );
        }
    }

    fn branch_table(&mut self) -> Result<(), LoadError> {
        let index = self.arg(0, Ty::U(32))?;
        let Operand::Name(list) = self.operand(1)? else {
            return Err(self.bad("a list of labels is missing"));
        };
        let function = self.function;
        let mut scopes = self.scopes(self.inst.scope);
        let found = scopes.find_map(|scope| {
            function.scopes[scope]
                .targets
                .iter()
                .find(|(name, _)| name == list)
        });
        let (_, labels) = found.ok_or_else(|| self.bad(format!("there is no list '{list}'")))?;
        let labels = labels.iter().map(|name| self.label(name));
        let labels = labels.collect::<Result<Vec<String>, LoadError>>()?;
        self.count_jump(&labels.iter().map(String::as_str).collect::<Vec<_>>());
        let _ = write!(self.code, "switch ({index}) {{ ");
        for (at, label) in labels.iter().enumerate() {
            let _ = write!(self.code, "case {at}: goto {label}; ");
        }
        let site = self.site();
        let _ = write!(
            self.code,
            "default: c->api->fail(c, {site}, BAD_BRANCH, {index}, 0); }}"
        );
        Ok(())
    }

    /// `call (result), function, (arguments)`, where both lists may be missing.
    fn call(&mut self) -> Result<(), LoadError> {
        let mut operands = self.inst.operands.as_slice();
        let mut results: &[Operand] = &[];
        if let Some(Operand::List(list)) = operands.first() {
            results = list;
            operands = &operands[1..];
        }
        let Some(Operand::Name(name)) = operands.first() else {
            return Err(self.bad("the name of a function is missing"));
        };
        let arguments: &[Operand] = match operands.get(1) {
            Some(Operand::List(list)) => list,
            _ => &[],
        };
        let mut places = Vec::new();
        for operand in arguments.iter().chain(results) {
            let Operand::Name(name) = operand else {
                return Err(self.bad("an argument is not a parameter"));
            };
            let place = self.param(name);
            places.push(place.ok_or_else(|| self.bad(format!("there is no parameter '{name}'")))?);
        }
        let Some(number) = self.names.functions.get(name.as_str()).copied() else {
            return self.call_through(&operands[0], arguments, results, &places);
        };
        let callee = &self.names.unit.functions[number];
        if name == "vprintf" && places.len() == 3 {
            let (site, read) = (self.site(), |at: usize| format!("L64({})", places[at].0));
            let _ = write!(
                self.code,
                "S32({}, c->api->print(c, {site}, {}, {}));",
                places[2].0,
                read(0),
                read(1)
            );
            return Ok(());
        }
        if name == "__assertfail" {
            let site = self.site();
            let _ = write!(self.code, "c->api->fail(c, {site}, TRAP, 1, 0);");
            return Ok(());
        }
        if callee.external {
            return Err(self.bad(format!("the function '{name}' has no body in this module")));
        }
        if callee.params.len() != arguments.len() || callee.results.len() != results.len() {
            return Err(self.bad(format!(
                "the function '{name}' takes another number of arguments"
            )));
        }
        self.call_one(number, &places);
        Ok(())
    }

    /// A call through a pointer: to whichever function of the module has the address and the right parameters.
    fn call_through(
        &mut self,
        target: &Operand,
        arguments: &[Operand],
        results: &[Operand],
        places: &[(String, &Var)],
    ) -> Result<(), LoadError> {
        let address = self.bits(target, Ty::B(64))?;
        let names = self.names;
        let _ = write!(self.code, "switch ({address} - CODE_WINDOW) {{ ");
        for (number, function) in names.unit.functions.iter().enumerate() {
            let sizes = function
                .params
                .iter()
                .chain(&function.results)
                .map(|var| var.size);
            let fits = !function.entry
                && !function.external
                && function.params.len() == arguments.len()
                && function.results.len() == results.len()
                && sizes.eq(places.iter().map(|(_, var)| var.size));
            if fits {
                let _ = write!(self.code, "case {number}: ");
                self.call_one(number, places);
                self.code.push_str(" break; ");
            }
        }
        let site = self.site();
        let _ = write!(
            self.code,
            "default: c->api->fail(c, {site}, BAD_CALL, {address}, 0); }}"
        );
        Ok(())
    }

    fn call_one(&mut self, number: usize, places: &[(String, &Var)]) {
        self.need.calls.insert(number);
        let args: Vec<&str> = places.iter().map(|(place, _)| place.as_str()).collect();
        let _ = write!(
            self.code,
            "K{number}(c{}{});",
            if args.is_empty() { "" } else { ", " },
            args.join(", ")
        );
    }

    pub fn barrier(&mut self) -> Result<(), LoadError> {
        self.mods.ignore(&["cta", "aligned"]);
        self.need.waits = true;
        if self.mods.take("warp") {
            if !self.mods.take("sync") {
                return Err(self.unknown());
            }
            let (mask, site) = (self.arg(0, Ty::B(32))?, self.site());
            let _ = write!(self.code, "c->api->warp(c, {site}, 0, {mask}, 0);");
            return Ok(());
        }
        let verb = self
            .mods
            .take_one(&["sync", "arrive", "red"])
            .ok_or_else(|| self.unknown())?;
        if verb == "red" {
            let op = self
                .mods
                .take_one(&["popc", "and", "or"])
                .ok_or_else(|| self.unknown())?;
            let ty = self.ty()?;
            let last = self.inst.operands.len() - 1;
            let id = self.arg(1, Ty::U(32))?;
            let count = if last == 3 {
                self.arg(2, Ty::U(32))?
            } else {
                "0".to_owned()
            };
            let (value, site) = (self.arg(last, Ty::Pred)?, self.site());
            let kind = match op {
                "popc" => 2,
                "and" => 3,
                _ => 4,
            };
            return self.result(
                ty,
                &format!("c->api->barrier_reduce(c, {site}, {id}, {count}, {kind}, {value})"),
            );
        }
        let id = self.arg(0, Ty::U(32))?;
        let count = match self.inst.operands.len() {
            2 => self.arg(1, Ty::U(32))?,
            _ => "0".to_owned(),
        };
        let (site, kind) = (self.site(), u32::from(verb == "arrive"));
        let _ = write!(
            self.code,
            "c->api->barrier(c, {site}, {id}, {count}, {kind});"
        );
        Ok(())
    }
}
