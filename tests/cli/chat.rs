//! Conversations.

use crate::common::{command, copy_model, fails, model, quantize};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

/// A model with a chat template.
fn with_template(dir: &Path) -> PathBuf {
    let folder = dir.join("model");
    copy_model("tiny-llama", &folder);
    std::fs::write(folder.join("chat_template.jinja"), TEMPLATE).unwrap();
    folder
}

fn start(dir: &Path, args: &[&str]) -> Child {
    let limit: &[&str] = if args.contains(&"-n") { &[] } else { &["-n", "12"] };
    let mut command = command(dir, &[&["chat", "model", "--temp", "0"], limit, args].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What is said to these lines, and what goes to standard error.
fn talk(dir: &Path, args: &[&str], input: &str) -> (String, String) {
    let mut child = start(dir, args);
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let (said, told) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(out.status.success(), "{told}");
    (said, told)
}

/// The answer that `generate` gives to a conversation.
fn generated(dir: &Path, conversation: &str) -> String {
    let prompt = format!("{conversation}assistant:");
    let out = quantize(dir, &["generate", "model", "-p", &prompt, "--special", "-n", "12", "--quiet"]);
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn every_answer_is_to_all_that_was_said() {
    let dir = tempfile::tempdir().unwrap();
    with_template(dir.path());
    let (said, told) = talk(dir.path(), &["--system", "Be short."], "The file\nand the\\\nfolder\n/exit\nnot read\n");
    let first = generated(dir.path(), "system: Be short.\nuser: The file\n");
    let begun = format!("system: Be short.\nuser: The file\nassistant: {}\n", first.strip_suffix('\n').unwrap());
    let second = generated(dir.path(), &format!("{begun}user: and the\nfolder\n"));
    assert_eq!(said, format!("{first}{second}"));
    assert!(told.contains("12 tokens") && told.contains("of 512 in use"), "{told}");
    // What was cleared is forgotten; unknown commands and empty lines are no turns.
    let (said, told) = talk(dir.path(), &[], "The file\n/clear\n\n/clera\nThe file\n");
    let alone = generated(dir.path(), "user: The file\n");
    assert_eq!(said, format!("{alone}{alone}"));
    assert!(told.contains("no command /clera"), "{told}");
    let (_, told) = talk(dir.path(), &["--quiet"], "The file\n");
    assert_eq!(told, "");
}

#[test]
fn a_conversation_forgets_its_oldest_turns_where_it_is_full() {
    let dir = tempfile::tempdir().unwrap();
    with_template(dir.path());
    let turn = "a few words more about the file\n".repeat(8);
    let (said, told) = talk(dir.path(), &["--context", "64", "-n", "8"], &turn);
    assert_eq!(said.lines().filter(|l| !l.is_empty()).count().min(8), 8, "{said}");
    assert!(told.contains("the context of 64 tokens is full"), "{told}");
    let long = format!("{}\nThe file\n", "words and ".repeat(60));
    let (said, told) = talk(dir.path(), &["--context", "64", "-n", "8"], &long);
    assert!(told.contains("too many for the context of 64") && !said.is_empty(), "{told}");
}

#[test]
fn what_cannot_talk_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = model("tiny-llama");
    with_template(dir.path());
    fails(&quantize(dir.path(), &["chat", tiny.to_str().unwrap()]), 3, &["chat template"]);
    fails(&quantize(dir.path(), &["chat", "model", "--context", "9999"]), 2, &["512"]);
    fails(&quantize(dir.path(), &["chat", "model", "--temp", "-1"]), 2, &["--temp"]);
    fails(&quantize(dir.path(), &["chat", "none"]), 3, &["none"]);
}

/// Ctrl-C ends an answer; the conversation goes on.
#[cfg(unix)]
#[test]
fn an_answer_is_stopped_and_the_conversation_is_not() {
    let dir = tempfile::tempdir().unwrap();
    with_template(dir.path());
    let mut child = start(dir.path(), &["-n", "400", "-t", "1"]);
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    writeln!(input, "The file").unwrap();
    let mut some = [0; 4];
    output.read_exact(&mut some).unwrap();
    let signal = rustix::process::Signal::INT;
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
    while !line.contains("tokens/s") {
        line.clear();
        assert!(told.read_line(&mut line).unwrap() > 0, "it ended");
    }
    assert!(line.contains("stopped; "), "{line}");
    writeln!(input, "/clear\nand again").unwrap();
    drop(input);
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("cleared") && rest.contains("tokens/s"), "{rest}");
    assert!(child.wait().unwrap().success());
}
