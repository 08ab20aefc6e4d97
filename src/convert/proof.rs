//! What an artifact does, seen before it gets its name: it runs beside its source over a few windows of the bundled texts,
//! one layer of each in memory. Every layer is also given the source's own input, so that a fault shows in the layer where
//! it is, as a difference that no rounding of its types explains. Whether a calibration was worth it is another question,
//! which [`super::judge`] answers.

use super::blind::Blind;
use super::inputs::Largest;
use super::judge::{Layers, OpenModel, rows_at_once, step};
use super::record::{used_feedback, used_imatrix};
use crate::calibration::bundled::TEXTS;
use crate::control::{Run, Unit};
use crate::eval::TensorDamage;
use crate::eval::cosine::cosines;
use crate::eval::damage::{self, Likeness, Transform};
use crate::eval::gate::shown_cosine;
use crate::eval::softmax::{kl_of_rows, largest};
use crate::eval::text::Encoder;
use crate::infer::{Cache, Engine};
use crate::model::config::Ending;
use crate::model::{MappedTensor, SourceModel};
use crate::quant::GgmlType;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Tokens that are looked at, and those of a window.
pub const TOKENS: usize = 256;
const WINDOW: usize = 128;

/// What was seen of an artifact beside its source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// How near it comes to the source.
    #[serde(flatten)]
    pub nearness: Nearness,
    /// Tokens that it ran over.
    pub tokens: usize,
    /// The bundled texts that they are from.
    #[serde(default)]
    pub texts: Vec<String>,
    /// The largest difference of a part of the model in terms of what its types explain; above 1 it is a fault.
    pub worst: f64,
    /// Why the artifact cannot be what was meant; `None` for a sound one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspicion: Option<String>,
}

impl Checked {
    /// What cannot be what was meant, without being run.
    pub fn suspicious(what: impl Into<String>) -> Self {
        Self { suspicion: Some(what.into()), ..Self::default() }
    }
}

/// How near an artifact comes to its source, by what both end in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Nearness {
    /// By logits.
    Logits {
        /// Mean KL divergence from the source, nats per token.
        kl: f64,
        /// Share of positions where both have the same first choice.
        same_top: f64,
        /// Mean entropy of the source's predictions, nats.
        entropy: f64,
        /// The divergence of a model that knows how often the source expects each token and nothing of what came before:
        /// what the source's context is worth.
        blind: f64,
    },
    /// By the vectors of windows.
    Vectors {
        /// The mean cosine with the source's.
        cosine: f64,
        /// The smallest.
        worst_cosine: f64,
        /// Windows.
        chunks: usize,
    },
}

impl Default for Nearness {
    fn default() -> Self {
        Nearness::Logits { kl: 0.0, same_top: 0.0, entropy: 0.0, blind: 0.0 }
    }
}

impl std::fmt::Display for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.nearness {
            Nearness::Logits { kl, same_top, .. } => {
                let (kl, same) = (significant(kl), 100.0 * same_top);
                write!(f, "KL {kl}, same top choice {same:.0} % over {} tokens", self.tokens)
            }
            Nearness::Vectors { cosine, worst_cosine, chunks } => {
                let (mean, worst) = (shown_cosine(cosine), shown_cosine(worst_cosine));
                write!(f, "cosine {mean}, worst {worst} over {chunks} chunks")
            }
        }
    }
}

/// Two digits of a small number.
fn significant(v: f64) -> String {
    let digits = if v > 0.0 && v.is_finite() { (1 - v.log10().floor() as i32).clamp(1, 6) } else { 1 };
    format!("{v:.*}", digits as usize)
}

/// The bundled texts that the windows are from: prose and code. All of them would take longer to read than a small model
/// takes to convert.
pub const READ: [&str; 2] = ["encyclopedia.txt", "code/python.py"];

/// The windows.
///
/// # Errors
/// Those of the tokenizer; `BadInput` for one that makes too little of a text.
pub fn windows(source: &SourceModel) -> Result<Vec<Vec<u32>>> {
    let (tokenizer, len) = (source.tokenizer()?, WINDOW.min(source.model.config.context).max(2));
    let mut windows: Vec<Vec<u32>> = Vec::new();
    for (_, _, text) in TEXTS.iter().filter(|(_, file, _)| READ.contains(file)) {
        let tokens = tokenizer.encode(text, false)?;
        let most = TOKENS.div_ceil(len).div_ceil(READ.len());
        windows.extend(tokens.chunks_exact(len).take(most).map(<[u32]>::to_vec));
    }
    if windows.is_empty() {
        return Err(Error::bad_input(format!("its tokenizer makes fewer than {len} tokens of a page of text")));
    }
    // As where text is drawn.
    if let Some(bos) = Encoder::bos(&*tokenizer) {
        windows.iter_mut().for_each(|w| w[0] = bos);
    }
    Ok(windows)
}

