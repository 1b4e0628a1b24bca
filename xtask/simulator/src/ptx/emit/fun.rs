//! One function on its way to C: its scopes, the registers that it uses, and the current instruction.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use super::super::LoadError;
use super::super::ast::{Function, Inst, Operand, Stmt, Ty, Var};
use super::{Names, Need, Site};

/// The parts of an opcode that are not taken yet. What is left when an instruction is translated was not understood.
#[derive(Debug, Default)]
pub struct Mods {
    pub types: Vec<Ty>,
    pub flags: Vec<String>,
}

impl Mods {
    fn new(op: &[String]) -> Mods {
        let mut mods = Mods::default();
        for part in &op[1..] {
            match Ty::parse(part) {
                Some(ty) => mods.types.push(ty),
                None => mods.flags.push(part.clone()),
            }
        }
        mods
    }

    /// Takes a flag, if it is there.
    pub fn take(&mut self, flag: &str) -> bool {
        let found = self.flags.iter().position(|known| known == flag);
        found.map(|at| self.flags.remove(at)).is_some()
    }

    /// Takes whichever of `flags` is there.
    pub fn take_one(&mut self, flags: &[&'static str]) -> Option<&'static str> {
        flags.iter().find(|flag| self.take(flag)).copied()
    }

    /// Takes flags that change nothing here.
    pub fn ignore(&mut self, flags: &[&str]) {
        self.flags.retain(|flag| !flags.contains(&flag.as_str()));
    }
}

pub struct Fun<'a> {
    pub names: &'a Names<'a>,
    pub number: usize,
    pub function: &'a Function,
    pub inst: &'a Inst,
    pub mods: Mods,
    pub need: Need,
    sites: &'a mut Vec<Site>,
    /// C names of the registers used, and their types.
    pub registers: BTreeMap<String, Ty>,
    /// Parameters of calls, as C arrays.
    pub arrays: BTreeMap<String, usize>,
    /// Local variables: scope, name, offset in the frame.
    pub locals: Vec<(usize, &'a str, usize)>,
    labels: HashSet<(usize, &'a str)>,
    /// The C labels that stand above the current instruction.
    pub passed: HashSet<String>,
    pub code: String,
}

/// The declaration of the C function of `function`.
pub fn signature(number: usize, function: &Function) -> String {
    if function.entry {
        return format!("extern \"C\" void K{number}(Ctx* c)");
    }
    let mut text = format!("static void K{number}(Ctx* c");
    for at in 0..function.params.len() {
        let _ = write!(text, ", const u8* a{at}");
    }
    for at in 0..function.results.len() {
        let _ = write!(text, ", u8* z{at}");
    }
    text + ")"
}

/// A name of PTX as a part of a C name.
pub fn clean(name: &str) -> String {
    let keep = |mark: char| match mark {
        '$' => 'D',
        '%' | '.' => '_',
        other => other,
    };
    name.chars().map(keep).collect()
}

impl<'a> Fun<'a> {
    pub(super) fn translate(
        names: &'a Names<'a>,
        number: usize,
        function: &'a Function,
        start: &'a Inst,
        sites: &'a mut Vec<Site>,
    ) -> Result<(String, Need), LoadError> {
        let first = sites.len();
        let mut fun = Fun {
            names,
            number,
            function,
            inst: start,
            mods: Mods::default(),
            need: Need::default(),
            sites,
            registers: BTreeMap::new(),
            arrays: BTreeMap::new(),
            locals: Vec::new(),
            labels: HashSet::new(),
            passed: HashSet::new(),
            code: String::new(),
        };
        for (scope, content) in function.scopes.iter().enumerate() {
            for var in content.vars.iter().filter(|var| var.space == "local") {
                let at = fun.need.frame.next_multiple_of(var.align.max(1) as usize);
                fun.locals.push((scope, &var.name, at));
                fun.need.frame = at + var.size;
            }
        }
        fun.need.frame = fun.need.frame.next_multiple_of(16);
        for stmt in &function.body {
            if let Stmt::Label(name, scope) = stmt {
                fun.labels.insert((*scope, name));
            }
        }
        for stmt in &function.body {
            match stmt {
                Stmt::Label(name, scope) => {
                    let label = fun.label_name(name, *scope);
                    let _ = writeln!(fun.code, "{label}:;");
                    fun.passed.insert(label);
                }
                Stmt::Inst(inst) => fun.instruction(inst)?,
            }
        }
        let mut text = format!("{} {{\n", signature(number, function));
        for (name, ty) in &fun.registers {
            let _ = writeln!(text, "u{} {name} = 0;", ty.bits());
        }
        for (name, size) in &fun.arrays {
            let _ = writeln!(text, "alignas(16) u8 {name}[{size}];");
        }
        text.push_str("u64 carry = 0; (void)carry;\n");
        fun.inst = start;
        let site = fun.site();
        let _ = writeln!(text, "FRAME({site})");
        if fun.need.frame > 0 {
            let frame = fun.need.frame;
            let _ = writeln!(text, "const u32 frame = enter(c, {site}, {frame});");
        }
        text.push_str(&fun.code);
        text.push_str(fun.leave());
        text.push_str("}\n");
        fun.need.sites = first..fun.sites.len();
        Ok((text, fun.need))
    }

    /// What stands at each end of the function.
    pub fn leave(&self) -> &'static str {
        match self.need.frame {
            0 => "return;\n",
            _ => "c->local_top = frame; return;\n",
        }
    }

    fn instruction(&mut self, inst: &'a Inst) -> Result<(), LoadError> {
        self.inst = inst;
        self.mods = Mods::new(&inst.op);
        if let Some((name, negated)) = &inst.guard {
            let (guard, _) = self.register(name)?;
            let not = if *negated { "!" } else { "" };
            let _ = write!(self.code, "if ({not}{guard}) ");
        }
        self.code.push_str("{ ");
        self.dispatch()?;
        self.code.push_str(" }\n");
        if self.mods.flags.is_empty() && self.mods.types.is_empty() {
            return Ok(());
        }
        Err(self.unknown())
    }

    fn dispatch(&mut self) -> Result<(), LoadError> {
        match self.inst.op[0].as_str() {
            "ld" | "ldu" => self.load(),
            "st" => self.store(),
            "atom" | "red" => self.atomic(),
            "cp" => self.copy_async(),
            "prefetch" | "prefetchu" => {
                self.mods.flags.clear();
                Ok(())
            }
            "cvta" => self.cvta(),
            "isspacep" => self.isspacep(),
            "mov" => self.mov(),
            "cvt" => self.cvt(),
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" => self.control(),
            "bar" | "barrier" => self.barrier(),
            "membar" | "fence" => {
                self.fence();
                Ok(())
            }
            "nanosleep" | "pmevent" => {
                self.mods = Mods::default();
                Ok(())
            }
            "shfl" | "vote" | "match" | "redux" | "activemask" | "mma" | "ldmatrix" => self.warp(),
            "setp" | "set" | "selp" | "slct" | "testp" => self.compare(),
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "abs" | "neg" | "min"
            | "max" | "addc" | "subc" | "madc" | "sad" | "mul24" | "mad24" | "dp4a" => {
                self.arithmetic()
            }
            "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign" => {
                self.float()
            }
            _ => self.bits_op(),
        }
    }

    /// The error for an instruction that is not known, or not in this form.
    pub fn unknown(&self) -> LoadError {
        LoadError::Instruction {
            instruction: self.inst.op.join("."),
            function: self.function.name.clone(),
            line: self.inst.place.line,
            ptx: self.inst.place.ptx,
        }
    }

    /// The error for an operand that makes no sense.
    pub fn bad(&self, what: impl Into<String>) -> LoadError {
        LoadError::Operand {
            instruction: self.inst.op.join("."),
            function: self.function.name.clone(),
            what: what.into(),
            line: self.inst.place.line,
            ptx: self.inst.place.ptx,
        }
    }

    /// A new site for the current instruction.
    pub fn site(&mut self) -> usize {
        self.sites.push(Site {
            place: self.inst.place,
            function: self.number,
            text: self.inst.op.join("."),
        });
        self.sites.len() - 1
    }

    /// The type of the instruction: the next that the opcode names.
    pub fn ty(&mut self) -> Result<Ty, LoadError> {
        if self.mods.types.is_empty() {
            return Err(self.unknown());
        }
        Ok(self.mods.types.remove(0))
    }

    /// Operand `at`.
    pub fn operand(&self, at: usize) -> Result<&'a Operand, LoadError> {
        let found = self.inst.operands.get(at);
        found.ok_or_else(|| self.bad(format!("it has no operand {}", at + 1)))
    }

    /// The scopes from that of the instruction outwards.
    pub fn scopes(&self, from: usize) -> impl Iterator<Item = usize> + use<'a> {
        let function = self.function;
        let mut next = Some(from);
        std::iter::from_fn(move || {
            let at = next?;
            next = (at != 0).then(|| function.scopes[at].parent);
            Some(at)
        })
    }

