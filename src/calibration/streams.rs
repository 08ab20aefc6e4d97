//! The residual streams of all windows between two layers of a model: in memory, or in a file beyond a limit.

use crate::disk::free_space;
use crate::writer::gguf::human;
use crate::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// One stream per window, `[tokens, width]`.
pub(super) struct Streams {
    slots: Vec<Slot>,
    file: Option<File>,
    /// Bytes of all of them.
    pub bytes: u64,
}

enum Slot {
    Memory(Vec<f32>),
    /// Place and length in the file, in bytes and elements.
    File(u64, usize),
}

impl Streams {
    /// Places for windows of `width` channels. The first that fit into `max_memory` bytes stay in memory, the others go to
    /// a file without a name in the folder `spill`.
    pub fn new(windows: &[Vec<u32>], width: usize, max_memory: Option<u64>, spill: &Path) -> Result<Self> {
        let limit = max_memory.unwrap_or(u64::MAX);
        let (mut used, mut spilled) = (0, 0);
        let mut slots = Vec::with_capacity(windows.len());
        for window in windows {
            let (len, bytes) = (window.len() * width, (window.len() * width * 4) as u64);
            if used + bytes <= limit {
                used += bytes;
                slots.push(Slot::Memory(Vec::new()));
            } else {
                slots.push(Slot::File(spilled, len));
                spilled += bytes;
            }
        }
        let file = match spilled {
            0 => None,
            _ => Some(tempfile::tempfile_in(spill).map_err(|e| Error::io(spill, e))?),
        };
        if let Some(free) = free_space(&spill.join("spill")).filter(|free| *free < spilled) {
            let (need, dir, free) = (human(spilled), spill.display(), human(free));
            return Err(Error::storage(format!("activations need {need} in the folder {dir}, which has {free} free")));
        }
        Ok(Streams { slots, file, bytes: used + spilled })
    }

    /// Takes the stream of a window.
    pub fn get(&mut self, window: usize) -> Result<Vec<f32>> {
        match (&mut self.slots[window], &mut self.file) {
            (Slot::Memory(x), _) => Ok(std::mem::take(x)),
            (Slot::File(at, len), Some(file)) => {
                let mut x = vec![0f32; *len];
                let found = file.seek(SeekFrom::Start(*at));
                found.and_then(|_| file.read_exact(bytemuck::cast_slice_mut(&mut x))).map_err(spill_error)?;
                Ok(x)
            }
            (Slot::File(..), None) => Err(Error::Internal("no file of activations".into())),
        }
    }

    /// Gives it back, changed.
    pub fn put(&mut self, window: usize, x: Vec<f32>) -> Result<()> {
        match (&mut self.slots[window], &mut self.file) {
            (Slot::Memory(slot), _) => *slot = x,
            (Slot::File(at, _), Some(file)) => {
                let found = file.seek(SeekFrom::Start(*at));
                found.and_then(|_| file.write_all(bytemuck::cast_slice(&x))).map_err(spill_error)?;
            }
            (Slot::File(..), None) => return Err(Error::Internal("no file of activations".into())),
        }
        Ok(())
    }

    /// Gives it back as it was.
    pub fn keep(&mut self, window: usize, x: Vec<f32>) {
        if let Slot::Memory(slot) = &mut self.slots[window] {
            *slot = x;
        }
    }

    /// Hands over the bytes of one after the other; each has been put in.
    pub fn each(&mut self, mut to: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        let mut read = Vec::new();
        for slot in &self.slots {
            match (slot, &mut self.file) {
                (Slot::Memory(x), _) => to(bytemuck::cast_slice(x))?,
                (Slot::File(at, len), Some(file)) => {
                    read.resize(4 * len, 0);
                    file.seek(SeekFrom::Start(*at))?;
                    file.read_exact(&mut read)?;
                    to(&read)?;
                }
                (Slot::File(..), None) => return Err(std::io::ErrorKind::NotFound.into()),
            }
        }
        Ok(())
    }
}

fn spill_error(error: std::io::Error) -> Error {
    Error::storage(format!("the file of activations cannot be used: {error}"))
}
