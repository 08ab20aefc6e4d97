//! A release: everything of one model that is published together, in one folder. Artifacts named after the model, the
//! importance matrix, reports, a model card, hashes of every file and tensor, and a manifest from which it can be made
//! again. Conversion and measurement are those of [`crate::convert`] and [`crate::check`]; here they become a folder that
//! has its name only when all of it is there and no gate failed.
//!
//! ```
//! use quantize::{Control, convert::Recipe, model::SourceModel, release::{self, Options}};
//!
//! let source = SourceModel::open("tests/conformance/llama".as_ref())?;
//! let folder = tempfile::tempdir().unwrap();
//! let options = Options { base_model: Some("org/llama".into()), ..Options::default() };
//! let release = release::plan(&source, &Recipe::to(["q8_0"])?, &folder.path().join("out"), options)?;
//! let made = release::run(&release, &Control::default(), &())?;
//! assert!(made.folder.join("llama-Q8_0.gguf").is_file() && made.folder.join("SHA256SUMS").is_file());
//! let card = std::fs::read_to_string(made.folder.join("README.md")).unwrap();
//! assert!(card.starts_with("---\nbase_model: org/llama\nbase_model_relation: quantized\n"));
//! # Ok::<(), quantize::Error>(())
//! ```

mod artifact;
mod card;
pub(crate) mod hashes;
mod manifest;
pub(crate) mod place;
mod projector;
#[cfg(feature = "hub")]
pub(crate) mod push;
mod verify;

pub use artifact::Artifact;
pub use hashes::{FileHash, SUMS, TensorHash};
pub use manifest::SCHEMA;
pub use projector::Projector;
pub use verify::{Verified, is_release, verify};

use crate::card::{Parent, file_stem, is_id, is_vague};
use crate::check::{self, Measurement};
use crate::control::{Control, Notice, Report, Run, Unit};
use crate::convert::companions::others;
use crate::convert::identity::Identity;
use crate::convert::{self, Decided, Made, Plan, Recipe, folder::files};
use crate::digest::sha256;
use crate::disk::free_space;
use crate::eval::gate;
use crate::model::SourceModel;
use crate::report;
use crate::source::sha256_file;
use crate::writer::folder::{self, MANIFEST};
use crate::writer::gguf::human;
use crate::{Error, Result};
use place::Place;
use std::path::{Path, PathBuf};

/// The reports of a measured release.
const REPORTS: [&str; 3] = ["report.json", "report.html", "report.md"];
/// The Hub takes no larger files.
const LARGEST_ON_HUB: u64 = 50_000_000_000;

/// What a release says beyond what its source and its recipe tell.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What files are named after.
    pub name: Option<String>,
    /// The source's id on the Hub.
    pub base_model: Option<String>,
    /// The commit there.
    pub revision: Option<String>,
    /// The license, in the Hub's words, unless the source's card says so.
    pub license: Option<String>,
    /// Who quantized it, for the model card.
    pub quantized_by: Option<String>,
    /// Where it will be published.
    pub repository: Option<String>,
    /// What becomes of the projector of a model that sees or hears.
    pub projector: Projector,
    /// How the artifacts are compared with the source, and the limits that they are held to.
    pub measurement: Option<Measurement>,
    /// The command line that made it.
    pub command: String,
}

/// A release, decided.
#[derive(Debug)]
pub struct Release {
    /// What is converted. Its outputs go into the unfinished folder.
    pub plan: Plan,
    /// The projector files beside it.
    pub projector: Option<Plan>,
    /// What files are named after.
    pub name: String,
    /// What the source's card says.
    pub(crate) parent: Parent,
    /// What was asked for beside the recipe.
    pub options: Options,
    /// The folder that it becomes.
    pub target: PathBuf,
}

