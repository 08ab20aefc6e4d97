//! From flags to what a run is of ([`Recipe`]) and how it behaves ([`Control`]). The only place where the flags of a
//! conversion are given their meaning.

use super::args::{
    BudgetArgs, CalibrationArgs, ControlArgs, FloatType, FolderArgs, HubArgs, Layout, MtpLayers, Rounding, TypeArgs,
};
use super::commands::{ConvertArgs, PlanArgs};
use super::interrupt::CANCEL;
use super::options;
use super::values::size;
use crate::calibration::data::Source;
use crate::control::{Cancel, Control};
use crate::convert::recipe::{
    Data, Float, FolderType, ImportanceFile, Limit, Override, OverrideValue, RuleType, Search, Split, Target, TypeRule,
    TypeRules,
};
use crate::convert::{Recipe, rule_sets};
use crate::model::{Mtp, Part};
use crate::packed::{self, Spec};
use crate::quant::{GgmlType, codec, presets};
use crate::source::sha256_file;
use crate::{Error, Result};
use std::num::NonZeroUsize;
use std::path::Path;

/// Flags that do not decide what a recipe decides.
const BESIDE: [&str; 36] = [
    "recipe",
    "print_recipe",
    "model",
    "lora",
    "output",
    "dry_run",
    "resume",
    "force",
    "max_memory",
    "threads",
    "format",
    "quiet",
    "check",
    "no_check",
    "text",
    "chunks",
    "ctx",
    "report",
    "max_kld",
    "max_ppl_increase",
    "min_top1",
    "min_cosine",
    "revision",
    "offline",
    "save_imatrix",
    "modelfile",
    "on_fallback",
    "uncalibrated",
    "push_to",
    "private",
    "create_pr",
    "name",
    "repo",
    "base_model",
    "license",
    "quantized_by",
];

/// A recipe is whole: no other flag changes it.
///
/// # Errors
/// `Usage` for a flag beside `--recipe` that decides the outputs too.
pub fn refuse_beside(args: &ConvertArgs, given: &[String]) -> Result<()> {
    // Groups of flags have names too, which begin with a capital.
    let is_flag = |id: &&String| id.starts_with(|c: char| c.is_ascii_lowercase());
    let other = given.iter().filter(is_flag).find(|id| !BESIDE.contains(&id.as_str()));
    match (&args.recipe, other) {
        (Some(_), Some(id)) => {
            let flag = if id == "calibration_seed" { "seed".into() } else { id.replace('_', "-") };
            Err(Error::Usage(format!("--{flag} and --recipe cannot be combined; put what you want into the file")))
        }
        _ => Ok(()),
    }
}

/// Beside `--print-recipe`, what has no part in the recipe means nothing.
///
/// # Errors
/// `Usage` for such a flag.
pub fn refuse_unprinted(given: &[String]) -> Result<()> {
    const NEEDED: [&str; 7] = ["recipe", "print_recipe", "model", "format", "quiet", "revision", "offline"];
    let other = given.iter().find(|id| BESIDE.contains(&id.as_str()) && !NEEDED.contains(&id.as_str()));
    match other {
        Some(id) => {
            let flag = id.replace('_', "-");
            Err(Error::Usage(format!("--{flag} has no effect with --print-recipe: it is no part of the recipe")))
        }
        None => Ok(()),
    }
}

/// The recipe of a file. What it names by its contents must still have them.
fn of_file(path: &Path, hub: &HubArgs, quiet: bool) -> Result<Recipe> {
    let mut recipe = Recipe::from_json(&crate::input::read_text(path)?).map_err(|e| match e {
        Error::BadInput(finding) => Error::bad_file(path, finding.what),
        other => other,
    })?;
    recipe.check()?;
    if recipe.outputs.is_empty() {
        return Err(Error::bad_file(path, "names no outputs"));
    }
    let changed = |what: &str| Error::bad_file(path, format!("names {what}, which has changed since"));
    if let Some(importance) = &recipe.importance
        && sha256_file(Path::new(&importance.file), &Cancel::new())? != importance.sha256
    {
        return Err(changed(&importance.file));
    }
    for target in &recipe.outputs {
        if let Target::Plain { like: Some(like), .. } = target
            && crate::convert::like(Path::new(&like.folder))? != *like
        {
            return Err(changed(&like.folder));
        }
    }
    if let Some(data) = &mut recipe.data {
        for source in &mut data.sources {
            let fetch = |address: &str| super::pull::fetch_dataset_file(address, hub, quiet).map(Some);
            *source = Source::parse(&source.to_string(), fetch)?;
        }
    }
    Ok(recipe)
}

