//! A LoRA adapter merged into the weights of its base model as they are read, as PEFT's `merge_and_unload` does it:
//! `W + scale * B A` (LoRA, Hu et al. 2021, eq. 3; the scale is alpha / r, with rank stabilisation alpha / sqrt(r),
//! Kalajdzievski 2023), with a magnitude vector the rows of that scaled to its lengths (DoRA, Liu et al. 2024, eq. 5), in
//! `f32`, rounded to the type of the base. Whole tensors in the adapter take the base's place. Also an adapter by itself.

mod delta;
mod experts;
mod files;

use super::{Checkpoint, Dtype, SourceFile, TensorMeta};
use crate::dtype::GgmlType;
use crate::{Error, Result};
pub(super) use delta::Delta;
use files::Files;
use std::collections::HashMap;
use std::path::Path;

/// What is added to tensors, by their names.
pub(super) type Deltas = HashMap<String, Delta>;

/// An adapter by itself: its matrices, and what they are added to.
pub(crate) struct Adapter {
    /// Its files and `config.json` of the base model, which says what its matrices mean.
    pub ckpt: Checkpoint,
    pub pairs: Vec<Pair>,
}

/// The matrices `A` `[rank, in]` and `B` `[out, rank]` of one module, by their index.
pub(crate) struct Pair {
    /// The tensor of the base that `B A` is added to, times `alpha` over the rank.
    pub base: usize,
    pub a: usize,
    pub b: usize,
    pub alpha: f64,
    /// The base stores the matrix as `[in, out]`.
    pub turned: bool,
    /// Of an embedding: `A` `[rank, vocabulary]`, `B` `[width, rank]`.
    pub is_embedding: bool,
}

/// `base` with the adapter at `path` (a folder, or its safetensors file) merged. The adapter's weights stay in memory.
///
/// # Errors
/// `BadInput` naming the tensor that has no place in the base; `Unsupported` for adapters that PEFT merges otherwise.
pub(super) fn merged(mut base: Checkpoint, path: &Path) -> Result<Checkpoint> {
    refuse_file(&base)?;
    let Files { dir, weights, settings, modules, whole } = Files::open(&mut base, path)?;
    // What lies under a module's matrices is loaded in place, into the head too; a module of the adapter's own stands apart.
    let own = whole.iter().filter(|(_, t)| !t.name.contains(".base_layer."));
    if own.into_iter().any(|(name, _)| ends_in(name, HEAD) || is_embedding(name)) {
        base.untie();
    }
    // As the adapter runs: what is added to the head is not added to the embedding, nor the other way round.
    let of_head = modules.keys().any(|module| ends_in(&format!("{module}.weight"), HEAD));
    let parted = of_head && base.untie();
    for (name, t) in whole {
        base.replace(&name, t, &weights)?;
    }
    let mut of_embedding = modules.iter().filter(|(module, _)| is_embedding(&format!("{module}.weight")));
    if let Some((module, parts)) = of_embedding.next() {
        match parts.contains_key(files::TOKENS) {
            true if parted => {
                let what = "rows of single tokens, which the head has too, beside matrices of the head are not merged";
                return Err(Error::unsupported(what).tensor(module).hint(files::MERGE_FIRST));
            }
            // Rows of single tokens are the head's, too.
            true => {}
            false => drop(base.untie()),
        }
    }
    for (module, parts) in modules {
        let of_parameter = settings.adapts_parameters() && base.named(&format!("{module}.weight")).is_none();
        let deltas = if of_parameter { experts::deltas } else { delta::deltas };
        for (name, delta) in deltas(&base, &module, &parts, &settings, &weights)? {
            let t = base.fitting(&name, [delta.rows, delta.cols], &weights, &module)?;
            if !matches!(t.dtype, Dtype::Ggml(GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)) {
                let what = format!("the base model's {} is stored as {}", t.name, t.dtype);
                return Err(Error::unsupported(what).hint("merge into the checkpoint of 16-bit weights"));
            }
            let name = t.name.clone();
            base.deltas.insert(name, delta);
        }
    }
    if base.deltas.is_empty() {
        return Err(Error::bad_file(&weights, "holds no LoRA matrices"));
    }
    let what = format!("the adapter {} is merged into {} tensors", dir.display(), base.deltas.len());
    Ok(base.remarking(Some(what)))
}

