//! Tokens to a [`Unit`]: directives, declarations and bodies. Instructions are only split into opcode and operands
//! here; what they mean is the business of `emit`.

use super::LoadError;
use super::ast::{Function, Inst, Operand, Place, Regs, Scope, Stmt, Ty, Unit, Var};
use super::lex::{Kind, Token, lex};

/// Parses the text of a module.
pub fn parse(text: &str) -> Result<Unit, LoadError> {
    let mut parser = Parser {
        tokens: lex(text),
        at: 0,
        place: Place::default(),
    };
    let mut unit = Unit::default();
    if !(parser.eat_word(".version") && parser.word().is_ok()) {
        return Err(parser.bad("a module begins with .version"));
    }
    while !parser.done() {
        parser.item(&mut unit)?;
    }
    Ok(unit)
}

pub(super) struct Parser {
    tokens: Vec<Token>,
    at: usize,
    place: Place,
}

impl Parser {
    fn done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    fn line(&self) -> u32 {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(0, |token| token.line)
    }

    pub(super) fn bad(&self, what: impl Into<String>) -> LoadError {
        LoadError::Syntax {
            line: self.line(),
            what: what.into(),
        }
    }

    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    fn next(&mut self) -> Option<Kind> {
        let kind = self.tokens.get(self.at).map(|token| token.kind.clone());
        self.at += 1;
        kind
    }

