//! How to run an artifact, program by program: the lines that people copy. Names are quoted for a shell.

use crate::escape::shell;
use crate::packed::Loader;

/// A GGUF file of a repository.
pub struct GgufFile<'a> {
    pub repository: &'a str,
    /// The file, of a split one its first shard.
    pub file: &'a str,
    /// What programs choose it by: `Q4_K_M`.
    pub tag: &'a str,
    pub is_split: bool,
    /// The projector file beside it.
    pub projector: Option<&'a str>,
    pub has_chat: bool,
}

/// How to run a GGUF file: llama.cpp, Ollama, LM Studio.
pub fn gguf(it: &GgufFile) -> String {
    let GgufFile { repository, tag, .. } = it;
    let file = shell(it.file);
    let projector = it.projector.map_or(String::new(), |projector| format!(" --mmproj {}", shell(projector)));
    let mut out = format!(
        "**llama.cpp** fetches the file by its tag, or takes it from the disk:\n\n```sh\nllama-server -hf {repository}:{tag}\n\
         llama-server -m {file}{projector}\n```\n\n"
    );
    out += &match it.is_split {
        false => format!("**Ollama**:\n\n```sh\nollama run hf.co/{repository}:{tag}\n```\n\n"),
        true => "**Ollama** does not take files in several parts; join them first with `llama-gguf-split --merge`.\n\n"
            .to_string(),
    };
    let lower = tag.to_lowercase();
    out += &format!("**LM Studio**: search for `{repository}`, or\n\n```sh\nlms get {repository}@{lower}\n```\n\n");
    if !it.has_chat {
        out += "The model has no chat template: it continues text (`llama-completion`, `POST /completion`), and does not answer.\n\n";
    }
    out
}

/// How to run a checkpoint folder. `sub`: its name within the repository; `None` where it is the repository.
pub fn folder(loader: Loader, repository: &str, sub: Option<&str>) -> String {
    let (fetch, place) = match sub {
        Some(sub) => {
            let wanted = shell(&format!("{sub}/*"));
            (format!("hf download {repository} --include {wanted} --local-dir .\n"), shell(&format!("./{sub}")))
        }
        None => (String::new(), shell(repository)),
    };
    match loader {
        Loader::Torch => format!(
            "**vLLM**:\n\n```sh\n{fetch}vllm serve {place}\n```\n\n**transformers**:\n\n```python\nfrom transformers import \
             AutoModelForCausalLM, AutoTokenizer\n\nmodel = AutoModelForCausalLM.from_pretrained({python}, \
             device_map=\"auto\")\ntokenizer = AutoTokenizer.from_pretrained({python})\n```\n\n",
            python = serde_json::Value::from(sub.map_or(repository.to_string(), |sub| format!("./{sub}"))),
        ),
        Loader::Mlx => {
            format!("**mlx-lm**:\n\n```sh\n{fetch}mlx_lm.generate --model {place} --prompt \"Hello\"\n```\n\n")
        }
    }
}
