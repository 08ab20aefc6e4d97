//! A LoRA adapter as a GGUF file of its own, which llama.cpp adds to a model as it runs: the matrices of every module
//! under the names of the base model's tensors, in the order of rows and columns that those have there. As
//! convert_lora_to_gguf.py writes them, whose scale is `adapter.lora.alpha` over the rank.

use super::SourceModel;
use super::blueprint::{Mtp, Part};
use super::metadata::QUANTIZATION_VERSION;
use super::naming::set_general;
use super::role::Role;
use super::tensor::{Gather, MappedTensor, RowOrder, ValueMap};
use super::understood::{Model, Opaque};
use crate::gguf::Metadata;
use crate::source::{Adapter, Checkpoint, Pair, separate_adapter};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

impl SourceModel {
    /// The adapter at `adapter` (a folder of PEFT's, or its safetensors file) of the model at `base`: what there is to
    /// write is a GGUF file of its matrices.
    ///
    /// # Errors
    /// Those of [`SourceModel::open`]; `BadInput` for an adapter of another model; `Unsupported` for one that is more than
    /// pairs of matrices, or whose matrices the base model's file holds otherwise than in another order.
    pub fn open_adapter(base: &Path, adapter: &Path) -> Result<Self> {
        let base = Self::open(base)?.for_files(Part::Text, Mtp::Keep)?;
        let separate = separate_adapter(&base.ckpt, adapter)?;
        let (tensors, alpha) = mapped(&base, &separate)?;
        let metadata = metadata(&base.model, &separate.ckpt, alpha);
        let family = Err(Opaque::of_file(&base.model.config.arch, "it is an adapter, not a model"));
        let model = Model {
            config: base.model.config.clone(),
            family,
            tensors,
            generated: Vec::new(),
            dropped: Vec::new(),
            hf_config: None,
            drawn: None,
            runs: Err("an adapter is run with its base model only".into()),
        };
        Ok(Self::new(adapter, separate.ckpt.with_metadata(metadata), model))
    }
}

fn metadata(base: &Model, ckpt: &Checkpoint, alpha: f64) -> Metadata {
    let mut meta = Metadata::new();
    meta.set("general.architecture", base.config.arch.as_str());
    set_general(&mut meta, ckpt.dir(), &serde_json::Value::Null, 0, "", "adapter");
    meta.set("general.type", "adapter");
    meta.set("adapter.type", "lora");
    meta.set("adapter.lora.alpha", alpha as f32);
    meta.set("general.quantization_version", QUANTIZATION_VERSION);
    meta
}

/// The tensors of the adapter's file, in the order of its modules, and the alpha of all.
fn mapped(base: &SourceModel, adapter: &Adapter) -> Result<(Vec<MappedTensor>, f64)> {
    let pair_of: HashMap<usize, usize> = adapter.pairs.iter().enumerate().map(|(i, pair)| (pair.base, i)).collect();
    let alpha = adapter.pairs.first().map_or(1.0, |pair| pair.alpha);
    let mut found: Vec<(usize, [MappedTensor; 2])> = Vec::new();
    let mut used = vec![false; adapter.pairs.len()];
    for t in &base.model.tensors {
        let pairs: Vec<usize> = t.parts.iter().filter_map(|part| pair_of.get(part).copied()).collect();
        let Some(&first) = pairs.first() else { continue };
        if pairs.len() != t.parts.len() {
            let what = format!("changes {} of the {} matrices that are one tensor in GGUF", pairs.len(), t.parts.len());
            return Err(Error::unsupported(what).tensor(&t.name).hint(MERGE));
        }
        pairs.iter().for_each(|i| used[*i] = true);
        found.push((first, of_tensor(t, adapter, &pairs, alpha)?));
    }
    if let Some(i) = used.iter().position(|used| !used) {
        let name = &base.ckpt.tensors()[adapter.pairs[i].base].name;
        return Err(Error::unsupported("changes a tensor that the model's GGUF file does not hold")
            .tensor(name)
            .hint(MERGE));
    }
    found.sort_by_key(|(first, _)| *first);
    Ok((found.into_iter().flat_map(|(_, pair)| pair).collect(), alpha))
}

