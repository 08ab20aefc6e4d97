//! Measures what artifacts lost, and judges them: `compare MODEL TEXT report.html ARTIFACT...`
use quantize::check::{self, Measurement};
use quantize::eval::{Gates, Method};
use quantize::{Control, Error, Result, report};
use std::path::PathBuf;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, text, page, artifacts @ ..] = &args[..] else { panic!("compare MODEL TEXT PAGE ARTIFACT...") };
    let artifacts: Vec<PathBuf> = artifacts.iter().map(PathBuf::from).collect();
    let how = Measurement {
        method: Method::LlamaCpp { ctx: 64 },
        windows: Some(8),
        gates: Gates { max_kld: Some(0.1), ..Gates::default() },
        ..Measurement::on(text)
    };
    let report = check::compare(model.as_ref(), &artifacts, &how, &Control::default(), &())?;
    for candidate in &report.candidates {
        if let Some(stats) = &candidate.stats {
            println!("{}: KL divergence {:.5}", candidate.artifact.name, stats.kld.value);
        }
    }
    for gate in &report.gates {
        println!("{}: {} {}", gate.candidate, gate.gate, if gate.pass { "passed" } else { "failed" });
    }
    let failed = |source| Error::Io { path: page.into(), source };
    std::fs::write(page, report::render_html(&report)?).map_err(failed)
}
