//! How mlx-lm keeps the experts of a layer: one matrix of all of them per projection. Its classes stack what lies expert by
//! expert in a checkpoint, but many of them the weights alone, so that quantized experts must lie stacked in the file. The
//! rows are read in the `sanitize` of each class, and seen at work (tests/interop/folder_verdicts.py).

use serde_json::Value;

/// What a class calls the stack of `{block}.experts.{n}.{projection}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `{block}.switch_mlp.{projection}`
    Switch,
    /// `{block}.experts.{projection}`
    Own,
    /// `{block}.experts.switch_glu.{projection}`
    Glu,
    /// `{block}.switch_mlp.fc1` of up, `fc2` of down
    Two,
}

struct Row {
    /// Model types.
    types: &'static str,
    form: Form,
    /// Whether checkpoints call the projections w1, w2 and w3.
    numbered: bool,
    /// Whether quantized experts may lie one by one, too.
    singles: bool,
    /// What else it calls otherwise in a checkpoint that is quantized already.
    renamed: &'static [(&'static str, &'static str)],
}

const fn row(types: &'static str, form: Form, numbered: bool, singles: bool) -> Row {
    Row { types, form, numbered, singles, renamed: &[] }
}

static ROWS: [Row; 10] = [
    row(
        "bailing_hybrid bailing_moe bailing_moe_linear deepseek deepseek_v2 deepseek_v3 deepseek_v32 exaone_moe glm4_moe \
         glm4_moe_lite glm_moe_dsa hunyuan jamba joyai_llm_flash kimi_k2 laguna longcat_flash mimo_v2_flash mistral4 \
         olmoe qwen2_moe",
        Form::Switch,
        false,
        true,
    ),
    row("kimi_k3 minimax_m3_vl mixtral phimoe", Form::Switch, true, true),
    row(
        "bailing_moe_v3 ernie4_5_moe granitemoe granitemoehybrid mellum qwen3_5_moe qwen3_5_moe_text qwen3_moe qwen3_vl_moe \
         qwen3_vl_moe_text",
        Form::Switch,
        false,
        false,
    ),
    row("minimax minimax_m2", Form::Switch, true, false),
    Row { renamed: &[(".block_sparse_moe.", ".mlp.")], ..row("kimi_linear", Form::Switch, true, false) },
    Row {
        renamed: &[
            (".feed_forward.w1", ".feed_forward.gate_proj"),
            (".feed_forward.w2", ".feed_forward.down_proj"),
            (".feed_forward.w3", ".feed_forward.up_proj"),
        ],
        ..row("lfm2_moe", Form::Switch, true, false)
    },
    row("afmoe dots1", Form::Own, false, true),
    row("Klear", Form::Own, false, false),
    row("gemma4 gemma4_text", Form::Glu, false, false),
    row("nemotron_h", Form::Two, false, false),
];

/// Of model types without a row: what most call it.
static ANY: Row = row("", Form::Switch, false, false);

const NUMBERED: [(&str, &str); 3] = [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")];
const TWO: [(&str, &str); 2] = [("up_proj", "fc1"), ("down_proj", "fc2")];

/// Model types whose class takes the matrix of keys and values apart as it loads them. Quantized, it is rounded once more,
/// or not taken at all.
const ABSORBING: &str = "bailing_hybrid bailing_moe_v3 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa joyai_llm_flash \
    kimi_k2 kimi_k3 kimi_linear longcat_flash mistral4";
/// Model types whose class recognises an unconverted checkpoint by its single experts, and changes norms and convolutions of
/// such a one only: quantized by another program than its own, none comes out right.
const ITS_OWN_ALONE: &str = "qwen3_next";

/// What mlx-lm's class for a model calls the modules of a quantized checkpoint.
#[derive(Clone, Copy)]
pub struct MlxNames(&'static Row);

/// The model types in a configuration, that of the text model first.
fn types(config: &Value) -> impl Iterator<Item = &str> {
    let parts = [config.get("text_config"), Some(config)];
    parts.into_iter().flatten().filter_map(|part| part.get("model_type")?.as_str())
}

fn lists(words: &str, word: &str) -> bool {
    words.split_whitespace().any(|w| w == word)
}

impl MlxNames {
    /// Of a mixture that mlx-lm has.
    pub fn of(config: &Value) -> Option<Self> {
        types(config).find_map(|of| ROWS.iter().find(|row| lists(row.types, of))).map(Self)
    }

    /// Those, or the usual ones.
    pub fn or_usual(config: &Value) -> Self {
        Self::of(config).unwrap_or(Self(&ANY))
    }

    /// Whether quantized experts that lie one by one are taken, too.
    pub fn takes_singles(self) -> bool {
        self.0.singles
    }

    /// The stack in which the expert `path` lies, and its number.
    pub fn stack(self, path: &str) -> Option<(String, usize)> {
        let (block, rest) = path.split_once(".experts.")?;
        let (number, projection) = rest.split_once('.')?;
        let expert = number.parse().ok()?;
        if projection.contains('.') {
            return None;
        }
        let projection = to(&NUMBERED, projection).unwrap_or(projection);
        let name = match self.0.form {
            Form::Switch => format!("{block}.switch_mlp.{projection}"),
            Form::Own => format!("{block}.experts.{projection}"),
            Form::Glu => format!("{block}.experts.switch_glu.{projection}"),
            Form::Two => format!("{block}.switch_mlp.{}", to(&TWO, projection)?),
        };
        Some((self.name(&name), expert))
    }

    /// What another module is called.
    pub fn name(self, path: &str) -> String {
        let renamed = |(old, new): &(&str, &str)| path.contains(old).then(|| path.replacen(old, new, 1));
        self.0.renamed.iter().find_map(renamed).unwrap_or_else(|| path.to_string())
    }

    /// What the checkpoint calls a module of this name.
    pub fn original(self, stored: &str) -> String {
        let renamed = |(old, new): &(&str, &str)| stored.contains(new).then(|| stored.replacen(new, old, 1));
        let inside = |name: &String| !name.contains(".block_sparse_moe.") || is_of_mixture(name);
        self.0.renamed.iter().find_map(renamed).filter(inside).unwrap_or_else(|| stored.to_string())
    }

    /// What the checkpoint calls an expert of this stack; `None`: it is none.
    pub fn single(self, stack: &str, expert: usize) -> Option<String> {
        let (block, projection) = match self.0.form {
            Form::Switch | Form::Two => stack.rsplit_once(".switch_mlp.")?,
            Form::Glu => stack.rsplit_once(".experts.switch_glu.")?,
            Form::Own => stack.rsplit_once(".experts.")?,
        };
        if projection.contains('.') {
            return None;
        }
        let projection = match self.0.form {
            Form::Two => from(&TWO, projection)?,
            _ if self.0.numbered => from(&NUMBERED, projection).unwrap_or(projection),
            _ => projection,
        };
        Some(self.original(&format!("{block}.experts.{expert}.{projection}")))
    }
}

/// The second of a pair with this first.
fn to(pairs: &[(&'static str, &'static str)], first: &str) -> Option<&'static str> {
    pairs.iter().find(|pair| pair.0 == first).map(|pair| pair.1)
}

/// The first of a pair with this second.
fn from(pairs: &[(&'static str, &'static str)], second: &str) -> Option<&'static str> {
    pairs.iter().find(|pair| pair.1 == second).map(|pair| pair.0)
}

