//! Finds the imports of Rust source: every `use` and every path that begins with `crate`, `super` or a child module, but
//! for items under `#[cfg(test)]`. It reads tokens, not syntax trees; macros are read like other text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Source by its path under `src`, with `/` between folders.
pub type Files = BTreeMap<String, String>;

/// All of `src`, without files of unit tests.
pub fn files(src: &Path) -> Files {
    let mut files = Files::new();
    let mut folders = vec![src.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && path.file_name().unwrap() != "tests.rs" {
                let name = path.strip_prefix(src).unwrap().to_str().unwrap().replace('\\', "/");
                files.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
    }
    files
}

/// One file takes something from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from: String,
    pub to: String,
    /// The line of `from`, from 1.
    pub line: usize,
    /// It is a `pub use`, by which a module shows what its parts hold.
    pub shown: bool,
}

/// Every import among `files`.
pub fn imports(files: &Files) -> BTreeSet<Import> {
    let modules: BTreeMap<Vec<&str>, &str> = files.keys().map(|file| (module(file), file.as_str())).collect();
    let mut found = BTreeSet::new();
    for (file, text) in files {
        for path in paths(text, &module(file), &modules) {
            let longest = (1..=path.full.len()).rev().find_map(|n| {
                let prefix: Vec<&str> = path.full[..n].iter().map(String::as_str).collect();
                modules.get(&prefix)
            });
            if let Some(to) = longest.filter(|to| *to != file) {
                found.insert(Import { from: file.clone(), to: to.to_string(), line: path.line, shown: path.shown });
            }
        }
    }
    found
}

/// The module that a file holds: `a/b.rs` and `a/b/mod.rs` are `a::b`.
fn module(file: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    if parts.last() == Some(&"mod") || parts == ["lib"] {
        parts.pop();
    }
    parts
}

struct Found {
    /// From the crate's root.
    full: Vec<String>,
    line: usize,
    shown: bool,
}

fn paths(text: &str, module: &[&str], modules: &BTreeMap<Vec<&str>, &str>) -> Vec<Found> {
    let tokens = without_tests(tokens(text));
    let mut scan = Scan { tokens: &tokens, at: 0, module, inline: Vec::new(), modules, found: Vec::new() };
    scan.run();
    scan.found
}

struct Scan<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    module: &'a [&'a str],
    /// Modules with a body that are open, and the depth of braces at which each ends.
    inline: Vec<(&'a str, usize)>,
    modules: &'a BTreeMap<Vec<&'a str>, &'a str>,
    found: Vec<Found>,
}

impl<'a> Scan<'a> {
    fn text(&self, ahead: usize) -> &'a str {
        self.tokens.get(self.at + ahead).map_or("", |t| t.text)
    }

    fn run(&mut self) {
        let mut depth = 0;
        // Whether `pub` stands before the item that begins here.
        let mut public = false;
        while self.at < self.tokens.len() {
            let before = if self.at == 0 { "" } else { self.tokens[self.at - 1].text };
            match self.text(0) {
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    self.inline.pop_if(|(_, end)| *end == depth);
                }
                "mod" if self.text(2) == "{" => self.inline.push((self.text(1), depth)),
                "pub" => public = true,
                ";" => public = false,
                "use" => {
                    self.at += 1;
                    self.tree(Vec::new(), public);
                    public = false;
                    continue;
                }
                name if self.text(1) == "::" && before != "::" && self.resolves(name) => {
                    let line = self.tokens[self.at].line;
                    let mut path = vec![name];
                    while self.text(1) == "::" && is_name(self.text(2)) {
                        path.push(self.text(2));
                        self.at += 2;
                    }
                    self.keep(&path, line, false);
                }
                "fn" | "struct" | "enum" | "trait" | "const" | "static" | "type" => public = false,
                _ => {}
            }
            self.at += 1;
        }
    }

    /// Whether a path that begins so leads somewhere in this crate.
    fn resolves(&self, first: &str) -> bool {
        let child: Vec<&str> = self.here().chain([first]).collect();
        matches!(first, "crate" | "super" | "self") || self.inline.is_empty() && self.modules.contains_key(&child)
    }

    fn here(&self) -> impl Iterator<Item = &'a str> {
        self.module.iter().copied().chain(self.inline.iter().map(|(name, _)| *name))
    }

    /// A use tree behind `prefix`; ends behind it.
    fn tree(&mut self, mut prefix: Vec<&'a str>, shown: bool) {
        let line = self.tokens.get(self.at).map_or(0, |t| t.line);
        loop {
            match self.text(0) {
                "{" => {
                    self.at += 1;
                    while !matches!(self.text(0), "}" | "") {
                        self.tree(prefix.clone(), shown);
                        if self.text(0) == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "::" => self.at += 1,
                "as" => self.at += 2,
                "self" if !prefix.is_empty() => self.at += 1,
                name if is_name(name) || name == "*" => {
                    prefix.push(name);
                    self.at += 1;
                }
                _ => break,
            }
        }
        self.keep(&prefix, line, shown);
    }

    fn keep(&mut self, path: &[&str], line: usize, shown: bool) {
        let Some(first) = path.first().filter(|first| self.resolves(first)) else { return };
        let mut full: Vec<String> = match *first {
            "crate" => Vec::new(),
            _ => self.here().map(String::from).collect(),
        };
        for part in path {
            match *part {
                "crate" | "self" => {}
                "super" => drop(full.pop()),
                part => full.push(part.to_string()),
            }
        }
        self.found.push(Found { full, line, shown });
    }
}

#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::` and single characters, without comments, strings and lifetimes.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let name = |c: char| c.is_alphanumeric() || c == '_';
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |n| n + 2)
        } else if let Some(hashes) = raw_string(rest) {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = rest.find('"').unwrap() + 1;
            rest[start..].find(&end).map_or(rest.len(), |n| start + n + end.len())
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' {
            // A character, or a lifetime.
            let mut chars = rest[1..].chars();
            let (a, b) = (chars.next(), chars.next());
            if a == Some('\\') || b == Some('\'') { quoted(rest, '\'') } else { 1 }
        } else if name(first) {
            rest.find(|c| !name(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let word = &rest[..len];
        if (name(first) || len <= 2) && !first.is_whitespace() && !matches!(first, '"' | '\'' | '/') {
            found.push(Token { text: word, line });
        }
        line += word.matches('\n').count();
        at += len;
    }
    found
}

/// The number of `#` of a raw string that begins here.
fn raw_string(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("br").or(text.strip_prefix('r'))?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Bytes up to and with the closing quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return i + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Leaves out items under `#[cfg(test)]` and `#[cfg(all(test, ...))]`.
fn without_tests(tokens: Vec<Token<'_>>) -> Vec<Token<'_>> {
    let starts = |at: usize, with: &[&str]| {
        with.iter().enumerate().all(|(i, want)| tokens.get(at + i).is_some_and(|t| t.text == *want))
    };
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if starts(at, &["#", "[", "cfg", "(", "test", ")"]) || starts(at, &["#", "[", "cfg", "(", "all", "(", "test"]) {
            // Past the item: the first `;` outside brackets, or the end of its braces.
            let mut depth = 0;
            while at < tokens.len() {
                match tokens[at].text {
                    "{" | "(" | "[" => depth += 1,
                    ")" | "]" => depth -= 1,
                    "}" => {
                        depth -= 1;
                        if depth <= 0 {
                            break;
                        }
                    }
                    ";" if depth == 0 => break,
                    _ => {}
                }
                at += 1;
            }
        } else {
            kept.push(tokens[at]);
        }
        at += 1;
    }
    kept
}
