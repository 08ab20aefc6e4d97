//! Makes an importance matrix of a text, for `--imatrix` and llama.cpp: `calibrate MODEL TEXT imatrix.gguf`
use quantize::convert::{Calibration, Data, Source, calibrate};
use quantize::{Control, Result, gguf::Metadata, model::SourceModel};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, text, output] = &args[..] else { panic!("calibrate MODEL TEXT imatrix.gguf") };
    let source = SourceModel::open(model.as_ref())?;
    let data = Data { sources: vec![Source::File(text.into())], tokens: 2048, window: 128, ..Data::default() };
    let calibration = Calibration { data, ..Calibration::default() };
    let made = calibrate(&source, &calibration, None, None, &Control::default(), &())?;
    made.imatrix.write(output.as_ref(), &Metadata::default(), true)?;
    println!("{output}: {} tokens, {:.0} per second", made.data.tokens, made.tokens_per_second);
    Ok(())
}
