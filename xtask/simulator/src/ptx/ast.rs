//! A PTX module as data: its variables, and its functions as flat lists of instructions.

/// A type of PTX, as an instruction or a declaration names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ty {
    /// Bits without a meaning, of a width in bits.
    B(u32),
    /// An unsigned integer.
    U(u32),
    /// A signed integer.
    S(u32),
    /// f32 or f64.
    F(u32),
    F16,
    F16x2,
    BF16,
    BF16x2,
    TF32,
    Pred,
}

impl Ty {
    /// Reads what stands behind the dot, `f32` say.
    pub fn parse(text: &str) -> Option<Ty> {
        Some(match text {
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::BF16,
            "bf16x2" => Ty::BF16x2,
            "tf32" => Ty::TF32,
            "pred" => Ty::Pred,
            "f32" => Ty::F(32),
            "f64" => Ty::F(64),
            _ => {
                let width = text.get(1..)?.parse().ok()?;
                let known = matches!(width, 8 | 16 | 32 | 64 | 128);
                match (text.as_bytes()[0], known) {
                    (b'b', true) => Ty::B(width),
                    (b'u', true) => Ty::U(width),
                    (b's', true) => Ty::S(width),
                    _ => return None,
                }
            }
        })
    }

    /// Its width in bits; a predicate is held in 8.
    pub fn bits(self) -> u32 {
        match self {
            Ty::B(bits) | Ty::U(bits) | Ty::S(bits) | Ty::F(bits) => bits,
            Ty::F16 | Ty::BF16 => 16,
            Ty::F16x2 | Ty::BF16x2 | Ty::TF32 => 32,
            Ty::Pred => 8,
        }
    }

    /// Its width in bytes.
    pub fn bytes(self) -> u32 {
        self.bits() / 8
    }

    /// Whether C computes with it as a signed integer.
    pub fn signed(self) -> bool {
        matches!(self, Ty::S(_))
    }
}

/// An operand of an instruction.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register, a special register, a variable, a label or a function.
    Name(String),
    /// A number as it stands in the text, its sign with it.
    Number(String),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `[base + offset]`.
    Address(Box<Operand>, i64),
    /// `name + offset` outside of brackets.
    Sum(String, i64),
    /// `a|b`: a result and a predicate.
    Pair(Box<Operand>, Box<Operand>),
    /// `!p`.
    Not(Box<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
}

/// Where an instruction comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// The number of the source file in the module's list, 0 for none.
    pub file: u32,
    /// Its line in that file.
    pub line: u32,
    /// Its line in the PTX text.
    pub ptx: u32,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Inst {
    /// The predicate that guards it, and whether that is negated.
    pub guard: Option<(String, bool)>,
    /// The opcode, split at its dots.
    pub op: Vec<String>,
    pub operands: Vec<Operand>,
    pub place: Place,
    /// The block in braces that it stands in.
    pub scope: usize,
}

/// A statement of a function's body.
#[derive(Debug, Clone, PartialEq)]
pub enum Stmt {
    Inst(Inst),
    Label(String, usize),
}

/// A variable of some state space.
#[derive(Debug, Clone, PartialEq)]
pub struct Var {
    pub name: String,
    /// `global`, `const`, `shared`, `local` or `param`.
    pub space: String,
    pub align: u32,
    /// Its size in bytes; 0 for `extern .shared x[]`.
    pub size: usize,
    pub external: bool,
    /// Its first bytes; what is missing is zero.
    pub bytes: Vec<u8>,
    /// Addresses within `bytes`: where, of which variable, plus how much.
    pub pointers: Vec<(usize, String, i64)>,
}

/// A register declaration: `%r<54>` is `("%r", Some(54))`.
#[derive(Debug, Clone, PartialEq)]
pub struct Regs {
    pub name: String,
    pub count: Option<u32>,
    pub ty: Ty,
}

/// What a block in braces declares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scope {
    /// The block around it; the body of the function is its own parent.
    pub parent: usize,
    pub regs: Vec<Regs>,
    pub vars: Vec<Var>,
    /// Lists of labels for `brx.idx`.
    pub targets: Vec<(String, Vec<String>)>,
}

/// A kernel or a device function.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Function {
    pub name: String,
    pub entry: bool,
    pub external: bool,
    pub results: Vec<Var>,
    pub params: Vec<Var>,
    pub max_threads: Option<u32>,
    pub scopes: Vec<Scope>,
    pub body: Vec<Stmt>,
    pub place: Place,
}

/// A whole module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Unit {
    pub vars: Vec<Var>,
    pub functions: Vec<Function>,
    /// Source files by the number that `.loc` uses.
    pub files: Vec<(u32, String)>,
}
