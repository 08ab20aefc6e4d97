//! When the flags of a conversion have an effect, by what is made and of what.

use super::{Rule, refuse_idle};
use crate::calibration::data::Source;
use crate::convert::recipe::Data;
use crate::convert::rounding::{has_feedback, needs_data};
use crate::convert::{Recipe, recipe::Target};
use crate::packed::{ChannelScaling, Spec};
use crate::{Error, Result};

/// What of a run decides whether flags matter.
pub(super) struct Effects {
    files: bool,
    folders: bool,
    /// Folders without quantization.
    plain: bool,
    /// GGUF files with error feedback.
    file_feedback: bool,
    /// Anything with error feedback.
    feedback: bool,
    /// Anything that calibration data is used for.
    calibrated: bool,
    /// Data was named.
    data: bool,
    importance: bool,
    desc_act: bool,
    smooth: bool,
    /// Folders whose scales can be tuned, and data.
    tunes: bool,
    text: bool,
    sequential_files: bool,
    /// Types that come out as garbage without importance, and none is given.
    uncalibrated: bool,
}

impl Effects {
    fn new(recipe: &Recipe, text: bool) -> Self {
        let (files, data) = (recipe.files().next().is_some(), recipe.data.is_some());
        let quantized = |t: &Target| !matches!(t, Target::Preset(preset) if preset.default.is_plain());
        let rounding = &recipe.rounding;
        let file_feedback = files && data && recipe.file_feedback() && recipe.files().any(quantized);
        let folder_feedback = recipe.folders().any(|spec| has_feedback(spec, rounding, data));
        let folder_data = recipe.folders().any(|spec| needs_data(spec, rounding, data));
        Self {
            files,
            folders: recipe.folders().next().is_some(),
            plain: recipe.outputs.iter().any(|t| matches!(t, Target::Plain { .. })),
            file_feedback,
            feedback: file_feedback || folder_feedback,
            calibrated: folder_data
                || (data && recipe.outputs.iter().any(|t| t.limit().is_some()))
                || (data && recipe.files().any(quantized)),
            data,
            importance: recipe.importance.is_some(),
            desc_act: recipe.folders().any(|spec| spec.desc_act),
            tunes: data && recipe.folders().any(Spec::is_tunable),
            smooth: data && recipe.folders().any(|spec| spec.scaling() == ChannelScaling::SmoothQuant),
            text,
            uncalibrated: recipe.ruinous().next().is_some(),
            sequential_files: file_feedback && recipe.sequential_files(),
        }
    }
}

const FILES: &str = "only affects GGUF files, and none are written";
const FOLDERS: &str = "only affects checkpoint folders (gptq, awq, fp8, ...), and none are written";
const PLAIN: &str = "only affects --to safetensors";
const FEEDBACK: &str = "only affects error feedback, which no output uses";
const FILE_FEEDBACK: &str = "is for GGUF files with error feedback: add --calibration default";
const CALIBRATED: &str = "has no effect: no format asked for is calibrated";
const TEXT: &str = "only affects the comparison with the source: add --text FILE";

