//! `printf` of the device: the text goes to the standard output of the process. This is one of the few files with
//! `unsafe` code, since generated code calls it.

use super::abi::{Ctx, LOCAL_WINDOW, SHARED_WINDOW};
use super::engine::{Runner, owner};

/// A byte at a generic address of the thread, 0 where there is none.
///
/// # Safety
///
/// `ctx` is the context of a thread that runs now.
unsafe fn byte(runner: &Runner<'_>, ctx: *const Ctx, addr: u64) -> u8 {
    // SAFETY: by this function's condition; both places are within bounds that are checked here.
    unsafe {
        if addr >> 56 == LOCAL_WINDOW >> 56 {
            let at = addr - LOCAL_WINDOW;
            return if at < u64::from((*ctx).local_top) {
                *(*ctx).local.add(at as usize)
            } else {
                0
            };
        }
        if addr >> 56 == SHARED_WINDOW >> 56 {
            return 0;
        }
        match runner.memory.find(addr) {
            Some(region) if addr - region.base < region.len => {
                *region.host.add((addr - region.base) as usize)
            }
            _ => 0,
        }
    }
}

/// Prints `format` with the arguments that lie packed at `args`; the result is how many there were.
///
/// # Safety
///
/// Generated code calls it, with its context.
pub unsafe extern "C" fn print(ctx: *mut Ctx, _site: u32, format: u64, args: u64) -> u32 {
    // SAFETY: by this function's condition.
    unsafe {
        let runner = &*owner(ctx);
        let text = |at: u64| -> String {
            let bytes = (at..at + 1024)
                .map(|addr| byte(runner, ctx, addr))
                .take_while(|byte| *byte != 0);
            String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
        };
        let (mut at, mut count) = (args, 0);
        let mut take = |width: u64| {
            at = at.next_multiple_of(width);
            let value = (0..width)
                .map(|index| u64::from(byte(runner, ctx, at + index)) << (8 * index))
                .sum::<u64>();
            at += width;
            count += 1;
            value
        };
        print!("{}", fill(&text(format), &mut take, &text));
        count
    }
}

/// Puts arguments into a format of C.
fn fill(format: &str, take: &mut dyn FnMut(u64) -> u64, text: &dyn Fn(u64) -> String) -> String {
    let mut out = String::new();
    let mut rest = format.chars().peekable();
    while let Some(mark) = rest.next() {
        if mark != '%' {
            out.push(mark);
            continue;
        }
        let (mut spec, mut wide) = (String::new(), false);
        let kind = loop {
            match rest.next() {
                Some('l' | 'z' | 'j') => wide = true,
                Some('h') => {}
                Some(flag @ ('0'..='9' | '.' | '-' | '+' | ' ' | '#')) => spec.push(flag),
                Some(kind) => break kind,
                None => return out + "%",
            }
        };
        let (width, places) = match spec.split_once('.') {
            Some((width, places)) => (width, places.parse().ok()),
            None => (spec.as_str(), None),
        };
        let bytes = if wide { 8 } else { 4 };
        let shown = match kind {
            '%' => "%".to_owned(),
            'd' | 'i' if wide => (take(8) as i64).to_string(),
            'd' | 'i' => (take(4) as i32).to_string(),
            'u' => take(bytes).to_string(),
            'x' => format!("{:x}", take(bytes)),
            'X' => format!("{:X}", take(bytes)),
            'o' => format!("{:o}", take(bytes)),
            'c' => char::from(take(4) as u8).to_string(),
            'p' => format!("{:#x}", take(8)),
            's' => text(take(8)),
            'e' | 'E' => format!("{:.*e}", places.unwrap_or(6), f64::from_bits(take(8))),
            'g' | 'G' => f64::from_bits(take(8)).to_string(),
            _ => format!("{:.*}", places.unwrap_or(6), f64::from_bits(take(8))),
        };
        let wanted: usize = width
            .trim_start_matches(['-', '+', ' ', '#', '0'])
            .parse()
            .unwrap_or(0);
        let missing = wanted.saturating_sub(shown.chars().count());
        match (width.starts_with('-'), width.starts_with('0')) {
            (true, _) => out.extend([shown, " ".repeat(missing)]),
            (_, true) => out.extend(["0".repeat(missing), shown]),
            _ => out.extend([" ".repeat(missing), shown]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn arguments_take_their_places() {
        let mut values = [7, 1.5f64.to_bits(), 0xfffffffe].into_iter();
        let mut take = |_| values.next().unwrap();
        let out = fill("a %3d b %.2f %% %d\n", &mut take, &|_| String::new());
        assert_eq!(out, "a   7 b 1.50 % -2\n");
    }
}
