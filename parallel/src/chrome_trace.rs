//! The Trace Event Format of Chrome, which Perfetto opens: what all its pages here have in common.

use std::fmt::{self, Write as _};

/// A page in the making. Times are in microseconds.
#[derive(Default)]
pub(crate) struct Page(Vec<String>);

/// Where something is drawn: a track of a process.
#[derive(Clone, Copy)]
pub(crate) struct Track {
    pub(crate) process: usize,
    pub(crate) thread: usize,
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Track { process, thread } = self;
        write!(f, r#""pid":{process},"tid":{thread}"#)
    }
}

/// A text as JSON has it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Page {
    /// An event, as it is written.
    pub(crate) fn event(&mut self, event: fmt::Arguments<'_>) {
        self.0.push(event.to_string());
    }

    /// What a process is called.
    pub(crate) fn name_process(&mut self, process: usize, name: &str) {
        let name = quoted(name);
        self.event(format_args!(
            r#"{{"name":"process_name","ph":"M","pid":{process},"args":{{"name":{name}}}}}"#
        ));
    }

    /// What a track is called.
    pub(crate) fn name_track(&mut self, track: Track, name: &str) {
        let name = quoted(name);
        self.event(format_args!(
            r#"{{"name":"thread_name","ph":"M",{track},"args":{{"name":{name}}}}}"#
        ));
    }

    /// Something that lasts; of a track, one is inside another, or behind it.
    pub(crate) fn span(&mut self, track: Track, name: &str, kind: &str, [start, end]: [f64; 2]) {
        let (name, kind, dur) = (quoted(name), quoted(kind), end - start);
        self.event(format_args!(
            r#"{{"name":{name},"cat":{kind},"ph":"X",{track},"ts":{start},"dur":{dur}}}"#
        ));
    }

    /// Something that lasts, while others of its kind may, too. Its number tells it from them.
    pub(crate) fn flight(
        &mut self,
        track: Track,
        (name, kind, number): (&str, &str, usize),
        times: [f64; 2],
    ) {
        let (name, kind) = (quoted(name), quoted(kind));
        for (phase, at) in ["b", "e"].into_iter().zip(times) {
            self.event(format_args!(
                r#"{{"name":{name},"cat":{kind},"ph":"{phase}","id":{number},{track},"ts":{at}}}"#
            ));
        }
    }

    /// Something that happens.
    pub(crate) fn instant(&mut self, track: Track, name: &str, kind: &str, at: f64) {
        let (name, kind) = (quoted(name), quoted(kind));
        self.event(format_args!(
            r#"{{"name":{name},"cat":{kind},"ph":"i","s":"t",{track},"ts":{at}}}"#
        ));
    }

    /// The page.
    pub(crate) fn write(&self) -> String {
        let mut out = String::from("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
        for (at, event) in self.0.iter().enumerate() {
            let comma = if at + 1 < self.0.len() { "," } else { "" };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{event}{comma}");
        }
        out.push_str("]}\n");
        out
    }
}
