//! What reads any bytes as a file of some kind: no panic, no overflow, memory and time in proportion, and text for people
//! that steers no terminal. The fuzz target runs these on what it makes up, the ordinary tests on what was kept of that.

use quantize::calibration::{imatrix::Imatrix, resume};
use quantize::convert::journal::Journal;
use quantize::convert::recipe::Recipe;
use quantize::eval::{klbase::KlBaseReader, tasks};
use quantize::gguf::{Metadata, encode_header, parse_header};
use quantize::model::tokenizer::{Message, Tokenizer, render_chat, sentencepiece};
use quantize::model::{Config, Model, SourceModel};
use quantize::source::{Checkpoint, parse_safetensors_header};
use quantize::{Result, escape, input, report};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const TEXT: &str = "Hello <|end|> wörld 12345\n\t\u{1f600} .";

/// What reads the bytes of one kind of file.
pub type Reader = fn(&[u8]) -> Result<()>;

pub const READERS: &[(&str, Reader)] = &[
    ("gguf_header", gguf_header),
    ("safetensors_header", safetensors_header),
    ("config", config),
    ("checkpoint", checkpoint),
    ("index", |data| open_beside("model.safetensors.index.json", data)),
    ("adapter", adapter),
    ("gguf_model", gguf_model),
    ("tokenizer_json", |data| tokenizer("tokenizer.json", data)),
    ("tokenizer_config", tokenizer_config),
    ("tokenizer_model", tokenizer_model),
    ("tekken", |data| tokenizer("tekken.json", data)),
    ("vocab_merges", vocab_merges),
    ("params", params),
    ("imatrix", |data| Imatrix::open(&file("imatrix.dat", data)).map(|_| ())),
    ("base_logits", base_logits),
    ("journal", journal),
    ("calibration", calibration),
    ("report", saved_report),
    ("template", template),
    ("questions", |data| tasks::open(&file("questions", data)).map(|_| ())),
    ("recipe", recipe),
    ("escapes", escapes),
];

/// A folder of this process, in memory where the system has such a place.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let shared = Path::new("/dev/shm");
    let root = if shared.is_dir() { shared.to_path_buf() } else { std::env::temp_dir() };
    let folder = root.join(format!("quantize-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for files that are read by name");
    folder
});

/// Removes what was written.
#[allow(dead_code, reason = "while fuzzing, the next input writes over it")]
pub fn clear() {
    fs::remove_dir_all(&*FOLDER).expect("our own folder");
    fs::create_dir_all(&*FOLDER).expect("a folder for files that are read by name");
}

fn file(name: &str, data: &[u8]) -> PathBuf {
    let path = FOLDER.join(name);
    fs::write(&path, data).expect("a file in the folder");
    path
}

/// Reads `data`, and looks at what is said of it.
pub fn read(reader: Reader, data: &[u8]) {
    if let Err(error) = reader(data) {
        shown(&escape::message(&error.to_string()));
    }
}

/// What is printed steers no terminal; a new line is an indented one.
fn shown(text: &str) {
    for (at, c) in text.char_indices() {
        let continued = c == '\n' && text[at..].starts_with("\n  ");
        assert!(continued || !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}'), "{text:?}");
    }
}

/// The input in two: what stands before the first NUL, and what follows it.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|b| *b == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

const SAFETENSORS: &[u8] = include_bytes!("seeds/safetensors_header/numpy.safetensors");
const TINY_CONFIG: &[u8] = include_bytes!("../fixtures/tiny-llama/config.json");

