//! The command that runs what was made, for the last line of a conversion. docs/engines.md has all programs.

use super::folder::files::has_chat;
use super::{Made, Plan};
use crate::escape::shell;
use crate::model::{Mtp, Part};
use crate::packed::Engine;
use crate::packed::Loader;

/// The command, or `None` for what runs only beside another file that is not known here.
pub fn command(plan: &Plan, made: &Made) -> Option<String> {
    let path = shell(&made.paths.first()?.to_string_lossy());
    if let Some((_, folder)) = plan.folders().find(|(output, _)| output.index == made.index) {
        // vLLM runs those of bitsandbytes with a plugin only.
        let format = folder.spec.to_string();
        let bitsandbytes = ["nf4", "fp4", "bnb"].iter().any(|begin| format.starts_with(begin));
        let refused = || folder.spec.verdict(Engine::Vllm, 1).refuses();
        return Some(match folder.spec.loader() {
            Loader::Mlx => format!("mlx_lm.generate --model {path} --prompt Hello"),
            Loader::Torch if bitsandbytes || refused() => format!("transformers serve {path}"),
            Loader::Torch => format!("vllm serve {path}"),
        });
    }
    if plan.plain().any(|(output, _)| output.index == made.index) {
        return Some(format!("vllm serve {path}"));
    }
    if plan.recipe.part == Part::Projector || plan.recipe.mtp == Mtp::Only {
        return None;
    }
    Some(match () {
        () if plan.source.ckpt.is_adapter() => format!("llama-server -m MODEL.gguf --lora {path}"),
        () if plan.is_encoder() => format!("llama-embedding -m {path} -p Hello"),
        () if has_chat(&plan.source.ckpt) => format!("llama-server -m {path}"),
        () => format!("llama-completion -m {path} -p Hello"),
    })
}

/// The commands for all that was made, one for each program: the first that it is to run.
pub fn commands(plan: &Plan, made: &[Made]) -> Vec<String> {
    let program = |command: &str| command.split(' ').next().map(str::to_string);
    let mut all: Vec<String> = Vec::new();
    for command in made.iter().filter_map(|made| command(plan, made)) {
        if !all.iter().any(|known| program(known) == program(&command)) {
            all.push(command);
        }
    }
    all
}