/// So many significant digits.
pub fn rounded_to(v: f64, digits: usize) -> f64 {
    format!("{v:.*e}", digits.saturating_sub(1)).parse().unwrap_or(v)
}

/// Digits of what a record holds: as many as another processor gives too.
pub const DIGITS: usize = 2;

/// [`check`] on the windows of the bundled texts.
///
/// # Errors
/// As [`check`] and [`windows`].
pub fn check_on_texts(
    source: &SourceModel,
    (ours, theirs): (&dyn Layers, &dyn Layers),
    bits: &dyn Fn(Option<usize>) -> f64,
    run: Run,
) -> Result<Checked> {
    let checked = check(ours, theirs, &windows(source)?, bits, run)?;
    Ok(Checked { texts: READ.map(String::from).to_vec(), ..checked })
}

/// Bits per weight below which rounding may change a matrix as much as a fault does.
const TELLING: f64 = 2.2;

/// How far two results may be apart, by the bits of the smallest type that has a part in them: about ten times the error of
/// rounding normal weights to so many, and hardly more than what a matrix of other numbers gives. A result may be a small
/// difference of large products, so a tenth is always allowed; [`other_weights`] sees finer. Where experts or
/// positions are chosen, little differences choose others.
fn bound(bits: f64, chooses: bool) -> f64 {
    let most = if bits < TELLING { 1.5 } else { 0.95 };
    match chooses {
        true => (32.0 * (-bits).exp2()).clamp(0.3, most),
        false => (16.0 * (-bits).exp2()).clamp(0.1, most),
    }
}

/// How far a matrix may be from the source's: about four times the error of rounding normal weights to so many bits. Where
/// some weights are more important than others, those may be rounded worse.
pub(super) fn bound_of_weights(bits: f64, importance: bool) -> f64 {
    let times = if importance { 24.0 } else { 8.0 };
    if bits < TELLING { 1.05 } else { (times * (-bits).exp2()).clamp(0.02, 0.8) }
}

/// What a matrix may have to be multiplied by to come closest to the source's: rounding keeps sizes.
pub(super) const GAIN: std::ops::Range<f64> = 0.75..1.33;
/// The same where three or four values stand under the scale of the largest weight (TQ1_0, Q2_0): what is below half of it
/// is lost, the rest grows to at most twice its size.
const ROUGH_GAIN: std::ops::Range<f64> = 0.5..2.0;
/// Bits per weight below which types may be so.
const ROUGH: f64 = 2.3;

/// The share of signs that a matrix has in common with the source's, whatever its rows and columns were multiplied by. Three
/// bits leave nine in ten.
const SIGNS: f64 = 0.75;

/// The share of rows that may be others than the source's: few bits leave single rows hardly alike.
pub(super) const STRANGE: f64 = 0.05;

/// Why a matrix cannot be a rounding of the source's.
fn other_matrix(damage: &TensorDamage, likeness: Likeness, bits: f64, importance: bool) -> Option<String> {
    let (name, ty, share) = (&damage.name, &damage.ty, damage.rel_error);
    if likeness.lost > 0 {
        return Some(format!("{} rows of {name} have nothing of the source's", likeness.lost));
    }
    if likeness.moved {
        let strange = likeness.signs < SIGNS || likeness.other_signs > STRANGE;
        return strange.then(|| format!("{name} has other signs than the source's, whatever factors were moved"));
    }
    let (bound, gain) = (bound_of_weights(bits, importance), if bits < ROUGH { ROUGH_GAIN } else { GAIN });
    if share.is_nan() || share > bound {
        return Some(format!(
            "{name} differs from the source's by {share:.2} times its own size, where {ty} explains {bound:.2}"
        ));
    }
    if !gain.contains(&likeness.gain) {
        return Some(format!("{name} is {:.2} times as large as the source's", 1.0 / likeness.gain));
    }
    if likeness.strange > STRANGE {
        return Some(format!("{:.0} % of the rows of {name} are not the source's", 100.0 * likeness.strange));
    }
    None
}