/// What is accepted is sound, and survives being written and read again.
fn gguf_header(data: &[u8]) -> Result<()> {
    let path = Path::new("fuzz.gguf");
    let header = parse_header(data, data.len() as u64, path)?;
    for t in &header.tensors {
        let end = header.data_start + t.offset + t.bytes().expect("a checked tensor has a size");
        assert!(end <= header.file_len && t.offset % header.alignment == 0);
    }
    // The padding would be out of proportion to the input; that is the writer's own doing.
    if header.alignment > 1 << 16 {
        return Ok(());
    }
    let bytes = encode_header(&header.metadata, &header.tensors, header.alignment);
    let len = bytes.len() as u64 + (header.file_len.saturating_sub(header.data_start));
    let again = parse_header(bytes.as_slice(), len, path).expect("our own header");
    // Compared as bytes, for a NaN is not equal to itself.
    assert_eq!(bytes, encode_header(&again.metadata, &again.tensors, again.alignment));
    Ok(())
}

/// What is accepted is accepted by the reference reader, with the same tensors.
fn safetensors_header(data: &[u8]) -> Result<()> {
    let header = parse_safetensors_header(data, data.len() as u64, Path::new("fuzz.safetensors"))?;
    let reference = SafeTensors::deserialize(data).expect("the reference reader accepts it too");
    assert_eq!(header.tensors.len(), reference.len());
    for t in &header.tensors {
        let view = reference.tensor(&t.name).expect("the same names");
        assert_eq!(view.shape(), t.shape);
        assert_eq!(view.data(), &data[t.range.start as usize..t.range.end as usize]);
    }
    Ok(())
}

/// Hyper-parameters, and a model that has them and two tensors.
fn config(data: &[u8]) -> Result<()> {
    let path = file("config.json", data);
    Config::from_hf(&input::json(&path, data)?).map(|_| ())?;
    file("model.safetensors", SAFETENSORS);
    Model::open(&Checkpoint::open(&FOLDER)?).map(|_| ())
}

fn checkpoint(data: &[u8]) -> Result<()> {
    file("config.json", TINY_CONFIG);
    file("model.safetensors", data);
    let opened = Checkpoint::open(&FOLDER)?;
    Model::open(&opened).map(|_| ())
}

fn open_beside(name: &str, data: &[u8]) -> Result<()> {
    file("config.json", TINY_CONFIG);
    file("model-00001-of-00001.safetensors", SAFETENSORS);
    file(name, data);
    SourceModel::open(&FOLDER).map(|_| ())
}

/// `adapter_config.json`, NUL, `adapter_model.safetensors`.
fn adapter(data: &[u8]) -> Result<()> {
    let (settings, weights) = halves(data);
    file("config.json", TINY_CONFIG);
    file("model.safetensors", SAFETENSORS);
    let folder = FOLDER.join("adapter");
    fs::create_dir_all(&folder).expect("a folder");
    file("adapter/adapter_config.json", settings);
    file("adapter/adapter_model.safetensors", weights);
    Checkpoint::open_merged(&FOLDER, Some(&folder)).map(|_| ())
}

fn gguf_model(data: &[u8]) -> Result<()> {
    let opened = Checkpoint::open(&file("model.gguf", data))?;
    let metadata: &Metadata = opened.gguf().expect("metadata of a GGUF file");
    // Both are looked at, whatever the first one says.
    let tokenizer = Tokenizer::from_gguf(metadata).and_then(|t| used(&t));
    Model::open(&opened).map(|_| ())?;
    tokenizer
}

fn used(tokenizer: &Tokenizer) -> Result<()> {
    let ids = tokenizer.encode(TEXT, true)?;
    tokenizer.decode(&ids);
    tokenizer.decode(&[0, 1, u32::MAX]);
    Ok(())
}

fn tokenizer(name: &str, data: &[u8]) -> Result<()> {
    file("config.json", TINY_CONFIG);
    file(name, data);
    used(&Tokenizer::from_hf_dir(&FOLDER)?)
}

fn tokenizer_config(data: &[u8]) -> Result<()> {
    file("tokenizer_config.json", data);
    tokenizer("tokenizer.json", include_bytes!("../conformance/llama/tokenizer.json"))
}

