//! Failures for machines: with `--format json`, one JSON object on one line of standard error, the last of it.

use super::output::say_json;
use super::words::{self, Asked};
use crate::{Error, escape};
use serde_json::{Value, json};

/// The class of an error, by its exit code.
fn class(code: u8) -> &'static str {
    match code {
        2 => "usage",
        3 => "bad_input",
        4 => "unsupported",
        5 => "storage",
        6 => "gate",
        75 => "interrupted",
        _ => "internal",
    }
}

fn object(error: &Error, asked: Asked) -> Value {
    let code = error.exit_code();
    let text = words::explained(error, asked);
    let (message, hint) = match text.split_once("\n  hint: ") {
        Some((message, hint)) => (message, Some(hint)),
        None => (text.as_str(), None),
    };
    let mut object = json!({ "class": class(code), "exit_code": code, "message": message });
    if let Some(hint) = hint {
        object["hint"] = json!(hint);
    }
    if let Some(finding) = error.finding() {
        if let Some(file) = &finding.file {
            object["file"] = json!(escape::path(file));
        }
        if let Some(tensor) = &finding.tensor {
            object["tensor"] = json!(tensor);
        }
    }
    json!({ "error": object })
}

/// Prints an error.
pub fn print(error: &Error, asked: Asked) {
    say_json(&object(error, asked));
}

/// Prints what is wrong with the command line; returns the exit code.
pub fn of_usage(error: &clap::Error) -> u8 {
    // What is wrong, without the hints and the usage behind it.
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("tip:") && !line.starts_with("Usage:"));
    let message = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    print(&Error::Usage(message.trim_start_matches("error: ").to_string()), Asked::Make);
    Error::Usage(String::new()).exit_code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_parts() {
        let error = Error::bad_file("m.gguf", "is cut").tensor("a.weight").hint("fetch it again");
        let object = object(&error, Asked::Make);
        assert_eq!(object["error"]["exit_code"], 3);
        assert_eq!(object["error"]["hint"], "fetch it again");
        assert_eq!(object["error"]["tensor"], "a.weight");
    }
}
