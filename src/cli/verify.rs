//! `quantize verify`: is this artifact sound, and who would refuse it? Of a GGUF file also: do other readers see the same
//! file, and does the source it claims really give these bytes?

use super::args::{EngineName, Format};
use super::commands::VerifyArgs;
use super::interrupt::{CANCEL, catch_interrupt};
use super::options::threads;
use super::output::{print, print_json};
use super::progress::Terminal;
use super::words;
use crate::check::{self, Engine, Objection, Origin};
use crate::control::Control;
use crate::model::SourceModel;
use crate::release;
use crate::source::Checkpoint;
use crate::{Error, Result, escape};
use serde_json::{Value, json};

impl EngineName {
    fn engine(self) -> Engine {
        match self {
            EngineName::Vllm => Engine::Vllm,
            EngineName::Transformers => Engine::Transformers,
            EngineName::LlamaCpp => Engine::LlamaCpp,
            EngineName::Mlx => Engine::Mlx,
        }
    }
}

pub fn run(args: VerifyArgs) -> Result<()> {
    catch_interrupt()?;
    let control = Control { threads: threads(args.common.threads)?, cancel: CANCEL.clone(), ..Control::default() };
    if args.lora.is_some() && args.source.is_none() && args.check.is_none() {
        return Err(Error::Usage("--lora belongs to the model that --source or --check names".into()));
    }
    if release::is_release(&args.file) {
        return of_release(&args, &control);
    }
    let file = Checkpoint::open(&args.file)?;
    let origin = args.source.as_ref().map(|source| Origin {
        source: source.clone(),
        adapter: args.lora.clone(),
        imatrix: args.imatrix.imatrix.clone(),
        unseen_experts: args.imatrix.unseen_experts.unwrap_or_default(),
    });
    let beside = args.check.as_ref().map(|model| SourceModel::open_merged(model, args.lora.as_deref())).transpose()?;
    let found = check::verify(&file, origin.as_ref(), &control, &Terminal::new(args.common.quiet))?;
    let (name, tensors) = (args.file.display(), found.tensors);
    let mut json = json!({ "file": escape::path(&args.file), "sound": found.is_sound(), "tensors": tensors });
    let mut text = match found.packed {
        None => format!("{name}: {tensors} tensors, every block sound\n"),
        Some(packed) => {
            json["packed_modules"] = json!(packed);
            format!("{name}: {packed} quantized layers and {} other tensors, all sound\n", tensors - packed)
        }
    };
    let is_sound = found.is_sound();
    let derived = found.derived.unwrap_or_default();
    let (compared, differing) = (derived.compared, &derived.differing);
    if let Some(source) = &args.source {
        json["source"] = json!({ "path": escape::path(source), "compared": compared, "differing": differing });
        let same = compared - differing.len();
        text += &format!("{same} of {compared} tensors are what {} gives, byte for byte\n", source.display());
    }
    let mut suspicion = None;
    if let (Some(model), Some(source)) = (&args.check, &beside) {
        let found = check::beside(&file, &args.file, source, &control, &Terminal::new(args.common.quiet));
        // What was found of the file alone is said all the same.
        let said = |_: &Error| {
            if args.common.format == Format::Text {
                drop(print(&text))
            }
        };
        let (checked, notes) = found.inspect_err(said)?;
        json["check"] = json!(checked);
        json["notes"] = json!(notes);
        json["sound"] = json!(is_sound && checked.suspicion.is_none());
        notes.iter().for_each(|note| text += &format!("note: {note}\n"));
        match &checked.suspicion {
            None => text += &format!("beside {}: {checked}\n", model.display()),
            Some(what) => text += &format!("beside {}: {what}\n", model.display()),
        }
        suspicion = checked.suspicion;
    }
    let mut refusing = Vec::new();
    let mut rows: Vec<Value> = Vec::new();
    for engine in args.engines.iter().map(|e| e.engine()) {
        let found = check::objections(engine, &file, args.tp as usize)?;
        let refused = found.iter().any(|o| o.refused);
        let unknown = !refused && found.iter().any(|o| o.unknown);
        let loads = (!unknown).then_some(!refused);
        if refused {
            refusing.push(engine.release());
        }
        text += &in_words(engine, args.tp, &found);
        let row = |o: &Objection| json!({ "refused": o.refused, "modules": o.modules, "what": words::objection(o) });
        rows.push(json!({
            "engine": engine.name(), "release": engine.release(), "tp": args.tp, "loads": loads,
            "objections": found.iter().map(row).collect::<Vec<_>>(),
        }));
    }
    if !rows.is_empty() {
        json["engines"] = json!(rows);
    }
    match args.common.format {
        Format::Json => print_json(&json)?,
        Format::Text => print(&text)?,
    }
    if let Some(what) = suspicion {
        return Err(Error::Gate(format!("{}: {what}", args.file.display())));
    }
    if let Some(first) = differing.first() {
        return Err(Error::bad_file(&args.file, format!("{} tensors differ from the source", differing.len()))
            .tensor(first)
            .hint("the source is another one, the file was changed, or another program or recipe made it"));
    }
    match refusing.is_empty() {
        true => Ok(()),
        false => Err(Error::unsupported(format!("{}: refused by {}", args.file.display(), refusing.join(" and ")))),
    }
}

/// A release: its list of hashes, and every artifact in it.
fn of_release(args: &VerifyArgs, control: &Control) -> Result<()> {
    if args.source.is_some() || args.check.is_some() || !args.engines.is_empty() {
        let what = "is a release; --source, --check and --for are for one artifact, so name that";
        return Err(Error::Usage(format!("{} {what}", args.file.display())));
    }
    let found = release::verify(&args.file, control, &Terminal::new(args.common.quiet))?;
    match args.common.format {
        Format::Json => {
            let row = |(path, tensors): &(String, usize)| json!({ "path": path, "tensors": tensors, "sound": true });
            print_json(&json!({
                "file": escape::path(&args.file), "sound": true, "name": found.name, "files": found.files,
                "absent": found.absent, "artifacts": found.artifacts.iter().map(row).collect::<Vec<_>>(),
            }))
        }
        Format::Text => {
            let mut text = format!("{}: {} files match SHA256SUMS", args.file.display(), found.files);
            text += &match found.absent.len() {
                0 => "\n".to_string(),
                n => format!(", {n} are not here\n"),
            };
            for (path, tensors) in &found.artifacts {
                text += &format!("  {path}: {tensors} tensors, all sound\n");
            }
            print(&text)
        }
    }
}

/// An engine's verdict, a line for it and one per objection.
fn in_words(engine: Engine, tp: u32, found: &[Objection]) -> String {
    let split = if tp > 1 && engine == Engine::Vllm { format!(" over {tp} devices") } else { String::new() };
    let verdict = match (found.iter().any(|o| o.refused), found.iter().any(|o| o.unknown)) {
        (true, _) => "refused",
        (_, true) => "not known",
        _ => "loads",
    };
    let mut text = format!("{}{split}: {verdict}\n", engine.release());
    for o in found {
        let mark = if o.refused { "✗" } else { "·" };
        let what = words::objection(o);
        text += &match o.modules.as_slice() {
            [] => format!("  {mark} {what}\n"),
            [one] => format!("  {mark} {one}: {what}\n"),
            [first, rest @ ..] => format!("  {mark} {first} and {} more: {what}\n", rest.len()),
        };
    }
    text
}
