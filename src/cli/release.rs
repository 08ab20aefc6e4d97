//! `quantize release`: a folder that can be published as it is.

use super::args::Format;
use super::commands::ReleaseArgs;
use super::output::{print, print_json};
use super::prepare::{Prepared, accept, prepare};
use super::push::{self, Target};
use super::{convert, eval, plan, recipe, values, words};
use crate::control::Control;
use crate::convert::{fitting, proven};
use crate::eval::Measured;
use crate::release::{self, Options, Projector, Release, Released};
use crate::report::render_text;
use crate::writer::gguf::human;
use crate::{Error, Result, escape};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub fn run(mut args: ReleaseArgs, given: &[String]) -> Result<()> {
    let device = args.fit.as_deref().map(values::device).transpose()?;
    if device.is_some() && args.convert.types.to.is_empty() {
        args.convert.types.to = fitting::LADDER.map(String::from).to_vec();
    }
    recipe::refuse_beside(&args.convert, given)?;
    if args.convert.print_recipe {
        return Err(Error::Usage("--print-recipe is for a plain conversion: leave out the word release".into()));
    }
    convert::positionals(&mut args.convert)?;
    let projector = projector(std::mem::take(&mut args.convert.types.mmproj));
    refuse(&args)?;
    let it = &args.convert;
    let to = target(&args)?;
    let gates = eval::gates(&it.gates)?;
    if it.text.is_none() && !gates.is_empty() {
        return Err(Error::Usage("a quality gate needs a text to measure on: add --text FILE".into()));
    }
    gates.check_limits()?;
    // An interrupted release goes on after its last artifact, whatever these are.
    let given: Vec<String> = given.iter().filter(|id| *id != "resume").cloned().collect();
    let may_push = || to.as_ref().filter(|_| !it.dry_run).map_or(Ok(()), |to| push::check(to, &it.hub));
    let Prepared { control, terminal, mut recipe, named, path, source } = prepare(it, &given, may_push)?;
    if let Some(device) = &device {
        let found = fitting::choose(&source, &mut recipe, device, it.folder.tp.max(1), args.context)?;
        say!("{}", found.why());
    }
    let measurement = it.text.clone().map(|text| convert::measurement(it, text, gates));
    let options = Options {
        name: args.name.clone(),
        base_model: args.base_model.clone().or_else(|| hub_id(&path, &named)),
        revision: it.hub.revision.clone(),
        license: args.license.clone(),
        quantized_by: args.quantized_by.clone(),
        repository: args.repo.clone().or_else(|| to.as_ref().map(|to| to.id.clone())),
        projector,
        measurement,
        command: command(),
    };
    let target = it.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}-release", source.name())));
    let release = release::plan(&source, &recipe, &target, options)?;
    if it.check {
        proven::can_run(&release.plan)?;
    }
    accept(it, &release.plan)?;
    if !it.common.quiet && release.parent.id.is_none() {
        say!("hint: --base-model org/name says which model it is");
    }
    if it.dry_run {
        return describe(&release, &args, to.as_ref(), &control);
    }
    if !it.common.quiet {
        for output in &release.plan.outputs {
            words::departures(&output.ledger()).iter().for_each(|line| say!("{}: {line}", output.target.name()));
        }
    }
    let made = release::run(&release, &control, &terminal)?;
    // What was measured is said before anything is sent.
    let mut told = say_made(&made, it.common.format)?;
    if let Some(to) = &to {
        let sent = push::send(&made.folder, to, &it.hub, it.common.threads);
        let (sent, url) = sent.inspect_err(|_| {
            let again = format!("quantize push {} {}", escape::shell(&made.folder.to_string_lossy()), to.id);
            say!("the release is complete; `{again}` pushes it");
        })?;
        told["pushed"] = sent;
        if it.common.format == Format::Text {
            print(&format!("{url}\n"))?;
        }
    }
    match it.common.format {
        Format::Json => print_json(&told),
        Format::Text => Ok(()),
    }
}