/// The first matrix of a file that is no rounding of the source's, or norm that is another.
///
/// # Errors
/// Those of reading; `BadInput` for other shapes.
pub fn other_weights(source: OpenModel, artifact: OpenModel, run: Run) -> Result<Option<String>> {
    let transform = transform(source, artifact)?;
    if transform == Some(Transform::Scaled) {
        return Ok(Some(OTHER_NORMS.into()));
    }
    let importance = artifact.ckpt.gguf().is_some_and(|meta| used_imatrix(meta) || used_feedback(meta));
    let bits = |damage: &TensorDamage| GgmlType::from_name(&damage.ty).map_or(32.0, GgmlType::bits);
    other_matrices(source, artifact, transform, (&bits, importance), run)
}

/// What norms that are not the source's are a sign of.
pub const OTHER_NORMS: &str = "its norms are not those of the source";

/// As [`damage::transform`].
pub fn transform(source: OpenModel, artifact: OpenModel) -> Result<Option<Transform>> {
    damage::transform((source.ckpt, source.model), (artifact.ckpt, artifact.model))
}

/// The first matrix that is no rounding of the source's to its bits, or vector that is another. Where factors were moved, signs
/// are compared.
///
/// # Errors
/// As [`other_weights`].
pub fn other_matrices(
    source: OpenModel,
    artifact: OpenModel,
    transform: Option<Transform>,
    (bits, importance): (&dyn Fn(&TensorDamage) -> f64, bool),
    run: Run,
) -> Result<Option<String>> {
    let (from, to) = ((source.ckpt, source.model), (artifact.ckpt, artifact.model));
    let matrices = damage::measure_rows(from, to, transform, &|_| None, &run.control.cancel)?;
    let of_matrix = matrices.iter().find_map(|(d, likeness)| other_matrix(d, *likeness, bits(d), importance));
    if of_matrix.is_some() || transform.is_some() {
        return Ok(of_matrix);
    }
    other_vector(source, artifact, &|_| true)
}

/// How far a vector may be from the source's by the rounding of another type.
const SAME: f64 = 0.01;

