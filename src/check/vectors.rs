//! What can be said of a model without a head alone: its vectors of the windows of a text.

use super::machine;
use super::measurement::Measurement;
use super::text::Prepared;
use super::turns::{self, Simulated};
use crate::Result;
use crate::control::{Run, Unit};
use crate::eval::Percentiles;
use crate::eval::cosine::{Embedder, between};
use crate::model::config::Pooling;
use crate::model::{SourceModel, name_of};
use crate::report::{self, Artifact, OfVectors, Report};
use std::time::Instant;

/// Runs the model over the text. The report has a base and no candidates.
///
/// # Errors
/// Those of opening and running it, and of the text.
pub fn facts(source: &SourceModel, pooling: Pooling, how: &Measurement, begin: Instant, run: Run) -> Result<Report> {
    let text = Prepared::new(source, how)?;
    let mut base = turns::load(source, Simulated::of(how), run)?;
    let (artifact, width) = (base.artifact.clone(), base.engine.vector_width());
    let vectors = {
        let _phase = run.phase("evaluating", text.windows.covered_tokens() as u64, Unit::Tokens);
        text.vectors(&mut Embedder { name: artifact.name.clone(), model: &mut base }, run)?
    };
    let mut report = text.report_of_vectors();
    report.source = Some(Artifact { name: name_of(&source.path), ..artifact.clone() });
    let pairs = between(&vectors, width);
    let between = (!pairs.is_empty()).then(|| Percentiles::of(pairs));
    let vectors = OfVectors { width, pooling: pooling.name().into(), between };
    report.base = Some(report::Base { artifact, ppl: None, vectors: Some(vectors) });
    report.environment = machine::environment(run.threads(), begin);
    Ok(report)
}