fn tokenizer_model(data: &[u8]) -> Result<()> {
    sentencepiece::parse_model(Path::new("tokenizer.model"), data).map(|_| ())?;
    tokenizer("tokenizer.model", data)
}

/// `vocab.json`, NUL, `merges.txt`.
fn vocab_merges(data: &[u8]) -> Result<()> {
    let (vocab, merges) = halves(data);
    file("merges.txt", merges);
    file("tokenizer_config.json", br#"{"tokenizer_class": "GPT2Tokenizer"}"#);
    tokenizer("vocab.json", vocab)
}

/// Mistral's own layout.
fn params(data: &[u8]) -> Result<()> {
    file("consolidated.safetensors", SAFETENSORS);
    file("params.json", data);
    SourceModel::open(&FOLDER).map(|_| ())
}

/// As it is, and with the hashes that its lines should have.
fn journal(data: &[u8]) -> Result<()> {
    let lines = data.split(|b| *b == b'\n').map(|line| [hex(line).as_bytes(), b" ", line, b"\n"].concat());
    let hashed: Vec<u8> = lines.flatten().collect();
    let opened = Journal::contents(&file("hashed.resume", &hashed)).map(|_| ());
    Journal::peek(&file("out.resume", data)).map(|_| ()).and(opened)
}

/// What an interrupted calibration has left, with the hash that it should have.
fn calibration(data: &[u8]) -> Result<()> {
    let body = [b"QZCALIB2", data].concat();
    let whole = [body.as_slice(), &Sha256::digest(&body)].concat();
    resume::open(&file("calibration.resume", &whole), &resume::Key::new()).map(|_| ())
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn base_logits(data: &[u8]) -> Result<()> {
    let mut reader = KlBaseReader::open(&file("base.kld", data))?;
    let mut row = vec![0.0; reader.vocab()];
    reader.windows(Some(1));
    reader.next_row(&mut row)
}

fn saved_report(data: &[u8]) -> Result<()> {
    let path = Path::new("report.json");
    let Ok(text) = std::str::from_utf8(data) else { return input::json(path, data).map(|_| ()) };
    let report = report::Report::from_json(text)?;
    let text = escape::block(&report::render_text(&report)).into_owned();
    assert!(text.chars().all(|c| matches!(c, '\n' | '\t') || !c.is_control()), "{text:?}");
    for page in [report::render_markdown(&report).unwrap(), report::render_html(&report).unwrap()] {
        assert!(page.chars().all(|c| matches!(c, '\n' | '\t') || !c.is_control()), "{page:?}");
    }
    assert!(!report::render_html(&report).unwrap().contains("<script>alert"));
    report::Report::from_json(&report.to_json()?).map(|_| ())
}

/// A template, NUL, and what is said.
fn template(data: &[u8]) -> Result<()> {
    let (template, content) = halves(data);
    let (template, content) = (String::from_utf8_lossy(template), String::from_utf8_lossy(content));
    let messages = ["system", "user", "assistant"].map(|role| Message::new(role, content.clone()));
    render_chat(&template, &messages, "<s>", "</s>", content.len() % 2 == 0).map(|_| ())
}

fn recipe(data: &[u8]) -> Result<()> {
    let recipe = Recipe::from_json(&String::from_utf8_lossy(data))?;
    recipe.check()?;
    let again = Recipe::from_json(&recipe.to_json().to_string()).expect("our own recipe");
    assert_eq!(recipe.to_json(), again.to_json());
    Ok(())
}

fn escapes(data: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(data);
    for line in
        [escape::line(&text), escape::file_name(&text), escape::markdown(&text).into(), escape::yaml(&text).into()]
    {
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    shown(&escape::message(&text));
    if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
        // Read back twice: the digits of some floats do not give the same float again.
        let document = value.to_string();
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("still JSON");
        assert_eq!(read(&escape::json(&document)), read(&document));
    }
    Ok(())
}