/// A part of a block of experts; layers without experts have an ordinary one.
fn is_of_mixture(name: &str) -> bool {
    [".experts.", ".shared_experts.", ".gate."].iter().any(|part| name.contains(part))
}

/// Whether mlx-lm takes this module apart as it loads it, so that it should not be quantized.
pub fn is_absorbed(config: &Value, path: &str) -> bool {
    path.ends_with(".kv_b_proj") && types(config).any(|of| lists(ABSORBING, of))
}

/// Whether mlx-lm loads quantized checkpoints of this model that it made itself, and no others.
pub fn loads_its_own_alone(config: &Value) -> bool {
    types(config).any(|of| lists(ITS_OWN_ALONE, of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(model_type: &str) -> MlxNames {
        MlxNames::of(&json!({ "model_type": model_type })).unwrap()
    }

    #[test]
    fn names_lead_there_and_back() {
        for (of, single, stack) in [
            ("qwen3_moe", "model.layers.0.mlp.experts.3.up_proj", "model.layers.0.mlp.switch_mlp.up_proj"),
            (
                "mixtral",
                "model.layers.1.block_sparse_moe.experts.3.w1",
                "model.layers.1.block_sparse_moe.switch_mlp.gate_proj",
            ),
            (
                "lfm2_moe",
                "model.layers.2.feed_forward.experts.3.w2",
                "model.layers.2.feed_forward.switch_mlp.down_proj",
            ),
            ("kimi_linear", "model.layers.1.block_sparse_moe.experts.3.w3", "model.layers.1.mlp.switch_mlp.up_proj"),
            ("afmoe", "model.layers.1.mlp.experts.3.up_proj", "model.layers.1.mlp.experts.up_proj"),
            ("gemma4_text", "model.layers.1.experts.3.up_proj", "model.layers.1.experts.switch_glu.up_proj"),
            ("nemotron_h", "backbone.layers.1.mixer.experts.3.down_proj", "backbone.layers.1.mixer.switch_mlp.fc2"),
        ] {
            assert_eq!(names(of).stack(single), Some((stack.to_string(), 3)), "{of}");
            assert_eq!(names(of).single(stack, 3).as_deref(), Some(single), "{of}");
        }
        assert_eq!(names("qwen3_moe").stack("model.layers.0.mlp.shared_experts.up_proj"), None);
        assert_eq!(names("nemotron_h").single("backbone.layers.1.mixer.switch_mlp.gate_proj", 0), None);
    }

    #[test]
    fn other_modules_keep_or_change_their_names() {
        let dense = "model.layers.0.feed_forward.w1";
        assert_eq!(names("lfm2_moe").name(dense), "model.layers.0.feed_forward.gate_proj");
        assert_eq!(names("lfm2_moe").original("model.layers.0.feed_forward.gate_proj"), dense);
        assert_eq!(names("mixtral").name(dense), dense);
        let shared = "model.layers.1.block_sparse_moe.shared_experts.up_proj";
        assert_eq!(names("kimi_linear").name(shared), "model.layers.1.mlp.shared_experts.up_proj");
        assert_eq!(names("kimi_linear").original("model.layers.1.mlp.shared_experts.up_proj"), shared);
        assert_eq!(names("kimi_linear").original("model.layers.0.mlp.up_proj"), "model.layers.0.mlp.up_proj");
    }

    #[test]
    fn the_text_model_decides() {
        let config = json!({ "model_type": "kimi_k25", "text_config": { "model_type": "deepseek_v3" } });
        assert!(MlxNames::of(&config).unwrap().takes_singles());
        assert!(is_absorbed(&config, "language_model.model.layers.0.self_attn.kv_b_proj"));
        assert!(!is_absorbed(&json!({ "model_type": "deepseek_v2" }), "model.layers.0.self_attn.kv_b_proj"));
        assert!(MlxNames::of(&json!({ "model_type": "llama" })).is_none());
    }
}