/// The recipe of a conversion.
pub fn of_convert(args: &ConvertArgs) -> Result<Recipe> {
    if let Some(path) = &args.recipe {
        return of_file(path, &args.hub, args.common.quiet);
    }
    let data = match args.calibration.calibration.is_empty() {
        true => None,
        false => Some(data(&args.calibration, &args.hub, args.common.quiet)?),
    };
    if data.is_some() && args.imatrix.imatrix.is_some() {
        let what = "--imatrix and --calibration cannot be combined; --calibration makes a new one";
        return Err(Error::Usage(what.into()));
    }
    let rounding = &args.rounding;
    let recipe = Recipe {
        importance: args.imatrix.imatrix.as_deref().map(importance_file).transpose()?,
        unseen_experts: args.imatrix.unseen_experts.unwrap_or_default(),
        data,
        rounding: crate::convert::recipe::Rounding {
            search: rounding.rounding.map(search),
            rho: rounding.rho,
            damping: rounding.damp,
            sequential: match (rounding.sequential, rounding.no_sequential) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                (false, false) => None,
            },
            sort_channels: rounding.sort_channels,
            static_groups: args.folder.static_groups,
            smooth: args.folder.smooth,
            tune: rounding.tune.map_or(0, NonZeroUsize::get),
        },
        split: match (args.split_max_size, args.split_max_tensors, args.keep_split) {
            (Some(bytes), _, _) => Split::MaxBytes(bytes),
            (_, Some(n), _) => Split::MaxTensors(n.get()),
            (_, _, true) => Split::AsSource,
            _ => Split::Usual,
        },
        hash_sources: !args.no_source_hash,
        ..of_types(&args.types, &args.budget, &args.folder)?
    };
    Ok(recipe)
}

/// The recipe of a plan, whose data need not be there.
pub fn of_plan(args: &PlanArgs) -> Result<Recipe> {
    // Types under a budget are chosen while the model is calibrated; what they may take is known before.
    let types = TypeArgs { to: args.types.to.iter().chain(&args.like).cloned().collect(), ..args.types.clone() };
    let mut recipe = of_types(&types, &BudgetArgs::default(), &args.folder)?;
    recipe.rounding.search = args.rounding.map(search);
    Ok(recipe)
}

fn search(rounding: Rounding) -> Search {
    match rounding {
        Rounding::Nearest => Search::Nearest,
        Rounding::Feedback => Search::Feedback,
    }
}

fn of_types(types: &TypeArgs, budget: &BudgetArgs, folder: &FolderArgs) -> Result<Recipe> {
    if !types.mmproj.is_empty() && !types.to.is_empty() {
        let what = "--mmproj writes the projector file alone: leave --to out, or make both with quantize release";
        return Err(Error::Usage(what.into()));
    }
    Ok(Recipe {
        outputs: targets(types, budget, folder)?,
        mtp: match types.mtp {
            MtpLayers::Keep => Mtp::Keep,
            MtpLayers::Drop => Mtp::Drop,
            MtpLayers::Only => Mtp::Only,
        },
        part: if types.mmproj.is_empty() { Part::Text } else { Part::Projector },
        types: type_rules(types)?,
        metadata: types.override_kv.iter().map(|rule| metadata_override(rule)).collect::<Result<_>>()?,
        pretokenizer: types.pretokenizer.clone(),
        requantize: types.allow_requantize,
        devices: folder.tp,
        ..Recipe::default()
    })
}

/// Presets and folder formats in the order in which they were named, then budgets.
fn targets(types: &TypeArgs, budget: &BudgetArgs, folder: &FolderArgs) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for name in types.to.iter().chain(&types.mmproj) {
        targets.push(match packed::parse(name) {
            Some(_) => {
                let format = with_flags(name, folder)?;
                Target::Folder { name: name.to_ascii_lowercase(), format, limit: None }
            }
            None => match Target::parse(name)? {
                Target::Plain { name, .. } => plain(name, folder)?,
                target => target,
            },
        });
    }
    let mut limits = Vec::new();
    for text in &budget.target_bpw {
        let bits: Option<f64> = text.parse().ok().filter(|b: &f64| b.is_finite() && *b > 0.0);
        let bits = bits
            .ok_or_else(|| Error::Usage(format!("--target-bpw {text}: not a number of bits per weight; write 4.2")))?;
        limits.push((format!("{text}bpw"), Limit::BitsPerWeight(bits)));
    }
    for text in &budget.target_size {
        limits.push((text.clone(), Limit::Bytes(size(text)?)));
    }
    let is_folder = |target: &&Target| matches!(target, Target::Folder { .. });
    match targets.iter().filter(is_folder).count() {
        0 => targets.extend(limits.into_iter().map(|(name, limit)| Target::Budget { name, limit })),
        n if n == targets.len() && !limits.is_empty() => {
            if !budget.like.is_empty() {
                let what = "--like is the size of a GGUF preset; name a folder's with --target-size or --target-bpw";
                return Err(Error::Usage(what.into()));
            }
            targets = targets.iter().flat_map(|target| limits.iter().map(|limit| within(target, limit))).collect();
        }
        _ if limits.is_empty() => {}
        _ => {
            let what =
                "GGUF types and folder formats with a budget: make them in separate runs, since it is of one kind";
            return Err(Error::Usage(what.into()));
        }
    }
    for text in &budget.like {
        let preset = presets::find(text)
            .ok_or_else(|| Error::Usage(format!("--like {text}: no such preset; try --like q4_k_m")))?;
        targets.push(Target::Budget { name: format!("like-{}", preset.name), limit: Limit::Like(preset) });
    }
    Ok(targets)
}

