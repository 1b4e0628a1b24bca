//! Modules and kernels: what a translation gives, loaded. This is one of the few files with `unsafe` code.

use std::path::Path;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Memory;
use super::abi::{CODE_WINDOW, Code};
use crate::ptx::emit::{Entry, Site, Translation, emit};
use crate::ptx::{LoadError, Object, compile, parse};

/// What to look for while kernels run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checks {
    /// All that costs little.
    #[default]
    Usual,
    /// Races in global memory too, which makes kernels some times slower.
    Races,
}

/// A parameter of a kernel, where it lies in the launch's parameter memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// Bytes from the start of that memory.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
    /// Its alignment in bytes.
    pub align: usize,
}

/// A variable of a module in global or constant memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalVar {
    /// Its name in PTX.
    pub name: String,
    /// Its size in bytes.
    pub size: usize,
    /// Its alignment in bytes.
    pub align: usize,
    /// All its bytes at the start. Addresses of other variables in it are 0 here; the first launch fills them in.
    pub bytes: Vec<u8>,
    /// Whether it lies in constant memory, which kernels cannot write.
    pub constant: bool,
}

/// What the kernels of a module share.
#[derive(Debug)]
pub struct Loaded {
    _object: Object,
    checks: Checks,
    sites: Vec<Site>,
    functions: Vec<String>,
    files: Vec<(u32, String)>,
    vars: Vec<crate::ptx::ast::Var>,
    pub addresses: Vec<AtomicU64>,
    linked: Once,
}

/// A kernel module, translated and loaded.
#[derive(Debug)]
pub struct Module {
    loaded: Arc<Loaded>,
    kernels: Vec<Kernel>,
}

/// A kernel that can be run.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its name in PTX.
    pub name: String,
    /// Its parameters, in order.
    pub params: Vec<Param>,
    /// The bytes of its static shared memory.
    pub static_shared: usize,
    /// The most local memory that a thread of it uses.
    pub local: usize,
    /// The most threads of a block, where the kernel says so.
    pub max_threads: Option<u32>,
    pub(super) loaded: Arc<Loaded>,
    pub(super) code: Code,
    pub(super) sites: Vec<std::ops::Range<usize>>,
    pub(super) places: Vec<u32>,
    /// Whether its threads wait for each other, and so need stacks of their own.
    pub(super) waits: bool,
}

impl Module {
    /// Translates the PTX text `image` and loads it; what was translated before comes from the folder `cache`.
    pub fn load(image: &str, cache: &Path, checks: Checks) -> Result<Module, LoadError> {
        let Translation {
            source,
            entries,
            sites,
            functions,
            vars,
            files,
        } = emit(&parse(image.trim_end_matches('\0'))?)?;
        let object = compile(&source, cache)?;
        let mut codes = Vec::new();
        for entry in &entries {
            let symbol = object.symbol(&format!("K{}", entry.number));
            let symbol = symbol
                .ok_or_else(|| LoadError::Dynamic(format!("'{}' is not in it", entry.name)))?;
            // SAFETY: the generated function K<number> has this type (`emit::fun::signature`), and the object that
            // holds it lives as long as `Loaded`, which each kernel keeps.
            codes.push(unsafe { std::mem::transmute::<*mut std::ffi::c_void, Code>(symbol) });
        }
        let loaded = Arc::new(Loaded {
            _object: object,
            checks,
            sites,
            functions,
            files,
            addresses: vars.iter().map(|_| AtomicU64::new(0)).collect(),
            vars,
            linked: Once::new(),
        });
        let make = |(entry, code): (Entry, Code)| Kernel::new(entry, code, &loaded);
        let kernels = entries.into_iter().zip(codes).map(make).collect();
        Ok(Module { loaded, kernels })
    }

    /// The kernel `name`, as PTX names it.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// The names of the kernels.
    pub fn kernel_names(&self) -> Vec<String> {
        self.kernels
            .iter()
            .map(|kernel| kernel.name.clone())
            .collect()
    }