/// The adapter at `path` with what it is added to, not merged.
///
/// # Errors
/// As [`merged`]; `Unsupported` for what is more than a pair of matrices.
pub(crate) fn separate(base: &Checkpoint, path: &Path) -> Result<Adapter> {
    refuse_file(base)?;
    let mut ckpt = Checkpoint::new(base.dir.clone(), Vec::new(), Vec::new(), None)?;
    let Files { dir, weights, settings, modules, whole } = Files::open(&mut ckpt, path)?;
    let refuse = |what: &str, name: &str| {
        let what = format!("{}: {what}, which an adapter file cannot hold", weights.display());
        Error::unsupported(what).tensor(name).hint("merge the adapter into the model instead")
    };
    for (name, t) in &whole {
        // PEFT saves the embedding with what it adds to it.
        let place = base.named(name).ok_or_else(|| refuse("holds a tensor that the model lacks", &t.name))?;
        if !ckpt.holds_the_same(t, base, &base.tensors[place])? {
            return Err(refuse("holds another tensor in the place of the model's", &t.name));
        }
    }
    if settings.adapts_parameters() {
        return Err(refuse("adapts raw parameters", "target_parameters"));
    }
    let (mut found, mut pairs) = (Vec::new(), Vec::new());
    for (module, parts) in modules {
        let is_embedding = parts.contains_key(files::EMBEDDING_A);
        let wanted = if is_embedding { [files::EMBEDDING_A, files::EMBEDDING_B] } else { [files::A, files::B] };
        if let Some(part) = parts.keys().find(|part| !wanted.contains(part)) {
            return Err(refuse(&format!("holds '{part}'"), &module));
        }
        if is_embedding && !base.tensors.iter().any(|t| ends_in(&t.name, HEAD)) {
            return Err(refuse("changes an embedding that is the head too", &module));
        }
        let (a, b, rank) = files::matrices(&parts, &module, wanted, &weights)?;
        let mut shape = [b.shape[0], a.shape[1]];
        if is_embedding || settings.turned {
            shape.reverse();
        }
        let target = base.fitting(&format!("{module}.weight"), shape, &weights, &module)?;
        pairs.push(Pair {
            base: base.index[&target.name],
            a: found.len(),
            b: found.len() + 1,
            alpha: settings.alpha(&module, rank),
            turned: settings.turned && !is_embedding,
            is_embedding,
        });
        found.extend([a.clone(), b.clone()]);
    }
    if pairs.is_empty() {
        return Err(Error::bad_file(&weights, "holds no LoRA matrices"));
    }
    let mut files = ckpt.files;
    files.push(SourceFile::open(&base.dir.join("config.json"))?);
    Ok(Adapter { ckpt: Checkpoint::new(dir, files, found, None)?, pairs })
}

fn refuse_file(base: &Checkpoint) -> Result<()> {
    if base.gguf.is_none() {
        return Ok(());
    }
    let error =
        Error::unsupported("an adapter belongs to a checkpoint of safetensors, and the base model is a GGUF file");
    Err(error.hint("give the folder of the checkpoint that the adapter was trained on"))
}

/// The output matrix and the embedding of transformers' models.
const HEAD: &str = "lm_head.weight";
const EMBEDDINGS: [&str; 4] = ["embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"];

