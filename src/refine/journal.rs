//! What lets a conversion with error feedback go on after a kill: beside the output, a line of JSON about the run and one
//! per finished layer. The blocks themselves are in the unfinished files, which the first line names; a layer's line is
//! written when its blocks are on the disk. A line that a kill cut short does not count.

use super::Refused;
use crate::calibration::stats::Input;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// The first line.
#[derive(Serialize, Deserialize)]
struct Run {
    /// What the run is of: an equal one alone goes on.
    key: Value,
    /// Unfinished files: of every target the shards with ggml's search, then those with feedback.
    files: Vec<PathBuf>,
}

/// What one layer adds. Floating-point numbers as their bits, so that none changes on the way.
#[derive(Serialize, Deserialize)]
struct Line {
    layer: usize,
    inputs: Vec<Sums>,
    refused: Vec<Refused>,
    /// Per target, all layers so far.
    kept: Vec<usize>,
    /// Per target: outputs whose blocks are complete.
    done: Vec<Vec<usize>>,
}

#[derive(Serialize, Deserialize)]
struct Sums {
    linear: String,
    cols: usize,
    sum2: Vec<u64>,
    abs: Vec<u64>,
    counts: Vec<u64>,
}

/// All that finished layers left behind, beside their blocks.
#[derive(Debug, Default)]
pub struct Finished {
    pub layers: usize,
    pub inputs: BTreeMap<String, Input>,
    pub refused: Vec<Refused>,
    pub kept: Vec<usize>,
    pub done: Vec<Vec<usize>>,
}

/// An open journal. It removes itself when dropped, unless it was told that the unfinished files stay.
pub struct Journal {
    path: PathBuf,
    file: File,
    layers: usize,
    stays: bool,
}

impl Journal {
    /// Begins one.
    ///
    /// Errors: `Io`.
    pub fn create(path: &Path, key: Value, files: Vec<PathBuf>) -> Result<Journal> {
        let io = |e| Error::io(path, e);
        let mut file = File::create(path).map_err(io)?;
        write_line(&mut file, &Run { key, files }).map_err(io)?;
        Ok(Journal { path: path.to_path_buf(), file, layers: 0, stays: false })
    }

    /// Removes the journal of a run that will not go on, and its unfinished files.
    pub fn forget(path: &Path) {
        let Ok((run, _, _)) = read(path) else { return };
        let own = |f: &&PathBuf| f.parent() == path.parent() && f.extension().is_some_and(|e| e == "partial");
        for file in run.files.iter().filter(own) {
            let _ = std::fs::remove_file(file);
        }
        let _ = std::fs::remove_file(path);
    }

    /// Opens the journal of an earlier run with the same key: itself, the unfinished files, and what is finished. `None`
    /// where there is none.
    ///
    /// Errors: `Usage` when it is of another run, `Io`.
    pub fn resume(path: &Path, key: &Value) -> Result<Option<(Journal, Vec<PathBuf>, Finished)>> {
        if !path.exists() {
            return Ok(None);
        }
        let (run, finished, len) = read(path)?;
        if run.key != *key {
            let text = |v: &Value| v.to_string();
            let differs = run.key.as_object().and_then(|o| o.iter().find(|(k, v)| key.get(k) != Some(v)));
            let (what, was) = differs.map_or(("something", String::new()), |(k, v)| (k.as_str(), text(v)));
            let hint = "repeat the command as it was, or leave --resume away to begin again";
            return Err(Error::Usage(format!(
                "{}: the interrupted run was another one: its {what} was {was}\n  hint: {hint}",
                path.display()
            )));
        }
        let io = |e| Error::io(path, e);
        let file = File::options().append(true).open(path).map_err(io)?;
        file.set_len(len).map_err(io)?;
        let layers = finished.layers;
        Ok(Some((Journal { path: path.to_path_buf(), file, layers, stays: false }, run.files, finished)))
    }

    /// Layers that are finished.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Whether the unfinished files stay where they are, and this with them.
    pub fn stays(&mut self, on: bool) {
        self.stays = on;
    }