/// Where it is to be pushed.
fn target(args: &ReleaseArgs) -> Result<Option<Target>> {
    let Some(id) = args.push_to.as_deref().map(values::of_address) else { return Ok(None) };
    if !crate::card::is_id(&id) {
        return Err(Error::Usage(format!("--push-to '{id}' is not the id of a repository; write org/name")));
    }
    if args.repo.as_ref().is_some_and(|repo| *repo != id) {
        return Err(Error::Usage("--repo and --push-to name different repositories; --push-to is enough".into()));
    }
    Ok(Some(Target {
        id,
        revision: "main".into(),
        private: args.private,
        create_pr: args.create_pr,
        message: None,
        quiet: args.convert.common.quiet,
    }))
}

/// What `--mmproj` says: nothing, `none`, or types.
fn projector(types: Vec<String>) -> Projector {
    match types.as_slice() {
        [] => Projector::WhereThereIs,
        [none] if none.eq_ignore_ascii_case("none") => Projector::Without,
        _ => Projector::Types(types),
    }
}

/// The Hub id that was typed, where no path is meant.
fn hub_id(path: &Path, model: &str) -> Option<String> {
    let id = values::of_address(model);
    (path != Path::new(model)).then(|| id.split('@').next().unwrap_or(&id).to_string())
}

/// Flags of the ordinary command that a release decides itself.
fn refuse(args: &ReleaseArgs) -> Result<()> {
    let it = &args.convert;
    let own = [
        (!it.report.is_empty(), "--report", "report.json, report.html and report.md are written when --text is given"),
        (it.save_imatrix.is_some(), "--save-imatrix", "the importance matrix that --calibration makes is kept"),
        (it.modelfile, "--modelfile", "`ollama run hf.co/...` needs none"),
    ];
    match own.iter().find(|(given, ..)| *given) {
        Some((_, flag, why)) => Err(Error::Usage(format!("{flag} is not for releases: {why}"))),
        None => Ok(()),
    }
}

/// The command line without the folders of this machine. A release that was gone on with is the same release.
fn command() -> String {
    let short = |arg: String| match Path::new(&arg).is_absolute() {
        true => Path::new(&arg).file_name().map_or(arg.clone(), |n| n.to_string_lossy().into_owned()),
        false => arg,
    };
    let args = words::command_for_bytes().into_iter().skip(1).map(short);
    std::iter::once("quantize".to_string()).chain(args.map(|a| escape::shell(&a))).collect::<Vec<_>>().join(" ")
}

fn describe(release: &Release, args: &ReleaseArgs, to: Option<&Target>, control: &Control) -> Result<()> {
    if args.convert.common.format == Format::Text {
        print(&format!("{}/\n", release.target.display()))?;
        release.contents().iter().try_for_each(|name| print(&format!("  {name}\n")))?;
        if let Some(to) = to {
            print(&format!("{}\n", to.in_words()))?;
        }
        print("\n")?;
    } else if let Some(to) = to {
        say!("{}", to.in_words());
    }
    plan::describe(&release.plan, &args.convert, control)
}

/// Says what was made; as JSON it is returned, since a push adds to it.
fn say_made(made: &Released, format: Format) -> Result<Value> {
    let row = |a: &release::Artifact| {
        let mut row = json!({
            "type": a.target, "path": a.path, "format": a.format, "bytes": a.bytes, "bits_per_weight": a.bits_per_weight,
        });
        if let Some(Measured::Vectors(cosines)) = &a.measured {
            row["cosine"] = json!(cosines);
        }
        if let Some(Measured::Logits(s)) = &a.measured {
            row["kl_divergence"] = json!(s.kld);
            row["same_top"] = json!(s.same_top);
        }
        row
    };
    if format == Format::Text {
        if let Some(report) = &made.report {
            super::output::say_block(&render_text(report));
        }
        for a in made.artifacts.iter().chain(&made.projectors) {
            say!("  {:<8} {:>10}  {:.2} bits per weight  {}", a.target, human(a.bytes), a.bits_per_weight, a.path);
        }
        say!(
            "  in {:.1} s; README.md is the model card, SHA256SUMS and quantize-manifest.json have the hashes",
            made.seconds
        );
        print(&format!("{}\n", made.folder.display()))?;
    }
    let rows = |artifacts: &[release::Artifact]| artifacts.iter().map(row).collect::<Vec<Value>>();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"), "folder": escape::path(&made.folder), "artifacts": rows(&made.artifacts),
        "projectors": rows(&made.projectors), "report": made.report, "seconds": made.seconds,
    }))
}