    /// The C label for `name` in `scope`, which defines it.
    fn label_name(&self, name: &str, scope: usize) -> String {
        format!("L{scope}_{}", clean(name))
    }

    /// The C label that a branch to `name` goes to.
    pub fn label(&self, name: &str) -> Result<String, LoadError> {
        for scope in self.scopes(self.inst.scope) {
            if self.labels.contains(&(scope, name)) {
                return Ok(self.label_name(name, scope));
            }
        }
        Err(self.bad(format!("there is no label '{name}'")))
    }

    /// A parameter of the function or of a call: the C expression of its first byte, and the variable.
    pub fn param(&mut self, name: &str) -> Option<(String, &'a Var)> {
        let function = self.function;
        for scope in self.scopes(self.inst.scope) {
            let mut vars = function.scopes[scope].vars.iter();
            if let Some(var) = vars.find(|var| var.space == "param" && var.name == name) {
                let array = format!("P{scope}_{}", clean(name));
                self.arrays.insert(array.clone(), var.size.max(1));
                return Some((array, var));
            }
        }
        if let Some(at) = function.params.iter().position(|var| var.name == name) {
            let place = match function.entry {
                true => format!("(c->params + {})", offsets(&function.params)[at]),
                false => format!("a{at}"),
            };
            return Some((place, &function.params[at]));
        }
        let at = function.results.iter().position(|var| var.name == name)?;
        Some((format!("z{at}"), &function.results[at]))
    }
}

/// Where each parameter of a kernel lies in its parameter memory.
pub fn offsets(params: &[Var]) -> Vec<usize> {
    let mut end = 0usize;
    let mut place = |var: &Var| {
        let at = end.next_multiple_of(var.align.max(1) as usize);
        end = at + var.size;
        at
    };
    params.iter().map(&mut place).collect()
}
