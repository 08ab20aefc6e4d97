//! Converts a checkpoint, and says how far it is: `convert MODEL FOLDER q4_k_m q8_0`
use quantize::convert::{self, Recipe};
use quantize::{Control, Notice, Phase, Report, Result, model::SourceModel};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what is done of each phase. Progress comes from any thread.
#[derive(Default)]
struct Terminal(AtomicU64);

impl Report for Terminal {
    fn begin(&self, phase: &Phase) {
        self.0.store(0, Ordering::Relaxed);
        println!("{}: {} to go", phase.name, phase.total);
    }
    fn advance(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    fn end(&self) {
        println!("  {} done", self.0.load(Ordering::Relaxed));
    }
    fn notice(&self, notice: &Notice) {
        println!("{notice}");
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, folder, types @ ..] = &args[..] else { panic!("convert MODEL FOLDER TYPE...") };
    let source = SourceModel::open(model.as_ref())?;
    let mut plan = convert::plan(&source, &Recipe::to(types.iter().map(String::as_str))?)?;
    plan.place(folder.as_ref())?;
    // A clone of `control.cancel` ends the run from anywhere, with `Error::Interrupted`.
    let control = Control { threads: 2, force: true, ..Control::default() };
    for made in convert::run(&plan, &control, &Terminal::default())?.outputs {
        println!("{}: {:.2} bits per weight", made.paths[0].display(), made.bits_per_weight);
    }
    Ok(())
}
