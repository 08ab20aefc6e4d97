//! Checks a file, derives its tensors again from the checkpoint it was made from, and asks the engines:
//! `verify model-Q8_0.gguf MODEL`
use quantize::check::{self, Engine, Origin};
use quantize::{Control, Result, model::Checkpoint};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, file, source] = &args[..] else { panic!("verify FILE MODEL") };
    let checkpoint = Checkpoint::open(file.as_ref())?;
    let origin = Origin { source: source.into(), ..Origin::default() };
    let found = check::verify(&checkpoint, Some(&origin), &Control::default(), &())?;
    println!("{file}: {} tensors, all sound", found.tensors);
    if let Some(derived) = found.derived {
        println!("{} of {} differ from what {source} gives", derived.differing.len(), derived.compared);
    }
    for engine in [Engine::LlamaCpp, Engine::Mlx] {
        let refused = check::objections(engine, &checkpoint, 1)?.iter().any(|objection| objection.refused);
        println!("{}: {}", engine.release(), if refused { "refuses it" } else { "takes it" });
    }
    Ok(())
}
