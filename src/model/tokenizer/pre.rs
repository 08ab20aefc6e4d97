//! The pre-tokenizers of byte-level BPE that llama.cpp knows by name (`tokenizer.ggml.pre`), as data: how each splits a
//! text, and by what structure of `tokenizer.json` it is recognised. Patterns are facts of the published tokenizers;
//! llama.cpp's own recognition, by hashing the ids of a test string, needs a known vocabulary and is not used.

use super::files::HfFiles;
use super::split::THREES;
use crate::error::Hint;
use crate::{Error, Result};
use serde_json::Value;

/// One name, with what llama.cpp does when it reads it.
#[derive(Debug)]
pub struct PreTokenizer {
    pub name: &'static str,
    /// Split patterns in order of application.
    pub split: &'static [&'static str],
    /// A word that is a token is that token, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether BOS is added when the metadata does not say.
    pub add_bos: bool,
    pub spelling: Spelling,
}

/// How the merges see a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// Every byte as a printable character, as GPT-2 did.
    Bytes,
    /// As it is; a character that is no token is the tokens of its bytes (`<0x0A>`).
    Text,
    /// The same with `▁` for spaces.
    Escaped,
    /// The same again, and a run of newlines that is a token is that token.
    EscapedLines,
}

const fn pre(name: &'static str, split: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { name, split, ignore_merges: false, add_bos: false, spelling: Spelling::Bytes }
}

/// Over characters in place of bytes.
const fn text(name: &'static str, split: &'static [&'static str], spelling: Spelling) -> PreTokenizer {
    PreTokenizer { spelling, ..pre(name, split) }
}

/// A word that is in the vocabulary skips the merges.
const fn whole(name: &'static str, split: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { ignore_merges: true, ..pre(name, split) }
}

/// As [`whole`], and BOS is added by default.
const fn whole_bos(name: &'static str, split: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { add_bos: true, ..whole(name, split) }
}

// Patterns of words, as they stand in the tokenizer.json files.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const BAILING_JSON: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU_ASIAN: &str = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+";
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const AFMOE_ASIAN: &str = "[一-鿿㐀-䶿豈-\u{faff}぀-ゟ゠-ヿ･-ﾟ⼀-\u{2fdf}เ-\u{e7f}\u{e80}-\u{eff}ក-\u{17ff}က-\u{109f}\u{aa60}-\u{aa7f}\u{a9e0}-\u{a9ff}가-\u{d7af}ᄀ-ᇿ]+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const BLOOM_JSON: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";

/// Digits from the right in threes, where there are words or the end behind them; and where there is anything.
const GROUPED_DIGITS: &str = r"\d{1,3}(?=(?:\d{3})*\b)";
const BEFORE_THREES: &str = r"(?=(\d{3})+(?!\d))";

// Patterns of parts of words, used in front of or after the above.
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";
const UP_TO_3_DIGITS: &str = r"\p{N}{1,3}";
const CJK: &str = "[一-龥぀-ゟ゠-ヿ]+";
const NEWLINE: &str = r"[\r\n]";
const LINES: &str = r"[^\n]+|[\n]+";
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-퟿]+";
const DEEPSEEK_PUNCTUATION: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