/// A folder whose modules are stored so that it keeps to a budget.
fn within(target: &Target, (text, limit): &(String, Limit)) -> Target {
    match target {
        Target::Folder { name, format, .. } => {
            Target::Folder { name: format!("{name}-{text}"), format: *format, limit: Some(*limit) }
        }
        other => other.clone(),
    }
}

/// A folder without quantization.
fn plain(name: String, args: &FolderArgs) -> Result<Target> {
    let dtype = args.dtype.map(|ty| match ty {
        FloatType::Bf16 => Float::Bf16,
        FloatType::F16 => Float::F16,
        FloatType::F32 => Float::F32,
    });
    let like = args.like_config.as_deref().map(crate::convert::like).transpose()?;
    Ok(Target::Plain { name, dtype, like })
}

/// The format of a name, refined by the flags. Both speak one language: a flag is one more word of the name.
fn with_flags(name: &str, args: &FolderArgs) -> Result<Spec> {
    let mut full = name.to_ascii_lowercase();
    let mut refine = |flag: &str, word: String| -> Result<()> {
        full = format!("{full}-{word}");
        match packed::parse(&full) {
            Some(_) => Ok(()),
            None => Err(Error::Usage(format!("{name} does not support {flag}"))),
        }
    };
    if let Some(bits) = args.bits {
        refine(&format!("--bits {bits}"), format!("{bits}bit"))?;
    }
    match args.group_size {
        Some(-1) => refine("--group-size -1", "channel".into())?,
        Some(n) => refine(&format!("--group-size {n}"), format!("{n}g"))?,
        None => {}
    }
    for (on, flag, word) in
        [(args.sym, "--sym", "sym"), (args.asym, "--asym", "asym"), (args.desc_act, "--desc-act", "desc")]
    {
        if on {
            refine(flag, word.into())?;
        }
    }
    match args.checkpoint_format {
        Some(Layout::Gptq) => refine("--checkpoint-format gptq", "v1".into())?,
        Some(Layout::GptqV2) => refine("--checkpoint-format gptq_v2", "v2".into())?,
        Some(Layout::CompressedTensors) | None => {}
    }
    let mut spec = packed::parse(&full).ok_or_else(|| Error::Internal(format!("the format {full}")))?;
    if args.checkpoint_format == Some(Layout::CompressedTensors) {
        let what = "is written as compressed-tensors only with 4 or 8 bits and without --desc-act";
        spec = spec.in_compressed_tensors().ok_or_else(|| Error::Usage(format!("{spec} {what}")))?;
    }
    Ok(spec)
}

fn type_rules(args: &TypeArgs) -> Result<TypeRules> {
    let ty = |flag: &str, text: &Option<String>| text.as_deref().map(|t| tensor_type(flag, t)).transpose();
    let file = match &args.tensor_type_file {
        Some(path) => crate::input::read_text(path)?,
        None => String::new(),
    };
    let lines = file.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let rules = |rule: &str| -> Result<Vec<TypeRule>> {
        let bad = |why: &str| Error::Usage(format!("--tensor-type '{rule}': {why}; write REGEX=TYPE, or hybrid"));
        if let Some(set) = rule_sets::named(rule) {
            return Ok(set);
        }
        let (pattern, name) = rule.rsplit_once('=').ok_or_else(|| bad("no '='"))?;
        if pattern.is_empty() {
            return Err(bad("an empty pattern matches everything"));
        }
        regex::Regex::new(pattern).map_err(|e| bad(&crate::convert::plan::regex_fault(&e)))?;
        Ok(vec![TypeRule { pattern: pattern.to_string(), ty: rule_type(name)? }])
    };
    let asked = args.tensor_type.iter().map(String::as_str).chain(lines).map(rules);
    let mut tensors = asked.collect::<Result<Vec<_>>>()?.concat();
    for (flag, patterns, what) in
        [("--exclude", &args.exclude, FolderType::Keep), ("--include", &args.include, FolderType::Own)]
    {
        for pattern in patterns {
            let bad = |why: &str| Error::Usage(format!("{flag} '{pattern}': {why}"));
            if pattern.is_empty() {
                return Err(bad("an empty pattern matches everything"));
            }
            regex::Regex::new(pattern).map_err(|e| bad(&crate::convert::plan::regex_fault(&e)))?;
            let ty = RuleType { file: None, folder: Some(what) };
            tensors.push(TypeRule { pattern: pattern.clone(), ty });
        }
    }
    Ok(TypeRules {
        tensors,
        output: ty("--output-tensor-type", &args.output_tensor_type)?,
        embedding: ty("--token-embedding-type", &args.token_embedding_type)?,
        keep_output: args.leave_output_tensor,
        pure: args.pure,
    })
}