    /// Notes a layer whose blocks are on the disk: the inputs and refusals that it added, and the state of all targets.
    ///
    /// Errors: `Io`.
    pub fn layer(
        &mut self,
        inputs: &[(&String, &Input)],
        refused: &[Refused],
        kept: &[usize],
        done: &[Vec<bool>],
    ) -> Result<()> {
        let bits = |x: &[f64]| x.iter().map(|v| v.to_bits()).collect();
        let sums = |(linear, input): &(&String, &Input)| Sums {
            linear: linear.to_string(),
            cols: input.cols,
            sum2: bits(&input.sum2),
            abs: bits(&input.abs),
            counts: input.counts.clone(),
        };
        let complete = |done: &Vec<bool>| (0..done.len()).filter(|i| done[*i]).collect();
        let line = Line {
            layer: self.layers,
            inputs: inputs.iter().map(sums).collect(),
            refused: refused.to_vec(),
            kept: kept.to_vec(),
            done: done.iter().map(complete).collect(),
        };
        let written = write_line(&mut self.file, &line).and_then(|()| self.file.sync_data());
        written.map_err(|e| Error::io(&self.path, e))?;
        self.layers += 1;
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.stays {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn write_line(file: &mut File, line: &impl Serialize) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

/// The first line, what the others add up to, and how many bytes of the file they are.
fn read(path: &Path) -> Result<(Run, Finished, u64)> {
    let io = |e| Error::io(path, e);
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| -> Result<bool> {
        line.clear();
        reader.read_until(b'\n', line).map_err(io)?;
        Ok(line.pop() == Some(b'\n'))
    };
    let first = next(&mut line)?.then(|| serde_json::from_slice::<Run>(&line).ok()).flatten();
    let run = first.ok_or_else(|| {
        Error::bad_file(path, "is no journal of an interrupted conversion").hint("remove it, and run without --resume")
    })?;
    let (mut finished, mut len) = (Finished::default(), line.len() as u64 + 1);
    while next(&mut line)? {
        let Ok(Line { layer, inputs, refused, kept, done }) = serde_json::from_slice(&line) else { break };
        if layer != finished.layers {
            break;
        }
        let number = |bits: Vec<u64>| bits.into_iter().map(f64::from_bits).collect();
        for Sums { linear, cols, sum2, abs, counts } in inputs {
            finished.inputs.insert(linear, Input { cols, sum2: number(sum2), abs: number(abs), counts });
        }
        finished.layers += 1;
        finished.refused.extend(refused);
        (finished.kept, finished.done) = (kept, done);
        len += line.len() as u64 + 1;
    }
    Ok((run, finished, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cut_line_does_not_count_and_another_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.resume");
        let input = Input { cols: 1, sum2: vec![0.1 + 0.2], abs: vec![f64::MIN_POSITIVE], counts: vec![7] };
        let name = "blk.0.x".to_string();
        let refused = Refused { target: 0, tensor: "t".into(), expert: Some(1), reason: "r".into() };
        let partial = dir.path().join(".a.partial");
        std::fs::write(&partial, b"x").unwrap();
        let mut journal = Journal::create(&path, json!({ "to": "q4_k" }), vec![partial.clone()]).unwrap();
        journal.layer(&[(&name, &input)], std::slice::from_ref(&refused), &[1], &[vec![true, false]]).unwrap();
        journal.layer(&[], &[], &[3], &[vec![true, true]]).unwrap();
        journal.stays(true);
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let (journal, files, finished) = Journal::resume(&path, &json!({ "to": "q4_k" })).unwrap().unwrap();
        assert_eq!((journal.layers(), &finished.kept, &finished.done), (2, &vec![3], &vec![vec![0, 1]]));
        assert_eq!(files, std::slice::from_ref(&partial));
        assert_eq!((&finished.inputs[&name], &finished.refused), (&input, &vec![refused]));
        std::mem::forget(journal);
        // Any cut leaves the layers before it.
        for cut in [1, 40] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (mut journal, _, finished) = Journal::resume(&path, &json!({ "to": "q4_k" })).unwrap().unwrap();
            assert_eq!((finished.layers, &finished.done), (1, &vec![vec![0]]));
            journal.layer(&[], &[], &[3], &[vec![true, true]]).unwrap();
            journal.stays(true);
            drop(journal);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        let other = Journal::resume(&path, &json!({ "to": "q5_k" })).err().unwrap();
        assert!(matches!(&other, Error::Usage(text) if text.contains("to was \"q4_k\"")), "{other}");
        Journal::forget(&path);
        assert!(!path.exists() && !partial.exists());
        assert!(Journal::resume(&path, &json!({})).unwrap().is_none());
    }
}