    pub(super) fn eat(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(&Kind::Mark(mark));
        self.at += usize::from(found);
        found
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let found = self.peek().and_then(Kind::word) == Some(word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, mark: char) -> Result<(), LoadError> {
        if self.eat(mark) {
            return Ok(());
        }
        Err(self.bad(format!("'{mark}' is missing here")))
    }

    pub(super) fn word(&mut self) -> Result<String, LoadError> {
        match self.next() {
            Some(Kind::Word(word)) => Ok(word),
            _ => {
                self.at -= 1;
                Err(self.bad("a name or a number is missing here"))
            }
        }
    }

    pub(super) fn number(&mut self) -> Result<i64, LoadError> {
        let negative = self.eat('-');
        let word = self.word()?;
        let value = integer(&word).ok_or_else(|| self.bad(format!("'{word}' is not a number")))?;
        Ok(if negative {
            value.wrapping_neg()
        } else {
            value
        } as i64)
    }

    fn skip_past(&mut self, mark: char) {
        while !self.done() && !self.eat(mark) {
            self.at += 1;
        }
    }

    fn item(&mut self, unit: &mut Unit) -> Result<(), LoadError> {
        match self.peek() {
            Some(Kind::Place(words)) => {
                if words[0] == ".file" {
                    let number = words.get(1).and_then(|word| word.parse().ok()).unwrap_or(0);
                    let name = words.get(2).map_or("", String::as_str);
                    unit.files.push((number, name.trim_matches('"').to_owned()));
                }
                self.at += 1;
                return Ok(());
            }
            Some(Kind::Mark(';')) => {
                self.at += 1;
                return Ok(());
            }
            _ => {}
        }
        let mut external = false;
        loop {
            let word = self.word()?;
            match word.as_str() {
                ".address_size" => {
                    self.at += 1;
                    return Ok(());
                }
                ".target" => {
                    self.at += 1;
                    while self.eat(',') {
                        self.at += 1;
                    }
                    return Ok(());
                }
                ".section" => {
                    self.skip_past('}');
                    return Ok(());
                }
                ".pragma" | ".alias" => {
                    self.skip_past(';');
                    return Ok(());
                }
                ".visible" | ".weak" | ".common" => {}
                ".extern" => external = true,
                ".entry" | ".func" => {
                    let function = self.function(word == ".entry", external)?;
                    // A declaration is replaced by the definition that follows it.
                    let known = unit.functions.iter().position(|f| f.name == function.name);
                    match known {
                        Some(at)
                            if function.body.is_empty() && !unit.functions[at].body.is_empty() => {}
                        Some(at) => unit.functions[at] = function,
                        None => unit.functions.push(function),
                    }
                    return Ok(());
                }
                ".global" | ".const" | ".shared" | ".local" => {
                    let vars = self.variables(&word[1..], external)?;
                    unit.vars.extend(vars);
                    return Ok(());
                }
                _ => {
                    self.at -= 1;
                    return Err(self.bad(format!("the directive '{word}' is not known")));
                }
            }
        }
    }

    fn function(&mut self, entry: bool, external: bool) -> Result<Function, LoadError> {
        let mut function = Function {
            entry,
            external,
            ..Function::default()
        };
        self.eat_word(".noreturn");
        if !entry && self.eat('(') {
            function.results = self.params()?;
        }
        function.name = self.word()?;
        function.place.ptx = self.line();
        if self.eat('(') {
            function.params = self.params()?;
        }
        loop {
            match self.next() {
                Some(Kind::Mark(';')) => return Ok(function),
                Some(Kind::Mark('{')) => break,
                Some(Kind::Word(word)) => match word.as_str() {
                    ".maxntid" | ".reqntid" => {
                        let mut threads = self.number()?;
                        while self.eat(',') {
                            threads = threads.saturating_mul(self.number()?);
                        }
                        function.max_threads = u32::try_from(threads).ok();
                    }
                    ".minnctapersm" | ".maxnreg" => {
                        self.number()?;
                    }
                    ".noreturn" => {}
                    ".pragma" => self.skip_past(';'),
                    _ => return Err(self.bad(format!("the directive '{word}' is not known"))),
                },
                _ => return Err(self.bad("the body of a function is missing here")),
            }
        }
        function.scopes.push(Scope::default());
        self.place = Place::default();
        self.body(&mut function)?;
        // A function stands where its first instruction does.
        let first = function.body.iter().find_map(|stmt| match stmt {
            Stmt::Inst(inst) => Some(inst.place),
            Stmt::Label(..) => None,
        });
        function.place = first.unwrap_or(function.place);
        Ok(function)
    }

    fn params(&mut self) -> Result<Vec<Var>, LoadError> {
        let mut vars = Vec::new();
        while !self.eat(')') {
            if !self.eat_word(".param") {
                return Err(self.bad("only parameters of the space .param are known"));
            }
            vars.push(self.variable("param", false)?);
            self.eat(',');
        }
        Ok(vars)
    }

    fn body(&mut self, function: &mut Function) -> Result<(), LoadError> {
        let mut scope = 0;
        loop {
            let Some(kind) = self.next() else {
                return Err(self.bad(format!("the body of '{}' does not end", function.name)));
            };
            match kind {
                Kind::Mark('}') if scope == 0 => return Ok(()),
                Kind::Mark('}') => scope = function.scopes[scope].parent,
                Kind::Mark('{') => {
                    function.scopes.push(Scope {
                        parent: scope,
                        ..Scope::default()
                    });
                    scope = function.scopes.len() - 1;
                }
                Kind::Mark(';') => {}
                Kind::Place(words) => self.locate(&words),
                Kind::Mark('@') => {
                    let negated = self.eat('!');
                    let name = self.word()?;
                    let op = self.word()?;
                    let inst = self.instruction(op, Some((name, negated)), scope)?;
                    function.body.push(Stmt::Inst(inst));
                }
                Kind::Word(word) if self.eat(':') => self.label(word, scope, function)?,
                Kind::Word(word) if word.starts_with('.') => {
                    self.declaration(&word, &mut function.scopes[scope])?;
                }
                Kind::Word(word) => {
                    let inst = self.instruction(word, None, scope)?;
                    function.body.push(Stmt::Inst(inst));
                }
                _ => return Err(self.bad("an instruction is missing here")),
            }
        }
    }

    fn label(
        &mut self,
        name: String,
        scope: usize,
        function: &mut Function,
    ) -> Result<(), LoadError> {
        if self.eat_word(".callprototype") {
            self.skip_past(';');
            return Ok(());
        }
        if !self.eat_word(".branchtargets") {
            function.body.push(Stmt::Label(name, scope));
            return Ok(());
        }
        let mut targets = vec![self.word()?];
        while self.eat(',') {
            targets.push(self.word()?);
        }
        function.scopes[scope].targets.push((name, targets));
        self.expect(';')
    }

    /// Takes the place that `.loc` names; line 0 belongs to no line and leaves the place as it was.
    fn locate(&mut self, words: &[String]) {
        let number = |at: usize| {
            words
                .get(at)
                .and_then(|word| word.parse().ok())
                .unwrap_or(0)
        };
        if words[0] == ".loc" && number(2) != 0 {
            self.place.file = number(1);
            self.place.line = number(2);
        }
    }

    fn declaration(&mut self, word: &str, scope: &mut Scope) -> Result<(), LoadError> {
        match word {
            ".reg" => {
                let ty = self.word()?;
                let known = Ty::parse(ty.trim_start_matches('.'));
                let ty = known.ok_or_else(|| self.bad(format!("the type '{ty}' is not known")))?;
                loop {
                    let name = self.word()?;
                    let count = if self.eat('<') {
                        let count = self.number()?;
                        self.expect('>')?;
                        Some(count as u32)
                    } else {
                        None
                    };
                    scope.regs.push(Regs { name, count, ty });
                    if !self.eat(',') {
                        break;
                    }
                }
                self.expect(';')
            }
            ".shared" | ".local" | ".param" => {
                let vars = self.variables(&word[1..], false)?;
                scope.vars.extend(vars);
                Ok(())
            }
            ".pragma" => {
                self.skip_past(';');
                Ok(())
            }
            _ => Err(self.bad(format!("the directive '{word}' is not known"))),
        }
    }

    fn instruction(
        &mut self,
        op: String,
        guard: Option<(String, bool)>,
        scope: usize,
    ) -> Result<Inst, LoadError> {
        let place = Place {
            ptx: self.tokens[self.at - 1].line,
            ..self.place
        };
        let mut operands = Vec::new();
        if !self.eat(';') {
            loop {
                operands.push(self.operand()?);
                if self.eat(';') {
                    break;
                }
                self.expect(',')?;
            }
        }
        Ok(Inst {
            guard,
            op: op.split('.').map(str::to_owned).collect(),
            operands,
            place,
            scope,
        })
    }

    fn operands(&mut self, end: char) -> Result<Vec<Operand>, LoadError> {
        let mut list = Vec::new();
        while !self.eat(end) {
            list.push(self.operand()?);
            self.eat(',');
        }
        Ok(list)
    }

    fn operand(&mut self) -> Result<Operand, LoadError> {
        if self.eat('{') {
            return Ok(Operand::Vector(self.operands('}')?));
        }
        if self.eat('(') {
            return Ok(Operand::List(self.operands(')')?));
        }
        if self.eat('!') {
            return Ok(Operand::Not(Box::new(self.operand()?)));
        }
        if self.eat('[') {
            let (base, offset) = match self.operand()? {
                Operand::Sum(name, offset) => (Operand::Name(name), offset),
                base => (base, 0),
            };
            if self.eat(',') {
                return Err(self.bad("an address with coordinates is not known"));
            }
            self.expect(']')?;
            return Ok(Operand::Address(Box::new(base), offset));
        }
        if self.eat('-') {
            return Ok(Operand::Number(format!("-{}", self.word()?)));
        }
        let word = self.word()?;
        if word.starts_with(|first: char| first.is_ascii_digit()) {
            return Ok(Operand::Number(word));
        }
        if self.eat('|') {
            let second = self.operand()?;
            return Ok(Operand::Pair(
                Box::new(Operand::Name(word)),
                Box::new(second),
            ));
        }
        if self.eat('+') {
            return Ok(Operand::Sum(word, self.number()?));
        }
        if self.eat('-') {
            return Ok(Operand::Sum(word, -self.number()?));
        }
        Ok(Operand::Name(word))
    }
}

/// An integer literal of PTX: decimal, hexadecimal, octal or binary, perhaps with a `U` behind it.
pub fn integer(word: &str) -> Option<u64> {
    let word = word.strip_suffix('U').unwrap_or(word);
    if let Some(hex) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    if let Some(binary) = word.strip_prefix("0b").or_else(|| word.strip_prefix("0B")) {
        return u64::from_str_radix(binary, 2).ok();
    }
    if word.len() > 1 && word.starts_with('0') && word.bytes().all(|byte| byte.is_ascii_digit()) {
        return u64::from_str_radix(word, 8).ok();
    }
    word.parse().ok()
}