const DEEPSEEK_LLM: &[&str] = &[NEWLINE, DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", DEEPSEEK_CJK, DIGITS];
const DEEPSEEK_CODER: &[&str] = &[NEWLINE, r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT];
const DEEPSEEK_V3: &[&str] = &[UP_TO_3_DIGITS, CJK, DEEPSEEK3];
const CHAMELEON: &[&str] = &[
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    DIGIT,
    r"[\p{P}!-/:-@\[-`{-~]",
    GPT2,
];
const STARCODER: &[&str] = &[DIGIT, GPT2];

/// Every name that llama.cpp accepts for a byte-level BPE vocabulary.
pub const PRE_TOKENIZERS: &[PreTokenizer] = &[
    pre("default", &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, DIGITS, THREE_DIGITS]),
    whole_bos("llama3", &[LLAMA3]),
    whole_bos("llama-v3", &[LLAMA3]),
    whole_bos("llama-bpe", &[LLAMA3]),
    whole_bos("falcon3", &[LLAMA3]),
    whole_bos("falcon-h1", &[LLAMA3]),
    whole_bos("pixtral", &[LLAMA3]),
    whole_bos("midm-2.0", &[LLAMA3]),
    whole_bos("lfm2", &[LLAMA3]),
    whole_bos("jina-v5-nano", &[LLAMA3]),
    pre("dbrx", &[LLAMA3]),
    pre("smaug-bpe", &[LLAMA3]),
    pre("chatglm-bpe", &[LLAMA3]),
    whole("glm4", &[LLAMA3]),
    whole("glm5", &[LLAMA3]),
    whole("minicpm5", &[UP_TO_3_DIGITS, MINICPM5]),
    pre("gpt-2", &[GPT2]),
    pre("phi-2", &[GPT2]),
    pre("mpt", &[GPT2]),
    pre("olmo", &[GPT2]),
    pre("jais", &[GPT2]),
    pre("trillion", &[GPT2]),
    pre("granite-docling", &[GPT2]),
    pre("exaone4", &[GPT2]),
    pre("gigachat", &[GPT2]),
    pre("a.x-4.0", &[GPT2]),
    pre("mellum", &[GPT2]),
    pre("modern-bert", &[GPT2]),
    pre("jina-es", &[GPT2]),
    pre("jina-de", &[GPT2]),
    pre("jina-v1-en", &[GPT2]),
    pre("jina-v2-es", &[GPT2]),
    pre("jina-v2-de", &[GPT2]),
    pre("jina-v2-code", &[GPT2]),
    pre("roberta-bpe", &[GPT2]),
    pre("smollm", STARCODER),
    pre("starcoder", STARCODER),
    pre("refact", STARCODER),
    pre("command-r", STARCODER),
    pre("codeshell", STARCODER),
    pre("exaone", STARCODER),
    pre("minerva-7b", STARCODER),
    pre("mellum2", STARCODER),
    pre("qwen2", &[QWEN2]),
    pre("deepseek-r1-qwen", &[QWEN2]),
    pre("kormo", &[QWEN2]),
    pre("f2llmv2", &[QWEN2]),
    pre("megrez", &[QWEN2]),
    pre("stablelm2", &[QWEN2]),
    pre("hunyuan", &[QWEN2]),
    pre("solar-open", &[QWEN2]),
    pre("grok-2", &[QWEN2]),
    pre("qwen35", &[QWEN35]),
    pre("laguna", &[LINES, QWEN2]),
    whole_bos("tekken", &[TEKKEN]),
    pre("gpt-4o", &[GPT4O]),
    pre("llama4", &[GPT4O]),
    pre("kanana2", &[GPT4O]),
    pre("talkie", &[GPT4O]),
    pre("minimax-m2", &[GPT4O]),
    whole("granite-embed-multi-97m", &[GPT4O]),
    pre("deepseek-llm", DEEPSEEK_LLM),
    pre("deepseek-coder", DEEPSEEK_CODER),
    pre("deepseek-v3", DEEPSEEK_V3),
    pre("hunyuan-dense", DEEPSEEK_V3),
    pre("joyai-llm", DEEPSEEK_V3),
    pre("hy_v4", DEEPSEEK_V3),
    pre("falcon", &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE_DIGITS]),
    pre("bailingmoe", &[BAILING]),
    pre("bailingmoe2", &[BAILING]),
    pre("llada-moe", &[BAILING]),
    pre("seed-coder", &[SEED_CODER]),
    pre("exaone-moe", &[EXAONE_MOE]),
    pre("ufakzeka", &[UFAKZEKA]),
    pre("bloom", &[BLOOM]),
    pre("poro-chat", &[BLOOM]),
    pre("gpt3-finnish", &[BLOOM]),
    pre("viking", &[BLOOM, DIGIT]),
    pre("kimi-k2", &[KIMI]),
    whole("youtu", &[YOUTU_ASIAN, YOUTU]),
    pre("spark2_5", &[UP_TO_3_DIGITS, CJK, SPARK, DIGIT]),
    pre("jais-2", &[JAIS2]),
    pre("afmoe", &[THREES, AFMOE_ASIAN, DEEPSEEK3]),
    pre("tiny_aya", &[THREES, GPT4O]),
    pre("cohere2moe", &[THREES, GPT4O]),
    pre("superbpe", &[DIGITS, THREES]),
    PreTokenizer { add_bos: true, ..pre("chameleon", CHAMELEON) },
    text("whitespace", &[r"\S+"], Spelling::Text),
    text("sarvam-moe", &[LINES], Spelling::Escaped),
    text("gemma4", &[LINES], Spelling::EscapedLines),
    text("granite-embed-multi-311m", &[LINES], Spelling::EscapedLines),
];

/// The entry of that name.
pub fn by_name(name: &str) -> Option<&'static PreTokenizer> {
    PRE_TOKENIZERS.iter().find(|p| p.name == name)
}

