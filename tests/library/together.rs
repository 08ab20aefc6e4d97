//! Files that get their names together: a kill anywhere leaves what the next run brings to its end.

use quantize::convert::together::Together;
use quantize::disk;
use quantize::disk::fault::{self, Fault};
use quantize::disk::partial::PartialFile;
use quantize::{Control, Error, Result, Run};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A run that reads `input` and writes two files. What it had from an earlier one.
fn run(dir: &Path, of: &str) -> (bool, Result<()>) {
    let control = Control::default();
    let run = Run::new(&control, &());
    let (a, b, input) = (dir.join("a.json"), dir.join("sub/b.html"), dir.join("input"));
    let mut together = match Together::begin(&[&a, &b], json!(of), [input.as_path()], run) {
        Ok(together) => together,
        Err(e) => return (false, Err(e)),
    };
    if together.said(&[&a, &b]).is_some() {
        assert_eq!(together.said(&[&a, &b]), Some(&json!(["said", of])));
        together.forget(run);
        return (true, Ok(()));
    }
    let made = |path: &Path| -> Result<PartialFile> {
        let file = PartialFile::create(path, together.has(path))?;
        file.write_at(0, of.as_bytes())?;
        Ok(file)
    };
    let files = made(&a).and_then(|a| Ok(vec![a, made(&b)?]));
    (false, files.and_then(|files| together.publish(files, &json!(["said", of]), run)))
}

fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("input"), "input").unwrap();
    dir
}

fn left(dir: &Path) -> Vec<String> {
    let names = |folder: &Path| std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
    let mut all: Vec<String> =
        names(dir).chain(names(&dir.join("sub"))).map(|name| name.into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn a_kill_anywhere_leaves_what_the_next_run_brings_to_its_end() {
    let dir = prepared();
    let ((_, done), seen) = fault::with(dir.path(), usize::MAX, Fault::None, || run(dir.path(), "one"));
    done.unwrap();
    let whole = left(dir.path());
    assert_eq!(whole, ["a.json", "b.html", "input", "sub"]);
    let (mut again, mut known) = (0, 0);
    for n in 0..seen.operations.len() {
        let dir = prepared();
        let (_, _) = fault::with(dir.path(), n, Fault::Kill, || run(dir.path(), "one"));
        let (was_known, next) = run(dir.path(), "one");
        next.unwrap_or_else(|e| panic!("killed at {n} ({:?}): {e}", seen.operations[n]));
        (again, known) = (again + usize::from(!was_known), known + usize::from(was_known));
        assert_eq!(left(dir.path()), whole, "killed at {n}");
    }
    assert!(again > 5 && known > 2, "{again} {known}");
}

/// A run makes an output, and then says something of it: what is written down of the output goes when that of the file
/// which is said of it tells of both.
#[test]
fn what_is_said_of_an_output_belongs_to_it() {
    let work = |dir: &Path| -> Result<&str> {
        let control = Control::default();
        let run = Run::new(&control, &());
        let (output, note, said) = (dir.join("output"), dir.join(".output.note"), dir.join("output").join("said.md"));
        let together = Together::begin_beside_outputs(&[&said], json!("one"), [dir.join("input").as_path()], run)?;
        if together.said(&[&said]).is_some() {
            let mut together = together;
            std::fs::remove_file(&note).unwrap_or_default();
            together.forget(run);
            return Ok("nothing");
        }
        let made = output.exists();
        if !made {
            std::fs::create_dir(&output).unwrap();
            std::fs::write(output.join("quantize-manifest.json"), "{}").unwrap();
            std::fs::write(&note, "made").unwrap();
        } else if !note.exists() {
            return Err(Error::Exists { path: output, what: "exists", replaceable: true });
        }
        let file = PartialFile::create(&said, together.has(&said))?;
        file.write_at(0, b"text")?;
        let end = || disk::remove_file(&note).unwrap_or_default();
        together.publish_beside(std::slice::from_ref(&output), vec![file], &json!("said"), run, end)?;
        Ok(if made { "said" } else { "all" })
    };
    let dir = prepared();
    let (done, seen) = fault::with(dir.path(), usize::MAX, Fault::None, || work(dir.path()));
    assert_eq!(done.unwrap(), "all");
    let mut ends = Vec::new();
    for n in 0..seen.operations.len() {
        let dir = prepared();
        let _ = fault::with(dir.path(), n, Fault::Kill, || work(dir.path()));
        ends.push(work(dir.path()).unwrap_or_else(|e| panic!("killed at {n} ({:?}): {e}", seen.operations[n])));
        assert_eq!(left(dir.path()), ["input", "output", "sub"], "killed at {n} ({:?})", seen.operations[n]);
        let inside: Vec<_> = std::fs::read_dir(dir.path().join("output")).unwrap().collect();
        assert_eq!(inside.len(), 2, "killed at {n}: {inside:?}");
    }
    assert!(["said", "nothing"].iter().all(|end| ends.contains(end)), "{ends:?}");
}

#[test]
fn only_an_equal_run_has_finished_them() {
    let record = |dir: &Path| left(dir).iter().any(|name| name.ends_with(".publishing"));
    let killed = || {
        let dir = prepared();
        let (_, seen) = fault::with(dir.path(), usize::MAX, Fault::None, || run(dir.path(), "one"));
        let renamed = |(what, path): &(String, PathBuf)| what == "rename" && path.ends_with("b.html");
        let at = seen.operations.iter().position(renamed).unwrap();
        let dir = prepared();
        fault::with(dir.path(), at, Fault::Kill, || run(dir.path(), "one")).0.1.unwrap_err();
        assert!(record(dir.path()) && !dir.path().join("sub/b.html").exists());
        dir
    };
    // Another recipe, another input, another file of the name: the set is whole, and in the way.
    for change in 0..3 {
        let dir = killed();
        let of = if change == 0 { "two" } else { "one" };
        if change == 1 {
            std::fs::write(dir.path().join("input"), "another input").unwrap();
        }
        if change == 2 {
            std::fs::write(dir.path().join("a.json"), "somebody's").unwrap();
        }
        let (known, done) = run(dir.path(), of);
        assert!(!known && matches!(done, Err(Error::Exists { .. })), "{change}: {done:?}");
        assert_eq!(std::fs::read_to_string(dir.path().join("sub/b.html")).unwrap(), "one");
    }
    let dir = killed();
    assert!(matches!(run(dir.path(), "one"), (true, Ok(()))));
    assert!(!record(dir.path()));
}