/// A finished release.
#[derive(Debug)]
pub struct Released {
    /// Where it lies.
    pub folder: PathBuf,
    /// Smallest first.
    pub artifacts: Vec<Artifact>,
    /// The projector files, where the model has one.
    pub projectors: Vec<Artifact>,
    /// The comparison with the source, where there was one.
    pub report: Option<report::Report>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Decides everything of a release in the folder `target`. No weight is read.
///
/// # Errors
/// As [`convert::plan`] and, for the text, [`check::text_suffices`]; `Request` for names that files or the Hub cannot have.
pub fn plan(source: &SourceModel, recipe: &Recipe, target: &Path, options: Options) -> Result<Release> {
    let about = |what: &str, text: &str| Error::request(format!("'{text}' is not a {what}"));
    if let Some(name) = options.name.as_ref().filter(|name| file_stem(name) != **name) {
        let hint = format!("use letters, digits and . _ + -: {}", file_stem(name));
        return Err(about("file name", name).hint(hint));
    }
    for (what, id) in [("id of a base model", &options.base_model), ("id of a repository", &options.repository)] {
        if let Some(id) = id.as_ref().filter(|id| !is_id(id)) {
            return Err(about(what, id).hint("write org/name"));
        }
    }
    if target.file_name().is_none() {
        return Err(Error::request(format!("{}: name the folder of the release", target.display())));
    }
    if recipe.outputs.is_empty() {
        return Err(Error::request("a release has no artifacts; name types"));
    }
    if recipe.outputs.iter().any(|t| matches!(t, convert::Target::Plain { .. })) {
        return Err(Error::request(
            "a release holds quantized artifacts; a folder without quantization cannot be part of it",
        ));
    }
    let mut plan = convert::plan(source, recipe)?;
    if let Some(how) = &options.measurement {
        check::text_suffices(&source.to_run()?, how)?;
    }
    let config = source.model.hf_config.as_ref();
    let mut parent = Parent::of(&source.path, config, source.ckpt.gguf(), &source.name());
    if let Some(id) = &options.base_model {
        parent.revision = parent.revision.filter(|_| parent.id.as_ref() == Some(id));
        parent.id = Some(id.clone());
    }
    parent.revision = options.revision.clone().or(parent.revision);
    parent.license = options.license.clone().or(parent.license);
    let of_id = parent.id.as_ref().and_then(|id| id.rsplit('/').next()).filter(|_| is_vague(&parent.name));
    let name = options.name.clone().or(of_id.map(file_stem)).unwrap_or_else(|| parent.name.clone());
    parent.name = name.clone();
    let partial = folder::partial_path(target);
    plan.name_after(&name, &partial);
    let mut projector = projector::plan(source, &mut plan, &options)?;
    projector.iter_mut().for_each(|projector| projector.name_after(&name, &partial));
    if recipe.data.is_some() && plan.files().next().is_some() {
        plan.save_importance = Some(partial.join(importance_name(&name)));
    }
    plan.evaluation_text = options.measurement.as_ref().and_then(|how| how.text.clone());
    remark(&mut plan, &parent);
    Ok(Release { plan, projector, name, parent, options, target: target.to_path_buf() })
}

fn importance_name(name: &str) -> String {
    format!("{name}-imatrix.gguf")
}

/// What a person who publishes should know.
fn remark(plan: &mut Plan, parent: &Parent) {
    let mut remarks = Vec::new();
    let large = plan.files().find(|(_, file)| file.sizes.file_bytes > LARGEST_ON_HUB);
    if let Some((output, file)) = large.filter(|_| plan.recipe.split == convert::Split::Usual) {
        let (name, size) = (output.target.name(), human(file.sizes.file_bytes));
        remarks.push(format!("{name} takes {size}, and the Hub takes files of up to 50 GB; split it"));
    }
    if parent.id.is_none() {
        let perhaps = parent.perhaps.as_ref().map_or(String::new(), |id| format!(" (config.json names {id})"));
        remarks.push(format!("the source's id on the Hub is not known{perhaps}, so the card names no base model"));
    }
    if parent.license.is_none() {
        remarks.push("the source's card names no license, so neither does the release's".into());
    }
    plan.remarks.extend(remarks);
}

impl Release {
    /// The files and folders that it will have.
    pub fn contents(&self) -> Vec<String> {
        let name = |place: &Path| place.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let outputs = self.plan.outputs.iter().map(|o| match o.what {
            Decided::File(_) => name(&o.place),
            Decided::Folder(_) | Decided::Plain(_) => name(&o.place) + "/",
        });
        let importance = self.plan.save_importance.iter().map(|path| name(path));
        let reports = REPORTS.iter().filter(|_| self.options.measurement.is_some()).map(|s| s.to_string());
        let rest = ["README.md", MANIFEST, SUMS].map(String::from);
        outputs.chain(projector::names(self)).chain(importance).chain(reports).chain(rest).collect()
    }

