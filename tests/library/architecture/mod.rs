//! Imports go down the storeys of `src` only, and files of one folder do not import each other in a circle. What does not
//! hold yet is listed in `allowed.txt`; a line there that is not needed fails, too, so the list only shrinks.

mod scan;

use crate::common::repo;
use regex::Regex;
use scan::{Files, Import, imports};
use std::collections::{BTreeMap, BTreeSet};

/// The storeys, lowest first. Modules on one line share a storey.
const STOREYS: &[&[&str]] = &[
    &["escape"],
    &["error"],
    &["control", "template"],
    &["input", "disk"],
    &["isa", "dtype", "digest", "clock", "made", "minifloat"],
    &["simd"],
    &["quant"],
    &["kernel"],
    &["feedback"],
    &["packed"],
    &["gguf"],
    &["card"],
    &["source"],
    &["model"],
    &["infer"],
    &["eval"],
    &["matrix"],
    &["writer"],
    &["edit"],
    &["calibration"],
    &["awq"],
    &["convert"],
    &["report"],
    &["check"],
    &["release"],
    &["cli"],
    &["lib", "main"],
];

/// Folders whose files must not import each other in a circle.
const WITHOUT_CIRCLES: &[&str] = &[
    "awq",
    "calibration",
    "check",
    "cli",
    "convert",
    "edit",
    "eval",
    "feedback",
    "gguf",
    "kernel",
    "report",
    "writer",
];

/// The module of the crate's root that a file belongs to.
fn top(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

fn storey(module: &str) -> usize {
    let found = STOREYS.iter().position(|names| names.contains(&module));
    found.unwrap_or_else(|| panic!("src/{module} has no storey; give it one in tests/library/architecture"))
}

/// What breaks the rules: a line for each, with where to look.
fn offences(files: &Files) -> BTreeMap<String, String> {
    let imports = imports(files);
    let mut found = BTreeMap::new();
    let goes_up = |i: &Import| storey(top(&i.from)) < storey(top(&i.to));
    for import in imports.iter().filter(|i| goes_up(i)) {
        let place = format!("src/{}:{}", import.from, import.line);
        found.entry(format!("up: {} -> {}", import.from, top(&import.to))).or_insert(place);
    }
    // Those that go up are told already; without them a circle can only lie on one storey.
    let level = imports.iter().filter(|i| !goes_up(i) && top(&i.from) != top(&i.to));
    for circle in circles(level.map(|i| (top(&i.from), top(&i.to)))) {
        found.insert(format!("circle: {}", circle.join(", ")), "see their imports of each other".into());
    }
    for folder in WITHOUT_CIRCLES {
        // What a module shows of its parts is no dependence of theirs on it.
        let inside = imports.iter().filter(|i| !i.shown && top(&i.from) == *folder && top(&i.to) == *folder);
        for circle in circles(inside.map(|i| (i.from.as_str(), i.to.as_str()))) {
            for file in &circle {
                let own = |i: &&Import| !i.shown && i.from == *file && circle.contains(&i.to.as_str());
                let places = imports.iter().filter(own).map(|i| format!("src/{}:{} -> {}", i.from, i.line, i.to));
                found.insert(format!("circle in {folder}: {file}"), places.collect::<Vec<_>>().join(", "));
            }
        }
    }
    // The parts of a folder, each a file or a folder.
    let parents = files.keys().filter_map(|file| Some(file.rsplit_once('/')?.0));
    let folders: BTreeSet<&str> =
        parents.flat_map(|folder| std::iter::successors(Some(folder), |f| Some(f.rsplit_once('/')?.0))).collect();
    for folder in folders {
        let inside = imports.iter().filter(|i| !i.shown);
        let arrows =
            inside.filter_map(|i| Some((part(folder, &i.from)?, part(folder, &i.to)?))).filter(|(a, b)| a != b);
        for circle in circles(arrows) {
            found.insert(format!("parts of {folder}: {}", circle.join(", ")), "see their imports of each other".into());
        }
    }
    found
}

/// The part of a folder that a file is, or is in; `None` for the folder's own file and for those of other folders.
fn part<'a>(folder: &str, file: &'a str) -> Option<&'a str> {
    let inside = file.strip_prefix(folder)?.strip_prefix('/')?;
    let part = inside.split('/').next()?.trim_end_matches(".rs");
    (part != "mod").then_some(part)
}

