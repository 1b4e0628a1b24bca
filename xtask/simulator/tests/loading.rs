//! Modules that cannot be loaded say why in a sentence; loading is safe when several do it at once.

mod support;

use simulator::exec::Checks;
use std::process::Command;

use simulator::exec::{LoadError, Module};

const HEAD: &str = ".version 9.0\n.target sm_80\n.address_size 64\n";

fn load(body: &str) -> Result<Module, LoadError> {
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 p)\n{{\n.reg .b32 %r<9>;\n.reg .f32 %f<9>;\n.reg .pred %p<3>;\n.reg .b64 %rd<9>;\n{body}\nret;\n}}\n.file 1 \"some.cu\"\n"
    );
    Module::load(&text, &support::cache(), Checks::Usual)
}

fn refusal(body: &str) -> String {
    load(body).expect_err(body).to_string()
}

#[test]
fn what_is_not_known_is_named() {
    let said = refusal(".loc 1 17 3\ntcgen05.alloc.b32 [%rd1], 32;");
    for part in ["tcgen05.alloc.b32", "'k'", "line 17"] {
        assert!(said.contains(part), "{said}");
    }
    // A known instruction with a modifier that is not.
    for body in [
        "add.wonder.s32 %r1, %r2, %r3;",
        "ld.global.magic.u32 %r1, [%rd1];",
        "fma.f32 %f1, %f2, %f3, %f4;",
        "cvt.s32.f32 %r1, %f1;",
        "setp.ltu.s32 %p1, %r1, %r2;",
        "atom.global.min.f32 %f1, [%rd1], %f2;",
        "shfl.bfly.b32 %r1, %r2, 1, 31;",
        "add.rn.s32 %r1, %r2, %r3;",
        "mul.s32 %r1, %r2, %r3;",
        "ld.global.v4.u64 {%rd1, %rd2, %rd3, %rd4}, [%rd5];",
        "ld.global.v8.u32 {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}, [%rd1];",
    ] {
        let said = refusal(body);
        assert!(
            said.contains(body.split(' ').next().unwrap()),
            "{body}: {said}"
        );
    }
    for (body, part) in [
        ("add.s32 %r1, %r2, %r77;", "%r77"),
        ("bra NOWHERE;", "NOWHERE"),
        ("call unknown, ();", "unknown"),
        ("add.s32 %r1, %r2;", "no operand 3"),
        ("mov.u32 %r1, 12oz;", "12oz"),
        ("ld.param.u64 %rd1, [p+8];", "leaves the parameter"),
        (".wonder 5;", ".wonder"),
        ("add.s32 %r1, %r2, %r3", "missing here"),
    ] {
        let said = refusal(body);
        assert!(said.contains(part), "{body}: {said}");
    }
    assert!(load("add.s32 %r1, %r2, %r3;").is_ok());
}

#[test]
fn text_that_is_no_ptx_is_refused() {
    for text in [
        "hello",
        "{",
        "\u{7f}ELF",
        ".version",
        ".visible .entry k(",
        ".global .b8 x[2] = {1, 2, 3};",
        "\"",
        "/*",
    ] {
        let result = Module::load(text, &support::cache(), Checks::Usual);
        assert!(result.is_err(), "{text} was loaded");
    }
    for declaration in [
        ".global .align 3 .b8 x[2];",
        ".shared .align 4 .b8 x[99999999999];",
        ".global .align 4 .u32 x[9999999999][9999999999];",
        ".global .align 4 .b8 x[2] = {1, 2, 3};",
        ".global .align 4 .u32 x = y;",
    ] {
        let result = Module::load(
            &format!("{HEAD}{declaration}"),
            &support::cache(),
            Checks::Usual,
        );
        assert!(result.is_err(), "{declaration} was loaded");
    }
    // No prefix of a good text may do worse than be refused.
    let whole = format!(
        "{HEAD}.global .align 4 .u32 g[2] = {{1, 2}};\n.visible .entry k(.param .u64 p)\n{{\n.reg .b32 %r<9>;\n@%r1 bra L;\nL:\n ret;\n}}\n"
    );
    for end in 0..whole.len() {
        let _ = simulator::exec::Module::load(
            &whole[..end],
            std::path::Path::new("/dev/null/nowhere"),
            Checks::Usual,
        );
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let text = format!("{HEAD}.visible .entry other() {{ ret; }}");
    let error = Module::load(
        &text,
        std::path::Path::new("/dev/null/kernels"),
        Checks::Usual,
    )
    .expect_err("a cache in a file");
    assert!(error.to_string().contains("/dev/null/kernels"), "{error}");
}

#[test]
fn many_load_the_same_module_at_once() {
    let folder = support::cache().join(format!("at-once-{}", std::process::id()));
    let text = format!("{HEAD}.visible .entry k() {{ ret; }}");
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                assert!(
                    Module::load(&text, &folder, Checks::Usual)
                        .unwrap()
                        .kernel("k")
                        .is_some()
                )
            });
        }
    });
    let left: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 1, "the cache holds {left:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_missing_compiler_is_said_in_a_sentence() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "without_a_compiler"])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stdout)
    );
}

#[test]
#[ignore = "a_missing_compiler_is_said_in_a_sentence runs it where there is no g++"]
fn without_a_compiler() {
    let folder = support::cache().join("without-a-compiler");
    let text = format!("{HEAD}.visible .entry k() {{ ret; }}");
    let error = Module::load(&text, &folder, Checks::Usual).expect_err("g++ was found");
    assert!(matches!(error, LoadError::NoCompiler(_)), "{error}");
    assert!(
        error.to_string().contains("needs the compiler g++"),
        "{error}"
    );
}
