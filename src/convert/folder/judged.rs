//! A calibrated folder beside its rival, the source merely rounded to nearest: both are judged on windows that had no part
//! in the calibration, and where the calibrated one is worse, the folder gets the other. Loss inside a layer says nothing
//! here.

use super::job::{Job, VERDICT, formats_module, part, parts};
use super::layered::{Layered, replace};
use super::nearest::rounded_part;
use crate::Result;
use crate::control::Notice;
use crate::convert::judge::{self, HeldOut, Layers, OpenModel, Verdict};
use crate::convert::ledger::LedgerRow;
use crate::eval::Loss;
use crate::infer::Engine;
use crate::packed::Packed;
use rayon::prelude::*;
use serde_json::{Value, json};

/// Rounds as `method` does, and keeps the result if `held` says so.
pub fn run(job: &Job, method: &Layered, held: &HeldOut) -> Result<()> {
    let all = parts(job.plan);
    // A run that comes back to finished layers need not take the tokens through them.
    let mut is_done = true;
    for layer in &all {
        is_done &= job.has(&part(*layer))?;
    }
    if !is_done {
        method.run(job)?;
    }
    if held.sets.is_empty() {
        return Ok(());
    }
    job.unless_finished(VERDICT, || {
        let source = OpenModel { ckpt: job.ckpt, model: job.model };
        let made = FolderLayers::made(job);
        let rival = FolderLayers { job, nearest: true };
        let verdicts = judge::judge(source, &[(&made, &rival)], held, job.run.unheard())?;
        let Some(verdict) = verdicts.first() else { return Ok(Value::Null) };
        if let Some(warning) = verdict.check(&job.name, job.plan.quantized(job.ckpt).1)? {
            job.run.notice(Notice::Warning(warning));
        }
        Ok(record(job, verdict))
    })?;
    let Some(record) = job.finished(VERDICT)? else { return Ok(()) };
    if let Some(text) = in_words(&record) {
        job.run.notice(Notice::About { output: job.name.clone(), text });
    }
    if record["chosen"] != "nearest" {
        return Ok(());
    }
    for layer in all {
        let done = job.finished(&part(layer))?.is_some_and(|record| record["nearest"] == true);
        if !done {
            let mut record = rounded_part(job, layer)?;
            record["nearest"] = json!(true);
            job.redo(&part(layer), record)?;
        }
    }
    Ok(())
}

/// The journal's record, with a row of the ledger where calibration lost.
fn record(job: &Job, verdict: &Verdict) -> Value {
    let asked = format!("{} with calibration", job.plan.spec);
    let lost = verdict.ledger_row(&job.name, &asked, "rounding to nearest");
    let ledger: Vec<Value> = lost.iter().map(LedgerRow::in_manifest).collect();
    let [of, of_nearest, blind] = keys(verdict.loss);
    json!({
        "tokens": verdict.tokens,
        of: verdict.kl.first(),
        of_nearest: verdict.rival.first(),
        blind: verdict.blind,
        "chosen": if verdict.keeps() { "calibrated" } else { "nearest" },
        "ledger": ledger,
    })
}

/// How the record calls losses: of the folder, of its rival, and of a model that ignores its context.
fn keys(loss: Loss) -> [&'static str; 3] {
    match loss {
        Loss::Divergence => ["kl_divergence", "kl_divergence_of_nearest", "kl_divergence_without_context"],
        Loss::Distance => ["distance", "distance_of_nearest", "distance_without_context"],
    }
}

/// The verdict that a folder's record holds.
pub fn verdict(record: &Value) -> Option<Verdict> {
    let loss = if record.get("distance").is_some() { Loss::Distance } else { Loss::Divergence };
    let [of, of_nearest, blind] = keys(loss);
    let value = |key: &str| record[key].as_f64().map(|kl| vec![kl]);
    let tokens = record["tokens"].as_u64()? as usize;
    Some(Verdict { loss, kl: value(of)?, rival: value(of_nearest)?, tokens, blind: record[blind].as_f64()? })
}

fn in_words(record: &Value) -> Option<String> {
    let verdict = verdict(record)?;
    let (kl, nearest, tokens) = (verdict.kl.first()?, verdict.rival.first()?, verdict.tokens);
    let (name, kl, nearest) = (verdict.loss.name(), verdict.shown(*kl), verdict.shown(*nearest));
    Some(format!("{name} {kl} on {tokens} held-out tokens, {nearest} if rounded to nearest"))
}

/// The layers of an unfinished folder, or of the source rounded to nearest.
pub struct FolderLayers<'a, 'j> {
    job: &'a Job<'j>,
    nearest: bool,
}

impl<'a, 'j> FolderLayers<'a, 'j> {
    /// Those of the folder.
    pub fn made(job: &'a Job<'j>) -> Self {
        Self { job, nearest: false }
    }
}

impl Layers for FolderLayers<'_, '_> {
    fn shell(&self) -> Result<Engine> {
        Engine::shell(self.job.ckpt, self.job.model)
    }

    fn load(&self, engine: &mut Engine, layer: usize) -> Result<()> {
        let job = self.job;
        engine.load_layer(job.ckpt, job.model, layer)?;
        let all: Vec<usize> = job.plan.layer(Some(layer)).map(|(i, _)| i).collect();
        let one = |index: usize| -> Result<Option<(usize, Packed)>> {
            let packed = match (job.plan.modules[index].spec, self.nearest) {
                (Some(spec), true) => {
                    let weights = job.plan.modules[index].module.read(job.ckpt)?;
                    Some(job.unpack(index, &spec.quantize_nearest(&formats_module(job, index, &weights))?)?)
                }
                _ => job.read_back(index)?,
            };
            Ok(packed.map(|packed| (index, packed)))
        };
        let packed: Vec<(usize, Packed)> =
            all.into_par_iter().filter_map(|index| one(index).transpose()).collect::<Result<_>>()?;
        let linears = engine.layer_linears_mut(layer).collect();
        replace(&job.plan.modules, linears, packed);
        Ok(())
    }
}
