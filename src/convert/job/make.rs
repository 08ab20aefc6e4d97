//! What the tasks of a conversion do.

use super::activations::{self, Entering};
use super::finished::Done;
use super::work::{Phase, Task, Tasks, Work};
use super::{Job, cut, files, folder, statistics};
use crate::control::{Run, Unit};
use crate::source::sha256_file;
use crate::{Error, Result};
use std::path::Path;

impl Tasks for Job {
    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    fn make(&self, path: &Path, own: &Path, work: &[Work], run: Run) -> Result<Done> {
        let plan = self.plan(path, own, run)?;
        let mut done = Done::default();
        for work in work {
            match work {
                Work::Tensors(tensors) => {
                    let _phase = run.phase("quantizing", files::parts::source_bytes(&plan, tensors), Unit::Bytes);
                    files::parts::make(&plan, tensors.clone(), run)?;
                }
                Work::Folder { output, parts } => {
                    let output =
                        plan.outputs.get(*output).ok_or_else(|| Error::bad_input("the job has no such output"))?;
                    folder::parts::make(&plan, output, parts.clone(), run)?;
                }
                Work::Hashes(all) => {
                    for i in all.clone() {
                        let file = plan.source.ckpt.files().get(i);
                        let file = file.ok_or_else(|| Error::bad_input("the source has no such file"))?;
                        done.hashes.insert(i, sha256_file(&file.path, &run.control.cancel)?);
                        file.check_unchanged()?;
                    }
                }
                Work::Activations(windows) => {
                    activations::write(&plan, windows, &cut::cuts(&self.tasks), own, run)?;
                }
                Work::Layers(layers) => {
                    let (parts, width) = (self.windows_by_task(path), 4 * plan.source.model.config.stream() as u64);
                    let bytes =
                        files::parts::windows(&plan)?.iter().map(|window| window.len() as u64 * width).collect();
                    let entering = Entering { parts: &parts, layer: layers.start, bytes };
                    files::parts::round(&plan, layers.clone(), &mut |window| entering.of(window), run)?;
                }
                Work::Sums(windows) => statistics::sum(&plan, windows, own, run)?,
                Work::Importance => {
                    done.importance = Some(statistics::add(&plan, &self.windows_by_task(path), own, run)?);
                }
                Work::Windows { .. } => return Err(Error::bad_input("a conversion has no evaluation text")),
            }
        }
        Ok(done)
    }
}