fn rule_type(name: &str) -> Result<RuleType> {
    RuleType::parse(name).ok_or_else(|| {
        Error::Usage(format!(
            "--tensor-type: '{name}' is an unknown tensor type; try q6_k, q8_0, f16 or bf16 in GGUF files, and fp8, \
             w4a16-32g, 6bit or keep in folders"
        ))
    })
}

fn tensor_type(flag: &str, name: &str) -> Result<GgmlType> {
    let known = GgmlType::from_name(name).filter(|t| codec(*t).is_some_and(|c| c.quantize.is_some()));
    known
        .ok_or_else(|| Error::Usage(format!("{flag}: '{name}' is an unknown tensor type; try q6_k, q8_0, f16 or bf16")))
}

/// `KEY=TYPE:VALUE`
fn metadata_override(rule: &str) -> Result<Override> {
    let bad = |why: &str| {
        Error::Usage(format!("--override-kv '{rule}': {why}; write KEY=TYPE:VALUE with TYPE int, float, bool or str"))
    };
    let (key, typed) = rule.split_once('=').ok_or_else(|| bad("no '='"))?;
    let (ty, text) = typed.split_once(':').ok_or_else(|| bad("no ':'"))?;
    let value = match ty {
        "int" => OverrideValue::Int(text.parse().map_err(|_| bad("not an integer"))?),
        "float" => OverrideValue::Float(text.parse().map_err(|_| bad("not a number"))?),
        "bool" => OverrideValue::Bool(text.parse().map_err(|_| bad("not true or false"))?),
        "str" => OverrideValue::Str(text.to_string()),
        _ => return Err(bad("unknown type")),
    };
    if matches!(value, OverrideValue::Float(v) if !v.is_finite()) {
        return Err(bad("not a finite number"));
    }
    if key.is_empty() {
        return Err(bad("no key"));
    }
    Ok(Override { key: key.to_string(), value })
}

fn importance_file(path: &Path) -> Result<ImportanceFile> {
    Ok(ImportanceFile { file: path.display().to_string(), sha256: sha256_file(path, &Cancel::new())? })
}

/// What is calibrated on; the bundled texts where no source is named.
pub fn data(args: &CalibrationArgs, hub: &HubArgs, quiet: bool) -> Result<Data> {
    let fetch = |address: &str| super::pull::fetch_dataset_file(address, hub, quiet);
    let sources = match args.calibration.is_empty() {
        true => vec![Source::Default],
        false => args
            .calibration
            .iter()
            .map(|text| Source::parse(text, |address| fetch(address).map(Some)))
            .collect::<Result<_>>()?,
    };
    Ok(Data { sources, tokens: args.calibration_tokens, window: args.seq_len, seed: args.calibration_seed })
}

/// How a run behaves.
pub fn control(args: &ControlArgs, threads: Option<usize>) -> Result<Control> {
    Ok(Control {
        threads: options::threads(threads)?,
        max_memory: args.max_memory,
        spill: None,
        resume: args.resume,
        force: args.force,
        check: None,
        sparse: false,
        cancel: CANCEL.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_typed() {
        let value = |rule: &str| metadata_override(rule).map(|o| o.value);
        assert_eq!(value("a=int:-3").unwrap(), OverrideValue::Int(-3));
        assert_eq!(value("a.b=str:x:y").unwrap(), OverrideValue::Str("x:y".into()));
        for bad in ["x", "x=int", "x=int:a", "x=u32:1", "=int:1", "x=float:nan", "x=bool:1"] {
            assert!(value(bad).is_err(), "{bad}");
        }
    }
}