const MERGE: &str = "merge the adapter into the model instead";

/// `A` and `B` of one tensor of the base, made of these pairs.
fn of_tensor(t: &MappedTensor, adapter: &Adapter, pairs: &[usize], alpha: f64) -> Result<[MappedTensor; 2]> {
    let refuse = |what: &str| {
        let what = format!("an adapter of this tensor cannot be written: {what}");
        Error::unsupported(what).tensor(&t.name).hint(MERGE)
    };
    let pairs: Vec<&Pair> = pairs.iter().map(|i| &adapter.pairs[*i]).collect();
    let size = |part: usize| match adapter.ckpt.tensors()[part].shape[..] {
        [rows, cols] => [rows, cols],
        _ => [0, 0],
    };
    let pair = pairs[0];
    let (a, b) = (size(pair.a), size(pair.b));
    if pairs.iter().any(|p| (size(p.a), size(p.b), p.alpha, p.turned) != (a, b, pair.alpha, pair.turned)) {
        return Err(refuse("its experts have several ranks or scales"));
    }
    if t.half.is_some() || t.values != ValueMap::Same {
        return Err(refuse("the model's file holds other values than the checkpoint"));
    }
    let gather = |stored: [usize; 2], turned: bool, rows: &Option<Arc<[u32]>>, cols: &Option<Arc<[u32]>>| {
        RowOrder::Gather(Arc::new(Gather { matrices: 1, stored, turned, rows: rows.clone(), cols: cols.clone() }))
    };
    let turned = |stored: [usize; 2]| gather(stored, true, &None, &None);
    let parts = |of: fn(&Pair) -> usize| pairs.iter().map(|pair| of(pair)).collect::<Vec<_>>();
    // Rows of the product follow from those of B, columns from those of A. The transposed product is that of the
    // transposed matrices, which change places.
    let (mut first, mut second) = ((parts(|p| p.a), a, RowOrder::Same), (parts(|p| p.b), b, RowOrder::Same));
    let exchanged = match &t.rows {
        RowOrder::Same if t.shape.len() == 2 || pairs.len() > 1 => pair.turned,
        RowOrder::Rope { heads } if !pair.turned => {
            second.2 = RowOrder::Rope { heads: *heads };
            false
        }
        RowOrder::Gather(g) if g.matrices == 1 && t.shape.len() == 2 && !g.turned && !pair.turned => {
            if let Some(rows) = &g.rows {
                second = (second.0, [rows.len(), b[1]], gather(b, false, &g.rows, &None));
            }
            if let Some(cols) = &g.cols {
                first = (first.0, [a[0], cols.len()], gather(a, false, &None, &g.cols));
            }
            false
        }
        RowOrder::Gather(g) if g.matrices == 1 && g.turned && g.rows.is_none() && g.cols.is_none() => !pair.turned,
        _ => return Err(refuse("its matrices lie otherwise in the model's file")),
    };
    if pair.is_embedding {
        // Looked up by tokens: a row each.
        first = (first.0, [a[1], a[0]], turned(a));
    } else if exchanged && pairs.len() == 1 {
        (first, second) = ((second.0, [b[1], b[0]], turned(b)), (first.0, [a[1], a[0]], turned(a)));
    } else if exchanged {
        return Err(refuse("its experts are stored as columns"));
    }
    let factor = (pair.alpha / alpha) as f32;
    let scaled = if factor == 1.0 { ValueMap::Same } else { ValueMap::Times([factor, 1.0]) };
    let made = |end: &str, (parts, [rows, cols], order): (Vec<usize>, [usize; 2], RowOrder), values| MappedTensor {
        name: format!("{}.{end}", t.name),
        shape: if parts.len() > 1 { vec![parts.len(), rows, cols] } else { vec![rows, cols] },
        parts,
        half: None,
        rows: order,
        values,
        role: Role::Unknown,
        layer: t.layer,
    };
    Ok([made("lora_a", first, ValueMap::Same), made("lora_b", second, scaled)])
}