    /// The files of the source that say what may be done with the model.
    fn licenses(&self) -> Result<Vec<String>> {
        let ckpt = &self.plan.source.ckpt;
        if ckpt.gguf().is_some() {
            return Ok(Vec::new());
        }
        let begins = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "USE_POLICY"];
        let is_license = |name: &String| begins.iter().any(|b| name.to_ascii_uppercase().starts_with(b));
        Ok(others(ckpt.dir())?.into_iter().filter(is_license).collect())
    }

    /// That the release can become its folder.
    ///
    /// # Errors
    /// `Exists`; `Request` for a folder that the source or another input is in.
    pub fn check_place(&self, control: &Control, report: &dyn Report) -> Result<()> {
        let there = folder::refuse_existing(&self.target, control.force);
        there.inspect_err(|_| {
            if let Some(text) = place::describe(&self.target) {
                let output = self.target.display().to_string();
                report.notice(&Notice::About { output, text });
            }
        })?;
        self.plan.refuse_input(&self.target)
    }
}

/// Makes a release. Its folder has the final name only when everything is whole and no gate failed.
///
/// # Errors
/// As [`Release::check_place`], [`convert::run`] and [`check::compare`]; `Unfinished` for what an earlier run left; `Gate`
/// when a gate failed: the folder then has the name that [`failed_name`] gives.
pub fn run(release: &Release, control: &Control, report: &dyn Report) -> Result<Released> {
    let (begin, run) = (std::time::Instant::now(), Run::new(control, report));
    let finished = Place::complete(&release.target, run)?;
    if finished.is_none() {
        release.check_place(control, report)?;
    }
    let identity = Identity::new(&release.plan.source.ckpt, None, Vec::new(), &control.cancel)?;
    let mut key = identity.key(std::slice::from_ref(&release.plan.recipe));
    key["name"] = release.name.clone().into();
    // What is made already is known by its name alone, so that what it was calibrated on stands here.
    if let Some((data, _)) = convert::data_of(&release.plan) {
        key["calibration"] = serde_json::json!(Identity::of_data(&data, &control.cancel)?);
    }
    if let Some(projector) = &release.projector {
        key["projector"] = projector.recipe.to_json();
    }
    let words = words(&release.options, run)?;
    match finished {
        Some(there) if there == place::note(&key, &words) => return found(release, run),
        Some(_) => release.check_place(control, report)?,
        None => {}
    }
    let place = Place::begin(&release.target, &key, &words, run)?;
    if !place.resumed {
        enough_space(release)?;
    }
    let made = fill(release, &place, run).inspect_err(|_| place.tell(run))?;
    let Filled { artifacts, projectors, report, verdict } = made;
    let seconds = begin.elapsed().as_secs_f64();
    match verdict {
        Ok(()) => Ok(Released { folder: place.publish()?, artifacts, projectors, report, seconds }),
        Err(Error::Gate(what)) => {
            let kept = place.reject()?;
            let page = kept.join(REPORTS[1]);
            Err(Error::Gate(format!("{what}. It was not released; what was made is {}", page.display())))
        }
        Err(other) => Err(other),
    }
}

/// What cards and figures hang on beside the recipe: made anew when a release goes on, and not asked for once it is
/// finished.
fn words(options: &Options, run: Run) -> Result<String> {
    let text = options.measurement.as_ref().and_then(|how| how.text.as_ref());
    let text = text.map(|text| sha256_file(text, &run.control.cancel)).transpose()?;
    Ok(sha256(format!("{options:?} {text:?}").as_bytes()))
}