/// How a pre-tokenizer of one pattern cuts.
pub(super) fn pattern(name: &str) -> String {
    by_name(name).map(|pre| pre.split.concat()).unwrap_or_default()
}

/// One step of a `pre_tokenizer`, reduced to what decides where it cuts.
#[derive(Clone, Debug, PartialEq)]
enum Step<'a> {
    /// Every match is a word, and so is what lies between matches.
    Split(&'a str),
    Digits {
        single: bool,
    },
    /// `regex`: cuts as GPT-2 did; otherwise it only respells bytes.
    ByteLevel {
        regex: bool,
    },
    /// Runs of punctuation are words.
    Punctuation,
    Other(String),
}

/// A structure of `tokenizer.json` and the name it goes by.
struct Shape {
    name: &'static str,
    steps: &'static [Step<'static>],
    /// What else must hold; structures are shared by several names, the first row that fits wins.
    when: When,
}

#[derive(Clone, Copy)]
enum When {
    Always,
    /// The normalizer composes characters (NFC).
    Nfc,
    NfcAndToken(&'static str),
    Token(&'static str),
    IgnoreMerges,
    IgnoreMergesAndToken(&'static str),
}

const RESPELL: Step = Step::ByteLevel { regex: false };
const GPT2_STEP: Step = Step::ByteLevel { regex: true };
const SINGLE_DIGITS: Step = Step::Digits { single: true };

const fn shape(name: &'static str, steps: &'static [Step<'static>], when: When) -> Shape {
    Shape { name, steps, when }
}

const SHAPES: &[Shape] = &[
    shape("olmo", &[GPT2_STEP], When::NfcAndToken("|||IP_ADDRESS|||")),
    shape("mpt", &[GPT2_STEP], When::Nfc),
    shape("tiny_aya", &[Step::Split(GROUPED_DIGITS), Step::Split(GPT4O), RESPELL], When::Always),
    shape("superbpe", &[Step::Split(DIGITS), Step::Split(BEFORE_THREES), RESPELL], When::Always),
    shape("youtu", &[Step::Split(YOUTU_ASIAN), Step::Split(YOUTU), RESPELL], When::Always),
    shape(
        "spark2_5",
        &[Step::Split(UP_TO_3_DIGITS), Step::Split(CJK), Step::Split(SPARK), Step::Split(DIGIT), RESPELL],
        When::Always,
    ),
    shape("jais-2", &[Step::Split(JAIS2), RESPELL], When::Always),
    shape("gpt-2", &[GPT2_STEP], When::Always),
    shape("gpt-2", &[Step::Split(GPT2), RESPELL], When::Always),
    shape("command-r", &[SINGLE_DIGITS, GPT2_STEP], When::Nfc),
    shape("starcoder", &[SINGLE_DIGITS, GPT2_STEP], When::Token("<fim_prefix>")),
    shape("smollm", &[SINGLE_DIGITS, GPT2_STEP], When::Always),
    shape("glm4", &[Step::Split(LLAMA3), RESPELL], When::IgnoreMergesAndToken("[gMASK]")),
    shape("chatglm-bpe", &[Step::Split(LLAMA3), RESPELL], When::Token("[gMASK]")),
    shape("llama-bpe", &[Step::Split(LLAMA3), RESPELL], When::IgnoreMerges),
    shape("smaug-bpe", &[Step::Split(LLAMA3), RESPELL], When::Token("<|begin_of_text|>")),
    shape("dbrx", &[Step::Split(LLAMA3), RESPELL], When::Always),
    shape("deepseek-r1-qwen", &[Step::Split(QWEN2), RESPELL], When::Token("<｜begin▁of▁sentence｜>")),
    shape("stablelm2", &[Step::Split(QWEN2), RESPELL], When::Token("<|reg_extra|>")),
    shape("qwen2", &[Step::Split(QWEN2), RESPELL], When::Always),
    shape("qwen35", &[Step::Split(QWEN35), RESPELL], When::Always),
    shape("tekken", &[Step::Split(TEKKEN), RESPELL], When::Always),
    shape("llama4", &[Step::Split(GPT4O), RESPELL], When::Token("<|begin_of_text|>")),
    shape("gpt-4o", &[Step::Split(GPT4O), RESPELL], When::Always),
    shape(
        "deepseek-llm",
        &[
            Step::Split(NEWLINE),
            Step::Split(DEEPSEEK_LETTERS),
            Step::Split(DEEPSEEK_PUNCTUATION),
            Step::Split(r"\s+$"),
            Step::Split(DEEPSEEK_CJK),
            SINGLE_DIGITS,
            RESPELL,
        ],
        When::Always,
    ),
    shape(
        "deepseek-coder",
        &[
            Step::Split(NEWLINE),
            Step::Split(r"\s?\p{L}+"),
            Step::Split(r"\s?\p{P}+"),
            Step::Split(DEEPSEEK_CJK),
            SINGLE_DIGITS,
            RESPELL,
        ],
        When::Always,
    ),
    shape(
        "deepseek-v3",
        &[Step::Split(UP_TO_3_DIGITS), Step::Split(CJK), Step::Split(DEEPSEEK3), RESPELL],
        When::Always,
    ),
    shape(
        "falcon",
        &[Step::Punctuation, GPT2_STEP, Step::Digits { single: false }, Step::Split(THREE_DIGITS)],
        When::Always,
    ),
    shape("bailingmoe", &[Step::Split(BAILING_JSON), RESPELL], When::Always),
    shape("seed-coder", &[Step::Split(SEED_CODER), RESPELL], When::Always),
    shape("exaone-moe", &[Step::Split(EXAONE_MOE), RESPELL], When::Always),
    shape("ufakzeka", &[Step::Split(UFAKZEKA), RESPELL], When::Always),
    shape("minicpm5", &[Step::Split(UP_TO_3_DIGITS), Step::Split(MINICPM5), RESPELL], When::Always),
    shape("bloom", &[Step::Split(BLOOM_JSON), RESPELL], When::Always),
    shape("viking", &[Step::Split(BLOOM_JSON), SINGLE_DIGITS, RESPELL], When::Always),
];

/// A `pre_tokenizer` of `tokenizer.json` that cuts as the one of this name, and whether a normalizer composes characters in
/// front of it. `None` where it is no list of patterns over bytes.
pub fn restated(name: &str) -> Option<(Value, bool)> {
    let known = by_name(name).filter(|pre| pre.spelling == Spelling::Bytes)?;
    let split = |pattern: &str| serde_json::json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let byte_level = |regex: bool| serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let shape = SHAPES.iter().find(|shape| shape.name == name);
    let steps: Vec<Value> = match shape {
        Some(shape) => shape.steps.iter().map(|step| match step {
            Step::Split(pattern) => Some(split(pattern)),
            Step::Digits { single } => Some(serde_json::json!({ "type": "Digits", "individual_digits": single })),
            Step::ByteLevel { regex } => Some(byte_level(*regex)),
            Step::Punctuation => Some(serde_json::json!({ "type": "Punctuation", "behavior": "Contiguous" })),
            Step::Other(_) => None,
        }),
        None if known.split.contains(&THREES) => return None,
        None => {
            return Some((sequence(known.split.iter().map(|p| split(p)).chain([byte_level(false)]).collect()), false));
        }
    }
    .collect::<Option<_>>()?;
    let nfc = shape.is_some_and(|shape| matches!(shape.when, When::Nfc | When::NfcAndToken(_)));
    Some((sequence(steps), nfc))
}

fn sequence(mut steps: Vec<Value>) -> Value {
    match steps.len() {
        1 => steps.remove(0),
        _ => serde_json::json!({ "type": "Sequence", "pretokenizers": steps }),
    }
}

/// The name for `tokenizer.ggml.pre`: `chosen` if the user named one, else what the structure of `tokenizer.json` says.
///
/// # Errors
/// [`Error::Unsupported`] when the name is none that llama.cpp knows, or when the structure is not in the table; the
/// message then says which known one comes closest.
pub(super) fn recognise(files: &HfFiles, tokenizer: &Value, chosen: Option<&str>) -> Result<&'static str> {
    if let Some(name) = chosen {
        return check_name(name);
    }
    let canonical = tokenizer.get("pre_tokenizer").map(steps).unwrap_or_default();
    let steps: Vec<Step> = canonical.iter().map(Canonical::step).collect();
    let normalizer = normalizer(tokenizer.get("normalizer"));
    let nfc = normalizer == Some(true);
    let ignore = tokenizer.get("model").and_then(|m| m.get("ignore_merges")).and_then(Value::as_bool) == Some(true);
    let added = files.merged_added_tokens()?;
    let has = |content: &str| added.iter().any(|t| t.content == content);
    let fits = |when: When| match when {
        When::Always => true,
        When::Nfc => nfc,
        When::NfcAndToken(token) => nfc && has(token),
        When::Token(token) => has(token),
        When::IgnoreMerges => ignore,
        When::IgnoreMergesAndToken(token) => ignore && has(token),
    };
    let shapes = || SHAPES.iter().filter(|s| fits(s.when));
    let why = match shapes().find(|s| s.steps == steps) {
        Some(shape) if normalizer.is_some() => return Ok(shape.name),
        Some(_) => "its normalizer changes the text",
        None => "its pre_tokenizer is not a known one",
    };
    let closest = closest(&signature(&steps), shapes().map(|s| (s.name, signature(s.steps))));
    Err(Error::unsupported(format!(
        "{}: the pre-tokenizer was not recognised: {why}; the closest known one is '{closest}'",
        files.path("tokenizer.json").display()
    ))
    .hint(Hint::Pretokenizer(closest.to_string())))
}

/// The name itself, if llama.cpp knows it.
///
/// # Errors
/// [`Error::Unsupported`] with the list of names otherwise.
pub fn check_name(name: &str) -> Result<&'static str> {
    by_name(name).map(|p| p.name).ok_or_else(|| unknown_name(name))
}

fn unknown_name(name: &str) -> Error {
    let closest = closest(name, PRE_TOKENIZERS.iter().map(|p| (p.name, p.name.to_string())));
    let names: Vec<&str> = PRE_TOKENIZERS.iter().map(|p| p.name).collect();
    Error::unsupported(format!("'{name}' is not a pre-tokenizer of llama.cpp (closest: '{closest}')"))
        .hint(format!("one of {}", names.join(", ")))
}

fn signature(steps: &[Step]) -> String {
    format!("{steps:?}")
}

/// The candidate with the smallest edit distance to `text`.
fn closest(text: &str, candidates: impl Iterator<Item = (&'static str, String)>) -> &'static str {
    let text: Vec<char> = text.chars().take(2000).collect();
    let best = candidates.min_by_key(|(_, c)| edit_distance(&text, &c.chars().collect::<Vec<_>>()));
    best.map_or("default", |(name, _)| name)
}

fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(b) {
            let next = (diagonal + usize::from(ca != cb)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, next);
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// `Some(whether it is NFC)` for a normalizer that leaves composed text alone, `None` for any other.
fn normalizer(json: Option<&Value>) -> Option<bool> {
    let json = match json {
        None | Some(Value::Null) => return Some(false),
        Some(json) => json,
    };
    match json.get("type")?.as_str()? {
        "NFC" => Some(true),
        "Sequence" => {
            let parts = json.get("normalizers")?.as_array()?;
            parts.iter().try_fold(false, |nfc, p| (p.get("type")?.as_str()? == "NFC").then_some(true).map(|n| n || nfc))
        }
        _ => None,
    }
}

/// An owned [`Step`].
enum Canonical {
    Split(String),
    Fixed(Step<'static>),
}

impl Canonical {
    fn step(&self) -> Step<'_> {
        match self {
            Canonical::Split(pattern) => Step::Split(pattern),
            Canonical::Fixed(step) => step.clone(),
        }
    }
}

/// The steps of a `pre_tokenizer`, sequences taken apart (they do not nest in practice).
fn steps(json: &Value) -> Vec<Canonical> {
    if json.get("type").and_then(Value::as_str) == Some("Sequence") {
        let parts = json.get("pretokenizers").and_then(Value::as_array);
        return parts.into_iter().flatten().map(step).collect();
    }
    if json.is_null() { Vec::new() } else { vec![step(json)] }
}

fn step(json: &Value) -> Canonical {
    let flag = |key: &str, default| json.get(key).and_then(Value::as_bool).unwrap_or(default);
    let text = |key: &str| json.get(key).and_then(Value::as_str).unwrap_or_default();
    let other = || Canonical::Fixed(Step::Other(json.to_string()));
    match text("type") {
        "Split" => {
            let all_kept = match (text("behavior"), flag("invert", false)) {
                ("Isolated", _) => true,
                // Keeps the matches and drops what lies between: the same where the pattern covers everything.
                ("Removed", inverted) => inverted,
                _ => false,
            };
            match json.get("pattern").and_then(|p| p.get("Regex")?.as_str()) {
                Some(pattern) if all_kept => Canonical::Split(respell(pattern)),
                _ => other(),
            }
        }
        "Digits" => Canonical::Fixed(Step::Digits { single: flag("individual_digits", false) }),
        "ByteLevel" if !flag("add_prefix_space", false) => {
            Canonical::Fixed(Step::ByteLevel { regex: flag("use_regex", true) })
        }
        "Punctuation" if text("behavior") == "Contiguous" => Canonical::Fixed(Step::Punctuation),
        _ => other(),
    }
}

/// One spelling for patterns that mean the same.
fn respell(pattern: &str) -> String {
    pattern
        .replace('\r', r"\r")
        .replace('\n', r"\n")
        .replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
}