    /// The variable `name` of global or constant memory.
    pub fn global(&self, name: &str) -> Option<GlobalVar> {
        let var = self.loaded.vars.iter().find(|var| var.name == name)?;
        let mut bytes = var.bytes.clone();
        bytes.resize(var.size, 0);
        Some(GlobalVar {
            name: var.name.clone(),
            size: var.size,
            align: var.align as usize,
            bytes,
            constant: var.space == "const",
        })
    }

    /// Tells where the variable `name` lies; to be called for each before the first launch.
    pub fn bind_global(&self, name: &str, addr: u64) {
        if let Some(at) = self.loaded.vars.iter().position(|var| var.name == name) {
            self.loaded.addresses[at].store(addr, Ordering::Relaxed);
        }
    }

    /// The names of the variables in global and constant memory.
    pub fn global_names(&self) -> Vec<String> {
        self.loaded
            .vars
            .iter()
            .map(|var| var.name.clone())
            .collect()
    }
}

impl Loaded {
    /// Writes the addresses that variables hold of other variables, once.
    pub fn link(&self, memory: &dyn Memory) {
        self.linked.call_once(|| {
            for (at, var) in self.vars.iter().enumerate() {
                for (offset, name, plus) in &var.pointers {
                    let target = self.vars.iter().position(|var| var.name == *name);
                    let function = self.functions.iter().position(|known| known == name);
                    let value = match (target, function) {
                        (Some(target), _) => self.addresses[target].load(Ordering::Relaxed),
                        (None, Some(number)) => CODE_WINDOW + number as u64,
                        (None, None) => continue,
                    };
                    let value = value.wrapping_add_signed(*plus);
                    let place = self.addresses[at].load(Ordering::Relaxed) + *offset as u64;
                    let Some(region) = memory.find(place) else {
                        continue;
                    };
                    let within = place - region.base;
                    if region.len - within >= 8 {
                        // SAFETY: `Memory` promises that `len` bytes from `host` are ours to access.
                        unsafe {
                            region
                                .host
                                .add(within as usize)
                                .cast::<u64>()
                                .write_unaligned(value)
                        };
                    }
                }
            }
        });
    }
}

impl Kernel {
    fn new(entry: Entry, code: Code, loaded: &Arc<Loaded>) -> Kernel {
        let mut end = 0usize;
        let mut params = Vec::new();
        for var in &entry.params {
            let align = var.align.max(1) as usize;
            let offset = end.next_multiple_of(align);
            end = offset + var.size;
            params.push(Param {
                offset,
                size: var.size,
                align,
            });
        }
        Kernel {
            name: entry.name,
            params,
            static_shared: entry.static_shared,
            local: entry.local,
            max_threads: entry.max_threads,
            loaded: loaded.clone(),
            code,
            sites: entry.sites,
            places: entry.places,
            waits: entry.waits,
        }
    }

    /// The bytes of its parameter memory.
    pub fn params_size(&self) -> usize {
        self.params.last().map_or(0, |last| last.offset + last.size)
    }

    pub(super) fn looks_for_races(&self) -> bool {
        self.loaded.checks == Checks::Races
    }

    pub(super) fn site_count(&self) -> usize {
        self.loaded.sites.len()
    }

    /// The instruction of a site.
    pub(super) fn instruction(&self, site: u32) -> &str {
        &self.loaded.sites[site as usize].text
    }

    /// Where a site stands, for a sentence: `red.cu:17`.
    pub(super) fn line(&self, site: u32) -> String {
        let site = &self.loaded.sites[site as usize];
        let inside = &self.loaded.functions[site.function];
        let inside = match *inside == self.name {
            true => String::new(),
            false => format!(" in '{inside}'"),
        };
        let file = self
            .loaded
            .files
            .iter()
            .find(|(number, _)| *number == site.place.file);
        match file {
            Some((_, file)) => format!("{file}:{}{inside}", site.place.line),
            None => format!("line {} of its PTX{inside}", site.place.ptx),
        }
    }
}
