//! Metadata of projector files, what llama.cpp's converter writes for all of them (`MmprojModel.set_gguf_parameters`).

use super::base::Keys;
use super::hparams::plausible;
use crate::input::read_json;
use crate::model::hf_json::{missing, wrong};
use crate::{Error, Result};
use serde_json::{Map, Value};

const BLOCKS: [&str; 8] = [
    "n_layers",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "depth",
    "layers",
    "encoder_layers",
    "vt_num_hidden_layers",
];
const HEADS: [&str; 4] = ["num_attention_heads", "num_heads", "heads", "vt_num_attention_heads"];

/// What image processors are told, of the files beside a checkpoint.
pub(super) struct Processor(Map<String, Value>);

impl Processor {
    /// `preprocessor_config.json`, and what `processor_config.json` says over it. Nothing where there is neither.
    fn of(k: &Keys) -> Result<Self> {
        let mut map = Map::new();
        for (file, part) in
            [("preprocessor_config.json", "media_proc_cfg"), ("processor_config.json", "image_processor")]
        {
            let path = k.ckpt.dir().join(file);
            if !path.is_file() {
                continue;
            }
            let Value::Object(whole) = read_json(&path)? else {
                return Err(Error::bad_file(&path, "is not a JSON object"));
            };
            let inner = whole.get(part).and_then(Value::as_object).cloned();
            map.extend(whole);
            map.extend(inner.into_iter().flatten());
        }
        Ok(Self(map))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// # Errors
    /// `BadInput` when it is absent.
    pub fn need_size(&self, key: &str) -> Result<usize> {
        self.get(key).and_then(plausible).ok_or_else(|| absent(key))
    }

    fn floats(&self, key: &str) -> Result<Vec<f32>> {
        let list = self.get(key).and_then(Value::as_array).ok_or_else(|| absent(key))?;
        list.iter().map(|v| v.as_f64().map(|x| x as f32).ok_or_else(|| wrong(key, v, "a number"))).collect()
    }
}

fn absent(key: &str) -> Error {
    Error::bad_input(format!("preprocessor_config.json: '{key}' is missing, and images cannot be prepared without it"))
        .hint("copy the file from the model's page next to the weights")
}

/// A size, or the first of a list of them.
fn first_size(key: &str, value: &Value) -> Result<usize> {
    let one = value.as_array().and_then(|list| list.first()).unwrap_or(value);
    plausible(one).ok_or_else(|| wrong(key, value, "a size"))
}

impl Keys<'_> {
    /// What begins the metadata of a projector with an image encoder. `image` is the size that the configuration leaves
    /// open.
    ///
    /// # Errors
    /// `BadInput` for what the configuration or the processor's files do not state.
    pub(super) fn vision(&mut self, image: Option<usize>) -> Result<Processor> {
        let processor = self.projector()?;
        self.begin_vision(image, &processor.floats("image_mean")?, &processor.floats("image_std")?)?;
        Ok(processor)
    }

    /// The same where mean and deviation of colours are facts of the architecture.
    pub(super) fn begin_vision(&mut self, image: Option<usize>, mean: &[f32], std: &[f32]) -> Result<()> {
        let h = self.h;
        self.flag("has_vision_encoder", true);
        self.size("vision.projection_dim", self.text_width()?)?;
        let size = |keys: &[&str]| match h.find(keys) {
            Some(value) => first_size(keys[0], value),
            None => Err(missing(&format!("vision_config.{}", keys.last().unwrap_or(&"")))),
        };
        self.size("vision.image_size", image.map_or_else(|| size(&["image_size"]), Ok)?)?;
        self.size("vision.patch_size", size(&["patch_size"])?)?;
        self.size(
            "vision.embedding_length",
            size(&["embed_dim", "width", "vt_hidden_size", "mm_embed_dim", "hidden_size"])?,
        )?;
        // Qwen2-VL states the width of the text model for the one that it has at four times its own.
        let inner: &[&str] = if h.get("embed_dim").is_some() {
            &["hidden_size"]
        } else {
            &["vt_intermediate_size", "intermediate_size"]
        };
        self.size("vision.feed_forward_length", size(inner)?)?;
        self.size("vision.block_count", size(&BLOCKS)?)?;
        self.size("vision.attention.head_count", size(&HEADS)?)?;
        self.floats("vision.image_mean", mean.to_vec());
        self.floats("vision.image_std", std.to_vec());
        Ok(())
    }