/// The first norm, bias or other vector among the `wanted` that is not the source's: nobody rounds these coarsely.
///
/// # Errors
/// Those of reading.
pub fn other_vector(
    source: OpenModel,
    artifact: OpenModel,
    wanted: &dyn Fn(&MappedTensor) -> bool,
) -> Result<Option<String>> {
    for theirs in artifact.model.tensors.iter().filter(|t| t.shape.len() == 1 && wanted(t)) {
        let mut same = source.model.tensors.iter().filter(|t| t.name == theirs.name && t.shape == theirs.shape);
        let Some(ours) = same.next() else { continue };
        match damage::distance(source.ckpt, ours, artifact.ckpt, theirs) {
            // Whole numbers are compared as they are stored.
            Err(Error::Unsupported(_)) => {}
            Ok(distance) if distance <= SAME => {}
            Ok(_) => return Ok(Some(format!("{} is not the source's", theirs.name))),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// Differences of a part of the model, summed over tokens.
#[derive(Clone, Copy, Default)]
struct Apart {
    error: f64,
    norm: f64,
}

impl Apart {
    /// `theirs` beside `ours`, both less what entered the part.
    fn add(&mut self, ours: &[f32], theirs: &[f32], entered: Option<&[f32]>) {
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            let before = entered.map_or(0.0, |x| f64::from(x[i]));
            let (a, b) = (f64::from(*a), f64::from(*b));
            self.error += (a - b) * (a - b);
            self.norm += (a - before) * (a - before);
        }
    }

    /// ‖theirs - ours‖ / ‖ours‖; what is no number is infinitely far.
    fn share(self) -> f64 {
        let share = (self.error / self.norm.max(f64::MIN_POSITIVE)).sqrt();
        if share.is_nan() { f64::INFINITY } else { share }
    }
}

/// Runs both. `bits` of the smallest type in a layer, and with `None` in embedding and output.
///
/// # Errors
/// Those of loading and running; `Unsupported` where the source's own logits are no numbers.
pub fn check(
    source: &dyn Layers,
    artifact: &dyn Layers,
    windows: &[Vec<u32>],
    bits: &dyn Fn(Option<usize>) -> f64,
    run: Run,
) -> Result<Checked> {
    let (mut ours, mut theirs) = (source.shell()?, artifact.shell()?);
    let mut checked = Checked { tokens: windows.iter().map(Vec::len).sum(), ..Checked::default() };
    if let Some(what) = other_shape(&ours, &theirs) {
        checked.suspicion = Some(what);
        return Ok(checked);
    }
    let layers = ours.config.layers.len();
    let total = (checked.tokens * layers) as u64;
    let _phase = run.phase("checking", total, Unit::TokensByLayer(layers as u64));
    let mut judge = |part: String, apart: Apart, bits: f64, chooses: bool| {
        // What the source itself makes infinite is told below.
        if !apart.norm.is_finite() {
            return;
        }
        let (share, bound) = (apart.share(), bound(bits, chooses));
        if share / bound > checked.worst {
            checked.worst = share / bound;
        }
        if share > bound && checked.suspicion.is_none() {
            let share = if share.is_finite() { format!("{share:.2}") } else { "infinitely".into() };
            checked.suspicion = Some(format!(
                "{part} gives results that differ from the source's by {share} times their own size, where {bits:.1} bits explain {bound:.2}"
            ));
        }
    };
    let len = windows.first().map_or(0, Vec::len);
    if windows.iter().any(|window| window.len() != len) {
        return Err(Error::Internal("windows of several lengths".into()));
    }
    // The windows one behind the other: the source's streams, and the artifact's own.
    let (mut x, mut own, mut apart) = (Vec::new(), Vec::new(), Apart::default());
    for window in windows {
        let (a, b) = (ours.embed(window)?, theirs.embed(window)?);
        apart.add(&a, &b, None);
        x.extend(a);
        own.extend(b);
    }
    judge("the embedding".into(), apart, bits(None), false);
    let mut caches = (Cache::one_batch(len), Cache::one_batch(len));
    let mut scales = None;
    for layer in 0..layers {
        source.load(&mut ours, layer)?;
        artifact.load(&mut theirs, layer)?;
        run.check()?;
        // What the rounding of activations costs depends on the model's outliers and has no bound; a fault is one of the
        // weights, or of the scales that were fixed beforehand.
        let rooms = theirs.keep_activations(layer);
        let mut largest = Largest::of(&rooms);
        let entered = x.clone();
        step(&ours, layer, &mut x, windows.len(), &mut caches.0, &mut ())?;
        // Of the source's input too; a matrix is decoded once for both.
        let mut both = [entered.as_slice(), &own].concat();
        step(&theirs, layer, &mut both, 2 * windows.len(), &mut caches.1, &mut largest)?;
        let unfit = rooms.iter().find_map(|(name, room)| largest.unfit(name, *room));
        own = both.split_off(entered.len());
        let mut apart = Apart::default();
        let [a, b, entered] = [&x, &both, &entered].map(|x| ours.numbers(x));
        apart.add(&a, &b, Some(&entered));
        run.advance(checked.tokens as u64);
        let config = &ours.config.layers[layer];
        judge(format!("layer {layer}"), apart, bits(Some(layer)), config.ffn.experts.is_some() || config.chooses());
        scales = scales.or(unfit);
        ours.unload_layer(layer);
        theirs.unload_layer(layer);
    }
    let mut apart = Apart::default();
    let each = (len * ours.config.stream()).max(1);
    checked.nearness = match ours.config.ending {
        Ending::Logits => by_logits((&ours, &x), (&theirs, &own), &mut apart, run)?,
        Ending::Vectors(_) => by_vectors((&ours, &x), (&theirs, &own), each, &mut apart, run)?,
    };
    judge("the output".into(), apart, bits(None), false);
    checked.suspicion = checked.suspicion.or(scales);
    Ok(checked)
}

/// Vectors of the windows' last streams, so many numbers each; to `apart` goes what both make of the source's.
fn by_vectors(
    (ours, streams): (&Engine, &[f32]),
    (theirs, own): (&Engine, &[f32]),
    each: usize,
    apart: &mut Apart,
    run: Run,
) -> Result<Nearness> {
    let width = ours.vector_width();
    let mut all = Vec::new();
    for (x, y) in streams.chunks(each).zip(own.chunks(each)) {
        run.check()?;
        let (x, y) = (ours.channels(x), theirs.channels(y));
        let (a, b) = (ours.vectors(&x)?, theirs.vectors(&x)?);
        apart.add(&a, &b, None);
        all.extend(cosines(&a, &theirs.vectors(&y)?, width));
    }
    let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
    if !mean.is_finite() {
        return Err(Error::unsupported("the vectors of the model that is quantized are not finite"));
    }
    let worst_cosine = all.iter().copied().fold(1.0, f64::min);
    Ok(Nearness::Vectors { cosine: mean, worst_cosine, chunks: streams.len() / each })
}

/// The same of logits.
fn by_logits(
    (ours, streams): (&Engine, &[f32]),
    (theirs, own): (&Engine, &[f32]),
    apart: &mut Apart,
    run: Run,
) -> Result<Nearness> {
    let (width, vocab) = (ours.config.hidden, ours.config.vocab);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let (mut kl, mut same, mut rows) = (0.0, 0usize, 0usize);
    let (mut blind, at_once) = (Blind::default(), rows_at_once(vocab));
    let (x, y) = (ours.channels(streams), theirs.channels(own));
    for (x, y) in x.chunks(at_once * width).zip(y.chunks(at_once * width)) {
        run.check()?;
        ours.head_into(x, &mut a, &mut ());
        theirs.head_into(&[x, y].concat(), &mut b, &mut ());
        let (local, b) = b.split_at(a.len());
        apart.add(&a, local, None);
        kl += kl_of_rows(&a, b, vocab).iter().sum::<f64>();
        blind.add(&a, vocab);
        for (a, b) in a.chunks(vocab).zip(b.chunks(vocab)) {
            same += usize::from(largest(a) == largest(b));
            rows += 1;
        }
    }
    if !blind.entropy().is_finite() {
        return Err(Error::unsupported("the logits of the model that is quantized are not finite"));
    }
    let n = rows.max(1) as f64;
    Ok(Nearness::Logits {
        kl: if kl.is_nan() { f64::INFINITY } else { (kl / n).max(0.0) },
        same_top: same as f64 / n,
        entropy: blind.entropy(),
        blind: blind.loss(),
    })
}

/// Why the two cannot be compared.
fn other_shape(ours: &Engine, theirs: &Engine) -> Option<String> {
    let sizes = |e: &Engine| (e.config.layers.len(), e.config.stream(), e.config.vocab);
    let (a, b) = (sizes(ours), sizes(theirs));
    (a != b).then(|| format!("it has {b:?} layers, channels and tokens, the source {a:?}"))
}

/// Samples of text that the tokenizers of source and file must read alike.
const SAMPLE: usize = 1500;

/// Whether the two tokenizers read the bundled texts alike; the beginning of the first that they do not.
///
/// # Errors
/// Those of the tokenizers.
pub fn other_tokens(source: &SourceModel, artifact: &SourceModel) -> Result<Option<String>> {
    let (ours, theirs) = (source.tokenizer()?, artifact.tokenizer()?);
    for (domain, _, text) in TEXTS {
        let end = (0..=SAMPLE.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        if ours.encode(&text[..end], false)? != theirs.encode(&text[..end], false)? {
            return Ok(Some(format!("its tokenizer splits the bundled text '{domain}' differently than the source's")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_follow_the_bits() {
        assert_eq!((bound(16.0, false), bound(16.0, true)), (0.1, 0.3));
        assert!((0.6..0.8).contains(&bound(4.5, false)) && (0.3..0.4).contains(&bound_of_weights(4.5, false)));
        assert_eq!((bound(2.6, false), bound(1.6, false)), (0.95, 1.5));
    }

    #[test]
    fn matrices_of_other_sizes_and_rows_are_no_roundings() {
        let matrix = |ty: &str, rel_error, gain, strange| {
            let damage = TensorDamage { name: "m".into(), ty: ty.into(), rel_error, ..TensorDamage::default() };
            let bits = GgmlType::from_name(ty).unwrap().bits();
            let likeness = Likeness { gain, strange, ..Likeness::default() };
            other_matrix(&damage, likeness, bits, true)
        };
        assert_eq!(matrix("Q2_K", 0.4, 0.9, 0.01), None);
        assert_eq!(matrix("IQ1_S", 0.9, 1.1, 0.04), None);
        for (found, what) in [
            (matrix("Q2_K", 0.55, 2.0, 0.0), "0.50 times as large"),
            (matrix("IQ2_XXS", 0.7, 1.0, 0.25), "25 % of the rows"),
            (matrix("IQ2_XXS", 1.2, 1.0, 0.0), "differs"),
            (matrix("F16", f64::NAN, 1.0, 0.0), "differs"),
        ] {
            assert!(found.as_ref().is_some_and(|found| found.contains(what)), "{found:?}: {what}");
        }
    }

    #[test]
    fn what_is_no_number_is_infinitely_far() {
        let mut apart = Apart::default();
        apart.add(&[1.0, 2.0], &[1.0, f32::NAN], None);
        assert_eq!(apart.share(), f64::INFINITY);
        let mut apart = Apart::default();
        apart.add(&[3.0, 5.0], &[3.0, 5.0], Some(&[1.0, 1.0]));
        assert_eq!(apart.share(), 0.0);
    }
}