/// Groups of two or more that can all be reached from each other.
fn circles<'a>(arrows: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Vec<&'a str>> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in arrows {
        next.entry(from).or_default().insert(to);
    }
    let reach = |start: &'a str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(at) = open.pop() {
            open.extend(next.get(at).into_iter().flatten().copied().filter(|to| seen.insert(*to)));
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> = next.keys().map(|from| (*from, reach(from))).collect();
    let group = |from: &&'a str| {
        let back = |to: &&'a str| reached.get(to).is_some_and(|r| r.contains(from));
        reached[from].iter().copied().filter(back).collect::<Vec<_>>()
    };
    let groups: BTreeSet<Vec<&str>> = reached.keys().map(group).filter(|group| group.len() > 1).collect();
    groups.into_iter().collect()
}

#[test]
fn imports_go_down() {
    let found = offences(&sources_of_both());
    let path = repo("tests/library/architecture/allowed.txt");
    let allowed = std::fs::read_to_string(path).unwrap();
    let allowed: BTreeSet<&str> = allowed.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    let new: Vec<String> =
        found.iter().filter(|(o, _)| !allowed.contains(o.as_str())).map(|(o, at)| format!("{o} ({at})")).collect();
    let gone: Vec<&str> = allowed.iter().copied().filter(|line| !found.contains_key(*line)).collect();
    assert!(new.is_empty(), "imports that the storeys forbid:\n{}", new.join("\n"));
    assert!(gone.is_empty(), "mended; remove from tests/library/architecture/allowed.txt:\n{}", gone.join("\n"));
}

#[test]
fn only_the_command_line_names_its_flags() {
    // Those of other programs, in comparisons and in model cards.
    let foreign = [
        "--features",
        "--ignore-missing",
        "--include",
        "--kl-divergence-base",
        "--local-dir",
        "--lora",
        "--merge",
        "--mmproj",
        "--model",
        "--prompt",
    ];
    each_line_of_the_library(|file, i, line| {
        let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let flag = |word: &&str| {
            let name = word.strip_prefix("--");
            name.is_some_and(|n| n.starts_with(|c: char| c.is_ascii_lowercase())) && !foreign.contains(word)
        };
        let found: Vec<&str> = words.filter(flag).collect();
        assert!(found.is_empty(), "src/{file}:{i} names {found:?}; use a Hint and src/cli/words.rs");
    });
}

#[test]
fn the_library_names_no_commands() {
    // In model cards, which tell how things are checked; and the kind of a job's file.
    let meant = ["card/mod.rs", "release/card.rs"];
    let command = Regex::new("quantize ([a-z]+)\\b").unwrap();
    let names: Vec<&str> = "calibrate chat compare diff edit eval families generate inspect job plan pull push release report types verify"
        .split(' ')
        .collect();
    each_line_of_the_library(|file, i, line| {
        let of_a_job = line.contains("quantize job 1");
        let named = command.captures_iter(line).any(|found| names.contains(&&found[1]) && !of_a_job);
        assert!(!named || meant.contains(&file), "src/{file}:{i} names a command; use a Hint and src/cli/words.rs");
    });
}

/// The lines of all files but the command line's, without comments: the file, the line's number, the line.
fn each_line_of_the_library(mut see: impl FnMut(&str, usize, &str)) {
    for (file, text) in scan::files(&repo("src")).iter().filter(|(file, _)| top(file) != "cli") {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        lines.for_each(|(i, line)| see(file, i + 1, line));
    }
}

#[test]
fn documents_name_files_that_exist() {
    let path = Regex::new("`((?:src|core|tests|docs|calibration|examples|packaging)/[^`\\s]*)`").unwrap();
    let documents = ["docs", "docs/adr"].into_iter().flat_map(|folder| {
        let names = std::fs::read_dir(repo(folder)).unwrap().map(|e| e.unwrap().path());
        names.filter(|p| p.extension().is_some_and(|e| e == "md")).collect::<Vec<_>>()
    });
    for document in documents.chain(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(repo)) {
        let text = std::fs::read_to_string(&document).unwrap();
        for named in path.captures_iter(&text).map(|found| found[1].to_string()) {
            // `src/packed/TOOL.rs` stands for any.
            let stands_for_any = named.contains(|c: char| c.is_ascii_uppercase() || "*{<$".contains(c));
            let file = repo(named.split('#').next().unwrap().trim_end_matches('/'));
            let there = file.exists() || file.with_extension("rs").exists() || stands_for_any;
            assert!(there, "{}: there is no {named}", document.display());
        }
    }
}