/// Whether it is that name, or one that ends in it behind a dot.
fn ends_in(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn is_embedding(name: &str) -> bool {
    EMBEDDINGS.iter().any(|end| ends_in(name, end))
}

/// Whether a tensor of the adapter has a row for other tokens than the base's: the vocabulary was extended, or cut, before.
fn is_extended(name: &str, adapter: &[usize], base: &[usize]) -> bool {
    (ends_in(name, HEAD) || is_embedding(name)) && adapter.len() == 2 && base.len() == 2 && adapter[1..] == base[1..]
}

/// What to do where the vocabulary was extended to so many rows.
fn extended(rows: usize) -> String {
    format!(
        "the vocabulary was changed before the adapter was trained; in Python: load the base model, \
         model.resize_token_embeddings({rows}), PeftModel.from_pretrained(model, ADAPTER).merge_and_unload()\
         .save_pretrained(FOLDER), save the adapter's tokenizer there too, and give that folder"
    )
}

const OF_ANOTHER: &str = "check that the adapter was trained on this model";

impl Checkpoint {
    /// The tensor that a PEFT name means: transformers' modules are named otherwise than some checkpoints.
    fn named(&self, name: &str) -> Option<usize> {
        let inner = name.strip_prefix("model.").unwrap_or(name);
        let text = inner.strip_prefix("language_model.").unwrap_or(inner);
        let forms = [
            name.to_string(),
            inner.to_string(),
            format!("model.{name}"),
            format!("language_model.model.{text}"),
            format!("model.language_model.{text}"),
            format!("model.{text}"),
        ];
        if let Some(found) = forms.iter().find_map(|form| self.find(form)) {
            return Some(found);
        }
        let end = format!(".{name}");
        let mut ends = self.tensors.iter().enumerate().filter(|(_, t)| t.name.ends_with(&end)).map(|(i, _)| i);
        ends.next().filter(|_| ends.next().is_none())
    }

    /// The tensor that a PEFT name means, which has to have this shape; of one row, it may be a vector.
    fn fitting(&self, name: &str, shape: [usize; 2], weights: &Path, module: &str) -> Result<&TensorMeta> {
        let fault = |what: String| Error::bad_file(weights, what).tensor(module).hint(OF_ANOTHER);
        let found = self.named(name).ok_or_else(|| fault(format!("the base model has no tensor {name}")))?;
        let t = &self.tensors[found];
        let is_stack = matches!(t.shape[..], [matrices, rows, cols] if [matrices * rows, cols] == shape);
        if t.shape == shape || (shape[0] == 1 && t.shape == shape[1..]) || is_stack {
            return Ok(t);
        }
        let error = fault(format!("gives {shape:?}, and the base model's {name} is {:?}", t.shape));
        Err(match is_extended(name, &shape, &t.shape) {
            true => error.hint(extended(shape[0])),
            false => error,
        })
    }

    /// Gives a model whose head is its embedding a head of its own: an adapter that replaces one of the two leaves the other
    /// as it was. Whether it was such a model.
    fn untie(&mut self) -> bool {
        let config = crate::input::read_json(&self.dir.join("config.json")).unwrap_or_default();
        let class = config.get("architectures").and_then(|all| all.get(0)?.as_str()).unwrap_or_default();
        let generates =
            ["ForCausalLM", "ForConditionalGeneration", "LMHeadModel"].iter().any(|end| class.ends_with(end));
        let place = |wanted: &dyn Fn(&str) -> bool| self.tensors.iter().position(|t| wanted(&t.name));
        let (head, embedding) = (place(&|name| ends_in(name, HEAD)), place(&is_embedding));
        let (true, None, Some(embedding)) = (generates, head, embedding) else { return false };
        self.index.insert(HEAD.into(), self.tensors.len());
        self.tensors.push(TensorMeta { name: HEAD.into(), ..self.tensors[embedding].clone() });
        true
    }

    /// Whether a tensor has the values of another checkpoint's.
    fn holds_the_same(&self, t: &TensorMeta, other: &Checkpoint, its: &TensorMeta) -> Result<bool> {
        if t.shape != its.shape {
            return Ok(false);
        }
        let (mut scratch, n, row) = (Vec::new(), t.elements(), t.shape.last().copied().unwrap_or(1));
        let step = row * ((1 << 20) / row.max(1)).max(1);
        let (mut a, mut b) = (vec![0.0; step.min(n)], vec![0.0; step.min(n)]);
        for at in (0..n).step_by(step.max(1)) {
            let end = (at + step).min(n);
            self.read_f32(t, at..end, &mut scratch, &mut a[..end - at])?;
            other.read_f32(its, at..end, &mut scratch, &mut b[..end - at])?;
            if a[..end - at] != b[..end - at] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts a whole tensor of the adapter in the place of the base's.
    fn replace(&mut self, name: &str, t: TensorMeta, weights: &Path) -> Result<()> {
        let place = self.named(name).ok_or_else(|| {
            let error = Error::bad_file(weights, "the base model has no such tensor").tensor(&t.name);
            error.hint(OF_ANOTHER)
        })?;
        let there = &mut self.tensors[place];
        if there.shape != t.shape {
            let what = format!("is {:?}, and the base model's {} is {:?}", t.shape, there.name, there.shape);
            let error = Error::bad_file(weights, what).tensor(&t.name);
            return Err(match is_extended(name, &t.shape, &there.shape) {
                true => error.hint(extended(t.shape[0])),
                false => error.hint(OF_ANOTHER),
            });
        }
        *there = TensorMeta { name: std::mem::take(&mut there.name), ..t };
        Ok(())
    }
}
