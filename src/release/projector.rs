//! The projector files of a release: what a model that sees or hears needs beside its text in llama.cpp.

use super::artifact::{Artifact, paths_of};
use super::{Options, Release};
use crate::Result;
use crate::control::{Control, Run};
use crate::convert::{self, Plan, Recipe};
use crate::model::{Part, SourceModel, TOWER};
use std::path::Path;

/// What becomes of a model's projector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Projector {
    /// In F16, where the model has one and GGUF files are released.
    #[default]
    WhereThereIs,
    /// Left out.
    Without,
    /// In these types.
    Types(Vec<String>),
}

/// The projector files beside the outputs of `plan`, if any; what stands in their way is a remark where nobody asked.
///
/// # Errors
/// As [`convert::plan`] where types were named.
pub fn plan(source: &SourceModel, plan: &mut Plan, options: &Options) -> Result<Option<Plan>> {
    let recipe = |types: &[&str]| Recipe::to(types.iter().copied()).map(|r| Recipe { part: Part::Projector, ..r });
    match &options.projector {
        Projector::Without => Ok(None),
        Projector::Types(names) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            convert::plan(source, &recipe(&names)?).map(Some)
        }
        Projector::WhereThereIs => {
            let has_one = plan.source.model.dropped.iter().any(|(_, why)| why == TOWER);
            if plan.files().next().is_none() || !has_one {
                return Ok(None);
            }
            let found = convert::plan(source, &recipe(&["f16"])?);
            Ok(found.map_err(|e| plan.remarks.push(format!("there is no projector file in this release: {e}"))).ok())
        }
    }
}

/// Makes the projector files that are not there yet.
///
/// # Errors
/// As [`convert::run`].
pub fn make(release: &Release, run: Run) -> Result<Vec<Artifact>> {
    let Some(plan) = &release.projector else { return Ok(Vec::new()) };
    if plan.outputs.iter().any(|output| paths_of(output).is_empty()) {
        // In the unfinished folder everything is this run's.
        let control = Control { force: true, ..run.control.clone() };
        convert::run(plan, &control, run.report)?;
    }
    plan.outputs.iter().map(|output| Artifact::open(output, run)).collect()
}

/// Names of the files.
pub fn names(release: &Release) -> impl Iterator<Item = String> {
    let name = |place: &Path| place.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    release.projector.iter().flat_map(|plan| &plan.outputs).map(move |output| name(&output.place))
}
