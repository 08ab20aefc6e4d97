//! What goes to standard output and standard error; what comes from files is escaped on the way.

use crate::report::text::wrap;
use crate::{Error, Result, escape};
use std::ffi::OsString;
use std::sync::OnceLock;

/// A message on standard error. A failure to write it (a full device) is ignored: there is nowhere to report it. Nothing is
/// said to who asked for JSON, which has what there is to say.
pub fn say(message: &str) {
    if is_for_machines() {
        return;
    }
    let message = escape::message(message);
    // Where nobody reads it on a screen, a message stays one line.
    let text = match columns() {
        Some(width) => {
            // Commands are there to be copied.
            let is_command = |line: &str| line.trim_start().starts_with("quantize ");
            let wrapped = |line: &str| if is_command(line) { line.into() } else { wrap(line, width) };
            message.lines().map(wrapped).collect::<Vec<String>>().join("\n")
        }
        None => message.into_owned(),
    };
    say_block(&(text + "\n"));
}

/// Whether the command line asks for JSON, told without parsing it, for it may be what is wrong.
fn wants_json(args: impl IntoIterator<Item = OsString>) -> bool {
    let args: Vec<OsString> = args.into_iter().take_while(|arg| arg != "--").collect();
    let pairs = args.windows(2).any(|pair| pair[0] == "--format" && pair[1] == "json");
    pairs || args.iter().any(|arg| arg == "--format=json")
}

/// Whether standard error is read by a program: it gets objects of JSON alone, one a line, and no progress.
pub fn is_for_machines() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    *ASKED.get_or_init(|| wants_json(std::env::args_os()))
}

/// An object on a line of standard error.
pub fn say_json(value: &serde_json::Value) {
    say_block(&format!("{}\n", escape::json(&value.to_string())));
}

/// Columns of the terminal that messages go to, if they go to one.
fn columns() -> Option<usize> {
    #[cfg(unix)]
    {
        let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok()?;
        Some(usize::from(size.ws_col)).filter(|width| *width >= 40)
    }
    #[cfg(not(unix))]
    {
        use std::io::IsTerminal;
        std::io::stderr().is_terminal().then_some(80)
    }
}

/// The same for several lines.
pub fn say_block(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(escape::block(text).as_bytes());
}

/// Writes lines to standard output.
pub fn print(text: &str) -> Result<()> {
    stream(|out| out.write_all(escape::block(text).as_bytes()))
}

/// The same for a JSON document, which is written as it goes.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    stream(|out| {
        serde_json::to_writer_pretty(JsonText(out), value)?;
        out.write_all(b"\n")
    })
}

/// Hands standard output to `write`, which escapes what comes from files. A reader that went away (`| head`) is no error.
pub fn stream(write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output", e)),
        _ => Ok(()),
    }
}

/// What a model says, on standard output as it comes. A file gets it as it is; a terminal is not to be driven by it.
pub struct Spoken {
    out: std::io::Stdout,
    terminal: bool,
    /// Why it could not be written, or that its reader went away.
    pub failed: Option<std::io::Error>,
}

impl Spoken {
    pub fn new() -> Self {
        let out = std::io::stdout();
        Self { terminal: std::io::IsTerminal::is_terminal(&out), out, failed: None }
    }

    /// Returns whether anybody reads it.
    pub fn show(&mut self, text: &str) -> bool {
        use std::io::Write;
        let text = if self.terminal { escape::block(text) } else { text.into() };
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Ok(()) => true,
            Err(e) => {
                self.failed = Some(e);
                false
            }
        }
    }
}

/// Escapes the JSON that passes through; see [`escape::json`]. What is written at once ends at a character's end, as
/// serde_json keeps to.
pub struct JsonText<'a>(pub &'a mut dyn std::io::Write);

impl std::io::Write for JsonText<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.0.write_all(escape::json(text).as_bytes())?,
            Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_asked_for_in_either_spelling() {
        let wants = |args: &[&str]| wants_json(args.iter().map(OsString::from));
        assert!(wants(&["quantize", "--format", "json"]) && wants(&["quantize", "--format=json", "x"]));
        assert!(!wants(&["quantize", "--format", "text"]) && !wants(&["quantize", "--", "--format=json"]));
    }
}