    /// The same with a sound encoder, whose configuration is `audio`.
    ///
    /// # Errors
    /// As [`Keys::vision`].
    pub(super) fn audio(&mut self, audio: &Map<String, Value>, width: usize, inner: usize) -> Result<()> {
        let size = |keys: &[&str]| {
            let value = keys.iter().find_map(|key| audio.get(*key));
            value.map_or_else(|| Err(missing(&format!("audio_config.{}", keys[0]))), |v| first_size(keys[0], v))
        };
        self.flag("has_audio_encoder", true);
        self.size("audio.projection_dim", self.text_width()?)?;
        self.size("audio.embedding_length", width)?;
        self.size("audio.feed_forward_length", inner)?;
        self.size("audio.block_count", size(&BLOCKS)?)?;
        self.size("audio.attention.head_count", size(&HEADS)?)
    }

    /// `general.*` of a projector.
    pub(super) fn projector(&mut self) -> Result<Processor> {
        self.meta.set("general.type", "mmproj");
        self.file_type();
        Processor::of(self)
    }

    /// Of the text model that the projector gives vectors to.
    fn text_width(&self) -> Result<usize> {
        let of = |part: &Value| ["hidden_size", "n_embd"].iter().find_map(|key| plausible(part.get(*key)?));
        let parts = ["text_config", "llm_config", "lm_config", "language_config"];
        let inner = parts.iter().find_map(|part| of(self.h.outer(part)?));
        inner.or_else(|| of(self.h.whole())).ok_or_else(|| missing("text_config.hidden_size"))
    }

    pub(super) fn projector_type(&mut self, name: &str) {
        self.text("projector_type", name);
    }

    /// The activation by its name in the configuration.
    ///
    /// # Errors
    /// `Unsupported` for one that GGUF has no key for.
    pub(super) fn activation(&mut self) -> Result<()> {
        match self.h.str("hidden_act") {
            Some("silu") => self.flag("use_silu", true),
            Some("gelu") => self.flag("use_gelu", true),
            other => {
                let what = format!("vision_config.hidden_act: {other:?} cannot be stored in a projector file");
                return Err(Error::unsupported(what));
            }
        }
        Ok(())
    }

    pub(super) fn eps(&mut self, from: &str, default: f32) -> Result<()> {
        let eps = self.h.float(from)?.unwrap_or(default);
        self.float("vision.attention.layer_norm_epsilon", eps);
        Ok(())
    }

    /// Every how many layers of an encoder with windows one sees all.
    ///
    /// # Errors
    /// `Unsupported` where that is irregular.
    pub(super) fn window_pattern(&mut self, needed: bool) -> Result<()> {
        let list = self.h.list("fullatt_block_indexes").filter(|list| !list.is_empty());
        let Some(list) = list else {
            return if needed { Err(missing("vision_config.fullatt_block_indexes")) } else { Ok(()) };
        };
        let full: Vec<usize> = list.iter().filter_map(plausible).collect();
        let every = full.first().copied().unwrap_or(0) + 1;
        if full.len() != list.len() || full.windows(2).any(|pair| pair[1].checked_sub(pair[0]) != Some(every)) {
            let what = "vision_config.fullatt_block_indexes: layers without windows at irregular distances";
            return Err(Error::unsupported(what));
        }
        self.size("vision.n_wa_pattern", every)
    }
}