/// The program's files and those of its arithmetic, which it shows under the same names.
fn sources_of_both() -> Files {
    let mut files = scan::files(&repo("core/src"));
    files.remove("lib.rs");
    files.extend(scan::files(&repo("src")));
    files
}

fn sources(files: &[(&str, &str)]) -> Files {
    files.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
}

fn found(files: &[(&str, &str)]) -> Vec<String> {
    offences(&sources(files)).into_keys().collect()
}

#[test]
fn planted_imports_are_found() {
    let planted = |text: &str| {
        let all = [
            ("quant/mod.rs", ""),
            ("quant/deep/mod.rs", text),
            ("cli/mod.rs", ""),
            ("cli/args.rs", ""),
            ("model.rs", ""),
            ("gguf.rs", ""),
        ];
        found(&all)
    };
    let up = |module: &str| vec![format!("up: quant/deep/mod.rs -> {module}")];
    for text in [
        "use crate::cli::args::Format;",
        "pub(super) use crate::{Error, cli::{self, args}, quant};",
        "use super::super::cli as c;",
        "fn f() { let x = crate::cli::args::run(1); }",
        "fn f(x: &super::super::cli::args::Args) {}",
        "mod inner { use super::super::super::cli::args; }",
        "#[cfg(any(test, unix))] use crate::cli::args;",
        "const C: char = '\"'; use crate::cli::args; const D: &str = \"\\\"\";",
        "fn f<'a>(x: &'a str) -> &'a str { crate::cli::args::f(x) }",
        "#[cfg(test)] mod tests { use super::*; fn f() { [1; 3]; } } use crate::cli::args;",
        "#[cfg(test)] mod tests; use crate::cli::args;",
    ] {
        assert_eq!(planted(text), up("cli"), "{text}");
    }
    for text in [
        "// use crate::cli::args;",
        "/* crate::cli::args */ const A: &str = \"crate::cli::args\"; const B: &str = r#\"\" crate::cli::args\"#;",
        "#[cfg(test)] mod tests { use crate::cli::args; fn f() { if true { crate::cli::args::f() } } }",
        "#[cfg(test)] use crate::cli::args;",
        "#[cfg(all(test, unix))] fn f() { crate::cli::args::g(); }",
        "use super::Other; use std::cli::args; use cli::args;",
    ] {
        assert_eq!(planted(text), Vec::<String>::new(), "{text}");
    }
    assert_eq!(planted("use crate::{gguf::A, model::B};"), [up("gguf"), up("model")].concat());
}

#[test]
fn planted_circles_are_found() {
    // On one storey.
    let both = [("isa/a.rs", "use crate::dtype::x;"), ("dtype.rs", "fn f() { crate::isa::a::g() }")];
    assert_eq!(found(&both), ["circle: dtype, isa"]);
    assert_eq!(found(&both[..1]), Vec::<String>::new());
    // In a folder: three files, and a fourth that only looks on.
    let three = [
        ("cli/a.rs", "use super::b::f;"),
        ("cli/b.rs", "use super::{c, d};"),
        ("cli/c.rs", "fn f() { super::a::g() }"),
        ("cli/d.rs", ""),
    ];
    let files = ["cli/a.rs", "cli/b.rs", "cli/c.rs"].map(|file| format!("circle in cli: {file}"));
    assert_eq!(found(&three), [&files[..], &["parts of cli: a, b, c".into()]].concat());
    // Two parts of a folder, no file of which imports itself again.
    let parts = [
        ("model/a/x.rs", "use crate::model::b::y;"),
        ("model/a/w.rs", ""),
        ("model/b/y.rs", ""),
        ("model/b/z.rs", "use crate::model::a::w;"),
    ];
    assert_eq!(found(&parts), ["parts of model: a, b"]);
    // A module may show what its parts hold, but not work with them and be used by them.
    let shown = [("cli/mod.rs", "mod a; pub use a::f;"), ("cli/a.rs", "use super::Args;")];
    assert_eq!(found(&shown), Vec::<String>::new());
    let used = [("cli/mod.rs", "mod a; fn run() { a::f() }"), ("cli/a.rs", "use super::Args;")];
    assert_eq!(found(&used), ["cli/a.rs", "cli/mod.rs"].map(|file| format!("circle in cli: {file}")));
}