/// The release that an interrupted run had finished.
fn found(release: &Release, run: Run) -> Result<Released> {
    let begin = std::time::Instant::now();
    let open = |output: &convert::OutputPlan| {
        Artifact::open_at(output, &release.target.join(output.place.file_name().unwrap_or_default()), run)
    };
    let mut artifacts = release.plan.outputs.iter().map(open).collect::<Result<Vec<_>>>()?;
    let projectors = release.projector.iter().flat_map(|plan| &plan.outputs).map(open).collect::<Result<Vec<_>>>()?;
    let report = match release.options.measurement {
        Some(_) => Some(report::Report::from_json(&crate::input::read_text(&release.target.join(REPORTS[0]))?)?),
        None => None,
    };
    for (artifact, candidate) in artifacts.iter_mut().zip(report.iter().flat_map(|report| &report.candidates)) {
        artifact.measured = candidate.measured();
    }
    artifacts.sort_by_key(|a| a.bytes);
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Released { folder: release.target.clone(), artifacts, projectors, report, seconds })
}

fn enough_space(release: &Release) -> Result<()> {
    let bytes: u64 = release
        .plan
        .outputs
        .iter()
        .chain(release.projector.iter().flat_map(|plan| &plan.outputs))
        .map(|o| match &o.what {
            Decided::File(file) => file.sizes.file_bytes,
            Decided::Folder(folder) => folder.tensor_bytes(),
            Decided::Plain(folder) => folder.tensor_bytes(),
        })
        .sum();
    match free_space(&release.target).filter(|free| *free < bytes) {
        Some(free) => {
            let (need, free) = (human(bytes), human(free));
            Err(Error::storage(format!("{}: needs {need} of disk, {free} free", release.target.display())))
        }
        None => Ok(()),
    }
}

/// What is in a release's folder, and what the gates say of it.
struct Filled {
    artifacts: Vec<Artifact>,
    projectors: Vec<Artifact>,
    report: Option<report::Report>,
    verdict: Result<()>,
}

fn fill(release: &Release, place: &Place, run: Run) -> Result<Filled> {
    let made = convert(release, run)?;
    let mut artifacts = release.plan.outputs.iter().map(|o| Artifact::open(o, run)).collect::<Result<Vec<_>>>()?;
    let projectors = projector::make(release, run)?;
    let report = measured(release, &made, &mut artifacts, run)?;
    artifacts.sort_by_key(|a| a.bytes);
    if let Some(report) = &report {
        place.text(REPORTS[0], &report.to_json()?)?;
        place.text(REPORTS[1], &report::render_html(report)?)?;
        place.text(REPORTS[2], &report::render_markdown(report)?)?;
    }
    for name in release.licenses()? {
        place.copy(&release.plan.source.ckpt.dir().join(&name), &name)?;
    }
    cards_of_folders(release, place, &artifacts)?;
    place.text("README.md", &card::text(release, &artifacts, &projectors, report.as_ref())?)?;
    // Cards are edited on the Hub; that is no damage.
    let is_hashed = |name: &String| !is_card(name) && name != MANIFEST && name != SUMS;
    let names: Vec<String> = place.files()?.into_iter().filter(is_hashed).collect();
    let sizes = names.iter().filter_map(|name| place.folder().join(name).metadata().ok());
    let phase = run.phase("hashing", sizes.map(|m| m.len()).sum(), Unit::Bytes);
    let mut hashed = names.iter().map(|name| hashes::hash(place.folder(), name, run)).collect::<Result<Vec<_>>>()?;
    drop(phase);
    place.text(MANIFEST, &manifest::text(release, &artifacts, &projectors, &hashed))?;
    hashed.push(hashes::hash(place.folder(), MANIFEST, run)?);
    place.text(SUMS, &hashes::sums(&hashed))?;
    run.check()?;
    let verdict = report.as_ref().map_or(Ok(()), |report| gate::verdict(&report.gates));
    Ok(Filled { artifacts, projectors, report, verdict })
}

