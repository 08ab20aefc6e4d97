//! Encoders and encoder-decoders: BERT and its descendants, T5.

use super::super::view::{View, range};
use super::{Blueprint, Change, Hparams, Keys, Named, PLAIN};
use crate::Result;
use crate::model::family::{PLAIN_TOKENIZER, TokenizerFacts, TokenizerKind};

const ENCODER: TokenizerFacts = TokenizerFacts { kind: TokenizerKind::Encoder, ..PLAIN_TOKENIZER };

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        classes: &["BertModel", "BertForMaskedLM", "BertForSequenceClassification"],
        tokenizer: ENCODER,
        ..BERT
    },
    Blueprint {
        classes: &["DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification"],
        rename: distilbert,
        keys: |k| {
            let h = k.h;
            k.needed_size("context_length", "max_position_embeddings")?;
            k.needed_size("embedding_length", "dim")?;
            k.needed_size("feed_forward_length", "hidden_dim")?;
            k.size("attention.head_count", h.heads()?)?;
            k.float("attention.layer_norm_epsilon", 1e-12);
            encoder(k)
        },
        defaults: "{}",
        tokenizer: ENCODER,
        ..BERT
    },
    Blueprint {
        classes: &[
            "RobertaModel",
            "RobertaForSequenceClassification",
            "XLMRobertaModel",
            "XLMRobertaForSequenceClassification",
            "CamembertModel",
        ],
        changes: &[("position_embd.weight", Change::View(behind_padding))],
        keys: |k| {
            if let (Some(context), Some(padding)) = (k.h.size("max_position_embeddings")?, k.h.size("pad_token_id")?) {
                k.size("context_length", context.saturating_sub(1 + padding))?;
            }
            encoder(k)
        },
        defaults: r#"{"layer_norm_eps": 1e-12, "pad_token_id": 1}"#,
        tokenizer: ENCODER,
        ..BERT
    },
    Blueprint {
        gguf: "nomic-bert",
        classes: &["NomicBertModel"],
        tensors: "token_embd token_types token_embd_norm position_embd output_norm attn_qkv attn_output attn_output_norm \
            ffn_up ffn_gate ffn_down layer_output_norm",
        keys: |k| {
            let trained = k.h.size("max_trained_positions")?.unwrap_or(2048);
            match k.h.size("n_positions")?.filter(|_| k.h.get("max_position_embeddings").is_none()) {
                // What the published models were trained for.
                Some(8192) if trained == 2048 => k.size("context_length", 2048)?,
                Some(2048) if trained == 2048 => k.size("context_length", 512)?,
                _ => {}
            }
            encoder(k)
        },
        tokenizer: ENCODER,
        ..BERT
    },
    Blueprint {
        gguf: "modern-bert",
        classes: &["ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification"],
        tensors: "token_embd token_embd_norm output_norm attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down cls \
            cls.output cls.norm",
        rename: |h, name| match h.class() == Some("ModernBertForMaskedLM") && name.starts_with("head.") {
            true => Named::Drop(TRAINING_HEAD),
            false => bert(h, name.strip_prefix("model.").unwrap_or(name)),
        },
        defaults: r#"{"norm_eps": 1e-5, "hidden_activation": "gelu"}"#,
        keys: |k| {
            encoder(k)?;
            k.needed_size("attention.sliding_window", "local_attention")?;
            k.stated_size("attention.sliding_window_pattern", &["global_attn_every_n_layers"])?;
            k.text("rope.scaling.type", "none");
            k.needed_size("vocab_size", "vocab_size")?;
            if let Some(act) = k.h.str("hidden_activation") {
                k.text("hidden_activation", act);
            }
            Ok(())
        },
        tokenizer: TokenizerFacts { adds: &[("bos", true), ("eos", true), ("sep", true)], ..PLAIN_TOKENIZER },
        ..BERT
    },
    Blueprint {
        gguf: "neo-bert",
        classes: &["NeoBERT", "NeoBERTLMHead", "NeoBERTForSequenceClassification"],
        tensors: "token_embd attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down enc.output_norm cls cls.output",
        rename: |h, name| bert(h, name.strip_prefix("model.").unwrap_or(name)),
        defaults: r#"{"norm_eps": 1e-6}"#,
        keys: |k| {
            encoder(k)?;
            k.size("feed_forward_length", 2 * k.h.need("intermediate_size")? / 3)?;
            k.float("rope.freq_base", 10_000.0);
            k.text("rope.scaling.type", "none");
            k.size("pooling_type", 2)
        },
        tokenizer: ENCODER,
        ..BERT
    },
    Blueprint {
        gguf: "jina-bert-v2",
        classes: &["JinaBertModel", "JinaBertForMaskedLM"],
        tensors: "token_embd token_types token_embd_norm attn_norm_2 attn_qkv attn_q attn_k attn_v attn_output \
            attn_output_norm ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm layer_output_norm cls",
        tokenizer: ENCODER,
        ..BERT
    },
    Blueprint {
        gguf: "eurobert",
        classes: &["EuroBertModel", "JinaEmbeddingsV5Model"],
        tensors: "token_embd output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up ffn_gate \
            ffn_down",
        rename: |_, name| Named::Keep(name.strip_prefix("model.").unwrap_or(name).into()),
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: |k| {
            k.flag("attention.causal", false);
            k.text("rope.scaling.type", "none");
            k.pooling()
        },
        tokenizer: TokenizerFacts { adds: &[("bos", false)], ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    Blueprint {
        gguf: "t5",
        classes: &[
            "T5ForConditionalGeneration",
            "T5WithLMHeadModel",
            "MT5ForConditionalGeneration",
            "UMT5ForConditionalGeneration",
            "UMT5Model",
        ],
        tensors: "token_embd output dec.blk.{}.attn_norm dec.blk.{}.attn_q dec.blk.{}.attn_k dec.blk.{}.attn_v \
            dec.blk.{}.attn_o dec.blk.{}.attn_rel_b dec.blk.{}.cross_attn_norm dec.blk.{}.cross_attn_q \
            dec.blk.{}.cross_attn_k dec.blk.{}.cross_attn_v dec.blk.{}.cross_attn_o dec.blk.{}.cross_attn_rel_b \
            dec.blk.{}.ffn_norm dec.blk.{}.ffn_gate dec.blk.{}.ffn_up dec.blk.{}.ffn_down dec.output_norm \
            enc.blk.{}.attn_norm enc.blk.{}.attn_q enc.blk.{}.attn_k enc.blk.{}.attn_v enc.blk.{}.attn_o \
            enc.blk.{}.attn_rel_b enc.blk.{}.ffn_norm enc.blk.{}.ffn_gate enc.blk.{}.ffn_up enc.blk.{}.ffn_down \
            enc.output_norm",
        rename: shared_embedding,
        base: false,
        defaults: T5_DEFAULTS,
        keys: |k| t5(k, true),
        ..PLAIN
    },
    Blueprint {
        gguf: "t5encoder",
        classes: &["T5EncoderModel"],
        tensors: "token_embd output enc.blk.{}.attn_norm enc.blk.{}.attn_q enc.blk.{}.attn_k enc.blk.{}.attn_v \
            enc.blk.{}.attn_o enc.blk.{}.attn_rel_b enc.blk.{}.ffn_norm enc.blk.{}.ffn_gate enc.blk.{}.ffn_up \
            enc.blk.{}.ffn_down enc.output_norm",
        rename: shared_embedding,
        base: false,
        defaults: T5_DEFAULTS,
        keys: |k| t5(k, false),
        ..PLAIN
    },
];

const BERT: Blueprint = Blueprint {
    gguf: "bert",
    tensors: "token_embd token_types token_embd_norm position_embd output_norm attn_qkv attn_q attn_k attn_v attn_output \
        attn_output_norm ffn_up ffn_down layer_output_norm cls cls.output",
    rename: bert,
    defaults: r#"{"layer_norm_eps": 1e-12}"#,
    keys: encoder,
    ..PLAIN
};

const TRAINING_HEAD: &str = "a training head, which the encoder does not use";

const T5_DEFAULTS: &str = r#"{"n_positions": 512, "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32}"#;

/// What only training or pooling needs, and the prefixes and spellings of BERT's checkpoints.
fn bert(h: &Hparams, name: &str) -> Named {
    let name = name.strip_prefix("bert.").or(name.strip_prefix("roberta.")).unwrap_or(name);
    // The converter drops it; readers of the file apply it where it is, and the scores are then the checkpoint's.
    let scores = h.class() == Some("BertForSequenceClassification") && labels(h).is_some();
    if let Some(rest) = name.strip_prefix("pooler.dense.").filter(|_| scores) {
        return Named::Keep(format!("classifier.dense.{rest}"));
    }
    let dropped = ["pooler.dense.", "cls.predictions", "cls.seq_relationship", "lm_head.", "decoder."];
    if name == "embeddings.position_ids" || dropped.iter().any(|part| name.starts_with(part)) {
        return Named::Drop(TRAINING_HEAD);
    }
    let name = match (name.strip_suffix(".gamma"), name.strip_suffix(".beta")) {
        (Some(stem), _) => format!("{stem}.weight"),
        (_, Some(stem)) => format!("{stem}.bias"),
        _ => name.to_string(),
    };
    let labelled = labels(h).is_some();
    match name.strip_prefix("classifier.").filter(|rest| labelled && !rest.contains('.')) {
        Some(rest) => Named::Keep(format!("classifier.out_proj.{rest}")),
        None => Named::Keep(name),
    }
}

fn distilbert(h: &Hparams, name: &str) -> Named {
    let name = name.strip_prefix("distilbert.").unwrap_or(name);
    match name.starts_with("vocab_") {
        true => Named::Drop(TRAINING_HEAD),
        false => bert(h, name),
    }
}

/// Labels of a classifier, but for the two that transformers makes up.
fn labels(h: &Hparams) -> Option<Vec<String>> {
    let map = h.get("id2label")?.as_object()?;
    let mut labels: Vec<(usize, String)> =
        map.iter().filter_map(|(k, v)| Some((k.parse().ok()?, v.as_str()?.to_string()))).collect();
    labels.sort();
    let labels: Vec<String> = labels.into_iter().map(|(_, label)| label).collect();
    (labels.len() != 2 || labels[0] != "LABEL_0").then_some(labels)
}

fn encoder(k: &mut Keys) -> Result<()> {
    k.flag("attention.causal", false);
    k.pooling()?;
    if let Some(labels) = labels(k.h) {
        k.texts("classifier.output_labels", labels);
    }
    Ok(())
}

/// Position 0 lies behind the padding's row.
fn behind_padding(h: &Hparams, s: &super::super::view::Stored) -> Result<View> {
    let skip = h.size("pad_token_id")?.map_or(0, |padding| padding + 1);
    Ok(View::rows(s, range(skip, s.shape[0])).without(skip * s.shape[1]))
}

/// T5 stores its one embedding under up to three names.
fn shared_embedding(_: &Hparams, name: &str) -> Named {
    match name {
        "encoder.embed_tokens.weight" | "decoder.embed_tokens.weight" => {
            Named::Alias("shared.weight", "the shared embedding, stored once more")
        }
        name => Named::Keep(name.into()),
    }
}

fn t5(k: &mut Keys, decodes: bool) -> Result<()> {
    let h = k.h;
    k.size("context_length", h.size("n_positions")?.unwrap_or(512))?;
    k.needed_size("embedding_length", "d_model")?;
    k.needed_size("feed_forward_length", "d_ff")?;
    k.size("block_count", k.blocks)?;
    if decodes {
        k.stated_size("decoder_block_count", &["num_decoder_layers", "num_layers"])?;
    }
    k.needed_size("attention.head_count", "num_heads")?;
    let head = h.need("d_kv")?;
    k.head_lengths(head, head)?;
    k.stated_float("attention.layer_norm_epsilon", "layer_norm_epsilon")?;
    k.needed_size("attention.relative_buckets_count", "relative_attention_num_buckets")?;
    k.stated_float("attention.layer_norm_rms_epsilon", "layer_norm_epsilon")?;
    if decodes {
        k.size("decoder_start_token_id", h.size("decoder_start_token_id")?.unwrap_or(0))?;
    }
    k.file_type();
    Ok(())
}