pub(super) const RULES: &[Rule<Effects>] = rules! {
    tensor_type          "--tensor-type"          |e| e.files || e.folders, "only affects quantized outputs, and there are none";
    include              "--include"              |e| e.folders, FOLDERS;
    exclude              "--exclude"              |e| e.folders, FOLDERS;
    tensor_type_file     "--tensor-type-file"     |e| e.files || e.folders, "only affects quantized outputs, and there are none";
    output_tensor_type   "--output-tensor-type"   |e| e.files, FILES;
    token_embedding_type "--token-embedding-type" |e| e.files, FILES;
    leave_output_tensor  "--leave-output-tensor"  |e| e.files, FILES;
    pure                 "--pure"                 |e| e.files, FILES;
    allow_requantize     "--allow-requantize"     |e| e.files, FILES;
    override_kv          "--override-kv"          |e| e.files, FILES;
    pretokenizer         "--pretokenizer"         |e| e.files, FILES;
    mtp                  "--mtp"                  |e| e.files, FILES;
    dtype                "--dtype"                |e| e.plain, PLAIN;
    like_config          "--like-config"          |e| e.plain, PLAIN;
    imatrix              "--imatrix"              |e| e.files, FILES;
    unseen_experts       "--unseen-experts"       |e| e.files && (e.importance || e.data), "is for GGUF files with an importance matrix";
    save_imatrix         "--save-imatrix"         |e| e.files && e.data, "is for GGUF files that are calibrated";
    split_max_tensors    "--split-max-tensors"    |e| e.files, FILES;
    keep_split           "--keep-split"           |e| e.files, FILES;
    modelfile            "--modelfile"            |e| e.files, FILES;
    calibration          "--calibration"          |e| e.calibrated, CALIBRATED;
    calibration_tokens   "--calibration-tokens"   |e| e.calibrated, CALIBRATED;
    seq_len              "--seq-len"              |e| e.calibrated, CALIBRATED;
    calibration_seed     "--seed"                 |e| e.calibrated, CALIBRATED;
    max_memory           "--max-memory"           |e| e.calibrated, CALIBRATED;
    sequential           "--sequential"           |e| e.calibrated && (e.file_feedback || e.folders), FEEDBACK;
    no_sequential        "--no-sequential"        |e| e.calibrated && (e.file_feedback || e.folders), FEEDBACK;
    sort_channels        "--sort-channels"        |e| e.file_feedback, FILE_FEEDBACK;
    rho                  "--rho"                  |e| e.feedback, FEEDBACK;
    damp                 "--damp"                 |e| e.feedback, FEEDBACK;
    resume               "--resume"               |e| e.folders || e.plain || e.file_feedback, "continues checkpoint folders and GGUF files with error feedback";
    group_size           "--group-size"           |e| e.folders, FOLDERS;
    bits                 "--bits"                 |e| e.folders, FOLDERS;
    sym                  "--sym"                  |e| e.folders, FOLDERS;
    asym                 "--asym"                 |e| e.folders, FOLDERS;
    desc_act             "--desc-act"             |e| e.folders, FOLDERS;
    checkpoint_format    "--checkpoint-format"    |e| e.folders, FOLDERS;
    tp                   "--tp"                   |e| e.folders, FOLDERS;
    static_groups        "--static-groups"        |e| e.desc_act, "is for GPTQ folders with --desc-act";
    uncalibrated         "--uncalibrated"         |e| e.uncalibrated, "is for i-quants below four bits without importance matrix or calibration";
    smooth               "--smooth"               |e| e.smooth, "is for --to int8 with --calibration";
    tune                 "--tune"                 |e| e.tunes, "is for --to mlx-4bit, gptq, awq, w4a16 and the like with --calibration";
    ctx                  "--ctx"                  |e| e.text, TEXT;
};

/// Flags that always have an effect, permit or promise something, or that clap itself ties to others.
#[cfg(test)]
pub(super) const ALWAYS: &[&str] = &[
    "model",
    "lora",
    "to",
    "mmproj",
    "on_fallback",
    "target_bpw",
    "target_size",
    "like",
    "rounding",
    "force",
    "output",
    "recipe",
    "print_recipe",
    "dry_run",
    "split_max_size",
    "no_source_hash",
    "text",
    "chunks",
    "report",
    "max_kld",
    "max_ppl_increase",
    "min_top1",
    "min_cosine",
    "offline",
    "check",
    "no_check",
    "threads",
    "format",
    "quiet",
    "help",
    "version",
];

/// Refuses a flag that would do nothing.
///
/// # Errors
/// `Usage`, naming the flag and what it is for.
pub fn refuse(given: &[String], recipe: &Recipe, text: bool) -> Result<()> {
    let effects = Effects::new(recipe, text);
    let is_given = |id: &str| given.iter().any(|given| given == id);
    refuse_idle(RULES, is_given, &effects)?;
    if is_given("resume") && effects.sequential_files {
        return Err(Error::Usage("GGUF files with --sequential cannot be resumed".into()));
    }
    Ok(())
}

/// The same for a plan, whose data need not be there; `calibrated`: whether it is planned as if they were.
///
/// # Errors
/// As [`refuse`].
pub fn of_plan(given: &[String], recipe: &Recipe, calibrated: bool) -> Result<()> {
    let data = calibrated.then(|| Data { sources: vec![Source::Default], tokens: 0, window: 0, seed: 0 });
    // What calibration takes is said whether there is data or not.
    let given: Vec<String> = given.iter().filter(|id| *id != "calibration_tokens").cloned().collect();
    refuse(&given, &Recipe { data, ..recipe.clone() }, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_flags_are_refused() {
        let refused = |to: &[&str], ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(|s| s.to_string()).collect();
            refuse(&ids, &Recipe::to(to.iter().copied()).unwrap(), false).is_err()
        };
        for id in
            ["damp", "rho", "seq_len", "calibration_seed", "sequential", "smooth", "tp", "resume", "unseen_experts"]
        {
            assert!(refused(&["q8_0"], &[id]), "{id}");
        }
        assert!(
            refused(&["gptq"], &["unseen_experts"])
                && refused(&["fp8"], &["rho"])
                && refused(&["fp8"], &["calibration"])
        );
        assert!(!refused(&["gptq"], &["rho", "damp", "seq_len", "resume", "no_sequential"]));
        assert!(!refused(&["q8_0", "fp8"], &["tp", "pure", "resume"]));
    }
    #[test]
    fn a_calibrated_plan_is_one_of_what_is_calibrated() {
        let refused =
            |to: &str, calibrated| of_plan(&["calibration".into()], &Recipe::to([to]).unwrap(), calibrated).is_err();
        assert!(!refused("q4_k_m", true) && !refused("gptq", true) && refused("fp8", true) && refused("f16", true));
    }
}
