//! What calibration would be worth to a conversion without it, and the types that are not made without.

use crate::convert::cost::{self, Pass};
use crate::convert::{Plan, plan::FilePlan};
use crate::error::Hint;
use crate::model::config::Ending;
use crate::{Error, Result};

/// Mean KL divergence of a model of 135 million weights, without calibration and with 65,536 tokens of the bundled texts
/// (K-quants with an M: with error feedback): `docs/benchmarks.md`, "What calibration is worth".
const MEASURED: [(&str, f64, f64); 7] = [
    ("Q2_K", 2.152, 0.770),
    ("Q3_K_S", 0.629, 0.408),
    ("Q3_K_M", 0.442, 0.132),
    ("IQ3_S", 6.457, 0.311),
    ("IQ4_XS", 0.168, 0.093),
    ("Q4_K_S", 0.199, 0.063),
    ("Q4_K_M", 0.131, 0.038),
];
/// Bits per weight from which on calibration is worth little.
const ENOUGH: f64 = 6.0;

/// Says in a line what calibration would gain. Types that come out as garbage need `accepted`.
///
/// # Errors
/// `Request` for such a type.
pub fn uncalibrated(plan: &Plan, accepted: bool, quiet: bool) -> Result<()> {
    if let Some(preset) = plan.recipe.ruinous().next().filter(|_| !accepted) {
        let what = format!(
            "{}: without importance matrix or calibration i-quants below four bits lose nearly everything (measured on a \
             model of 135 million weights: KL divergence 6.46, with calibration 0.31)",
            preset.name
        );
        let hint = "add --calibration default or --imatrix FILE; --uncalibrated converts anyway";
        return Err(Error::request(what).hint(Hint::Text(hint.into())));
    }
    let blind = plan.recipe.importance.is_none() && plan.recipe.data.is_none();
    // The figures are of predictions.
    let predicts = plan.source.model.config.ending == Ending::Logits;
    if quiet || !blind || !predicts || plan.source.model.runnable().is_err() {
        return Ok(());
    }
    let below = |file: &FilePlan| file.limit.is_none() && file.sizes.bits_per_weight < ENOUGH;
    let Some((_, file)) = plan.files().find(|(_, file)| below(file) && !file.preset.default.is_plain()) else {
        return Ok(());
    };
    let bits = file.sizes.bits_per_weight;
    let seconds = cost::of(&plan.source.model, Pass::Blocks, 65_536, 1).cpu_seconds;
    let (name, without, with) = nearest(file.preset.name, bits);
    say!(
        "note: --calibration default would cost about {} of one core more, and took a model of 135 million weights from KL {without} to {with} ({name})",
        super::plan_text::time(seconds),
    );
    Ok(())
}

/// The figures of a preset, or of the one that is nearest in size.
fn nearest(name: &str, bits: f64) -> (&'static str, f64, f64) {
    let of_size = if bits < 3.0 {
        "Q2_K"
    } else if bits < 4.0 {
        "Q3_K_M"
    } else {
        "Q4_K_M"
    };
    let find = |name: &str| MEASURED.into_iter().find(|row| row.0 == name);
    find(name).or_else(|| find(of_size)).unwrap_or(MEASURED[6])
}