/// Makes what is not there yet. GGUF files come of one pass, so they are made together.
fn convert(release: &Release, run: Run) -> Result<Vec<Made>> {
    let plan = &release.plan;
    let is_there = |output: &convert::OutputPlan| !artifact::paths_of(output).is_empty();
    let files = plan.files().all(|(output, _)| is_there(output));
    let rest: Vec<usize> = plan
        .outputs
        .iter()
        .filter(|o| if o.target.is_file() { !files } else { !is_there(o) })
        .map(|o| o.index)
        .collect();
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    // In the unfinished folder everything is this run's.
    let control = Control { force: true, ..run.control.clone() };
    if rest.len() == plan.outputs.len() {
        return Ok(convert::run(plan, &control, run.report)?.outputs);
    }
    let outputs = rest.iter().map(|index| plan.recipe.outputs[*index].clone()).collect();
    let mut left = convert::plan(&plan.source, &Recipe { outputs, ..plan.recipe.clone() })?;
    left.name_after(&release.name, &folder::partial_path(&release.target));
    left.save_importance = plan.save_importance.clone().filter(|_| !files);
    left.evaluation_text = plan.evaluation_text.clone();
    Ok(convert::run(&left, &control, run.report)?.outputs)
}

/// The comparison with the source; what it says goes into the artifacts, too.
fn measured(release: &Release, made: &[Made], artifacts: &mut [Artifact], run: Run) -> Result<Option<report::Report>> {
    let Some(how) = &release.options.measurement else { return Ok(None) };
    let paths: Vec<PathBuf> = artifacts.iter().filter_map(|a| a.places.first().cloned()).collect();
    let mut report = check::compare(&release.plan.source.path, &paths, how, run.control, run.report)?;
    for (artifact, candidate) in artifacts.iter_mut().zip(&mut report.candidates) {
        artifact.measured = candidate.measured();
        candidate.artifact.path = artifact.path.clone();
        let rows = made.iter().filter(|made| made.name == artifact.target).flat_map(|made| &made.ledger);
        let name = &candidate.artifact.name;
        report.ledger.extend(rows.map(|row| report::LedgerRow { candidate: name.clone(), ..row.clone() }));
    }
    // A published report names no paths of the machine it was made on.
    let parent = release.parent.id.clone().unwrap_or_else(|| release.name.clone());
    for artifact in report.source.iter_mut().chain(report.base.as_mut().map(|base| &mut base.artifact)) {
        artifact.path = parent.clone();
    }
    if let Some(source) = &mut report.source {
        source.name = release.name.clone();
    }
    if let Some(method) = &mut report.method {
        method.text =
            Path::new(&method.text).file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    }
    report.command = release.options.command.clone();
    Ok(Some(report))
}

/// Whether a file of a release is a model card.
fn is_card(name: &str) -> bool {
    name.rsplit('/').next() == Some("README.md")
}

/// The cards of the folders among the artifacts, with what is known of the release.
fn cards_of_folders(release: &Release, place: &Place, artifacts: &[Artifact]) -> Result<()> {
    let source = &release.plan.source;
    for (output, planned) in release.plan.folders() {
        let Some(artifact) = artifacts.iter().find(|a| a.index == output.index) else { continue };
        let about = files::About {
            parent: release.parent.clone(),
            quantized_by: release.options.quantized_by.clone(),
            repository: Some(card::repository(release)),
            sub: Some(artifact.path.clone()),
            measured: artifact.in_words(),
            ..files::About::of(&source.ckpt, &source.model, &release.name)
        };
        let text =
            files::card(&artifact.path, planned, &artifact.manifest, &files::departures(&artifact.manifest), &about)?;
        place.text(&format!("{}/README.md", artifact.path), &text)?;
    }
    Ok(())
}

/// The name that a release has which failed its gates.
pub fn failed_name(target: &Path) -> PathBuf {
    place::failed_name(target)
}
