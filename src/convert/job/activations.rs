//! What enters some layers, window by window, handed from the tasks that take the windows through the model to those that
//! round the layers behind. A window does not know of the others, so how they are shared out changes no bit; the tasks that round
//! add up all of them, in their order.

use crate::calibration::layerwise;
use crate::control::{Run, Unit};
use crate::convert::files::parts;
use crate::convert::plan::Plan;
use crate::disk::Written;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Behind the activations of a window.
const HASH: u64 = 32;

/// The file of what enters a layer, in the folder of a task: of each of its windows the activations, and their SHA-256.
fn file(folder: &Path, layer: usize) -> PathBuf {
    folder.join(format!("layer-{layer}"))
}

/// Takes some windows through the model, and writes what enters the layers `cuts`.
///
/// # Errors
/// Those of the pass; `Io`.
pub fn write(plan: &Plan, windows: &Range<usize>, cuts: &[usize], own: &Path, run: Run) -> Result<()> {
    let all = parts::windows(plan)?;
    let chosen = all.get(windows.clone());
    let chosen = chosen.ok_or_else(|| Error::bad_input("the job has no such calibration windows"))?;
    let options = layerwise::Options {
        bf16: true,
        max_memory: run.control.max_memory,
        spill: own.to_path_buf(),
        ..layerwise::Options::default()
    };
    let mut files: BTreeMap<usize, (Written, u64)> = BTreeMap::new();
    for layer in cuts {
        let path = file(own, *layer);
        files.insert(*layer, (Written::open_public(&path).map_err(|e| Error::io(&path, e))?, 0));
    }
    let mut keep = |layer: usize, x: &[f32]| -> Result<()> {
        let Some((file, at)) = files.get_mut(&layer) else { return Ok(()) };
        let bytes: &[u8] = bytemuck::cast_slice(x);
        let written =
            file.write_at(*at, bytes).and_then(|()| file.write_at(*at + bytes.len() as u64, &Sha256::digest(bytes)));
        written.map_err(|e| Error::io(file.path(), e))?;
        *at += bytes.len() as u64 + HASH;
        Ok(())
    };
    let layers = cuts.last().copied().unwrap_or(0) as u64;
    let tokens = chosen.iter().map(|window| window.len() as u64).sum::<u64>();
    let _phase = run.phase("calibrating", tokens * layers, Unit::TokensByLayer(layers));
    layerwise::forward(&plan.source.ckpt, &plan.source.model, chosen, &options, cuts, &mut keep, run)
        .map_err(|e| e.in_file(&plan.source.path))?;
    files.values().try_for_each(|(file, _)| file.sync().map_err(|e| Error::io(file.path(), e)))
}

/// What enters a layer.
pub struct Entering<'a> {
    /// Which windows the tasks have taken, and their folders.
    pub parts: &'a [(Range<usize>, PathBuf)],
    pub layer: usize,
    /// Bytes of the activations of every window.
    pub bytes: Vec<u64>,
}

impl Entering<'_> {
    /// The activations of a window.
    ///
    /// # Errors
    /// `BadInput` where they are not there, or not what was written.
    pub fn of(&self, window: usize) -> Result<Vec<f32>> {
        let part = self.parts.iter().find(|(windows, _)| windows.contains(&window));
        let (windows, folder) = part.ok_or_else(|| Error::bad_input(format!("no task takes the window {window}")))?;
        let path = file(folder, self.layer);
        let before: u64 = self.bytes.iter().take(window).skip(windows.start).map(|bytes| bytes + HASH).sum();
        let mut x = vec![0f32; (self.bytes.get(window).copied().unwrap_or(0) / 4) as usize];
        let mut hash = [0; HASH as usize];
        let mut read = || -> std::io::Result<()> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(before))?;
            file.read_exact(bytemuck::cast_slice_mut(&mut x))?;
            file.read_exact(&mut hash)
        };
        let whole = read().is_ok();
        match whole && Sha256::digest(bytemuck::cast_slice::<f32, u8>(&x)).as_slice() == hash {
            true => Ok(x),
            false => {
                let hint = format!("remove {}, and run its task again", folder.display());
                Err(Error::bad_file(&path, "is not what its task has written").hint(hint))
            }
        }
    }
}
