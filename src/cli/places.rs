//! Which of the files that are named on the command line are read, and which are written.

use super::commands::{CalibrateArgs, ConvertArgs};
use crate::Result;
use crate::writer::places::check;
use std::path::{Path, PathBuf};

/// Checks the outputs of a conversion of the model at `model` to files (`outputs`).
pub fn of_conversion(args: &ConvertArgs, model: &Path, outputs: &[PathBuf]) -> Result<()> {
    if args.dry_run {
        return Ok(());
    }
    let side = args.save_imatrix.iter().chain(&args.report).chain(outputs);
    // What is there already is for the conversion to judge: it may be this one's, finished before it was killed.
    check(read_by_conversion(args).chain([model]), side.map(PathBuf::as_path), true)
}

/// The files that are named for a conversion to read, but for its model.
pub fn read_by_conversion(args: &ConvertArgs) -> impl Iterator<Item = &Path> {
    let named = [&args.imatrix.imatrix, &args.text, &args.types.tensor_type_file, &args.lora, &args.recipe];
    let files = named.into_iter().flatten().chain(&args.folder.like_config).map(PathBuf::as_path);
    let files = files.chain(args.budget.like.iter().map(Path::new));
    files.chain(args.calibration.calibration.iter().map(Path::new))
}

/// The same for a calibration of the model at `model`.
pub fn of_calibration(args: &CalibrateArgs, model: Option<&Path>) -> Result<()> {
    let outputs = args.output.iter().chain(&args.save_text).map(PathBuf::as_path);
    // What is there already may be this one's, too.
    check(read_by_calibration(args).chain(model), outputs, true)
}

/// The files that are named for a calibration to read.
pub fn read_by_calibration(args: &CalibrateArgs) -> impl Iterator<Item = &Path> {
    let model = args.model.iter().map(Path::new);
    let files = args.merge.iter().chain(&args.text).chain(&args.lora).map(PathBuf::as_path);
    files.chain(args.data.calibration.iter().map(Path::new)).chain(model)
}
