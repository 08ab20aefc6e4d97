//! `quantize generate`: text from a model, through the reference inference. Text goes to standard output as it comes.

use super::args::{Format, SamplingArgs};
use super::commands::GenerateArgs;
use super::interrupt;
use super::options;
use super::output::Spoken;
use crate::eval::Runnable;
use crate::infer::{Ended, Sampling, generate};
use crate::model::tokenizer::Message;
use crate::{Error, Result, escape};
use serde_json::json;
use std::io::Read;
use std::time::Instant;

pub fn run(mut args: GenerateArgs) -> Result<()> {
    if args.chat && args.special {
        return Err(Error::Usage(
            "--special has no effect with --chat, whose template has special tokens anyway".into(),
        ));
    }
    let sampling = sampling(&args.sampling)?;
    if args.prompt == "-" {
        args.prompt = piped()?;
    }
    interrupt::catch_interrupt()?;
    options::threads(args.common.threads)?;
    if args.n == 0 {
        return Err(Error::Usage("-n 0 asks for no token; name at least 1".into()));
    }
    let path = options::resolve_model(&args.model, &args.hub, args.common.quiet)?;
    let model = Runnable::open(&path)?;
    model.engine.config.ending.needs_logits("generating text")?;
    let prompt = prompt(&model, &args)?;
    let limit = args.n.min(model.engine.config.context.saturating_sub(prompt.len()));
    if limit == 0 {
        let context = model.engine.config.context;
        return Err(Error::bad_input(format!("the prompt's {} tokens fill the context of {context}", prompt.len())));
    }
    let mut stream = model.tokenizer.stream();
    let mut out = Spoken::new();
    let start = Instant::now();
    let json = args.common.format == Format::Json;
    let mut whole = String::new();
    let mut show = |text: &str| {
        if json {
            whole.push_str(text);
            return true;
        }
        out.show(text)
    };
    let stop = model.tokenizer.end_tokens().to_vec();
    let (made, ended) = generate(&model.engine, &prompt, limit, &stop, sampling, |token| {
        let go_on = show(&stream.push(token));
        go_on && !interrupt::CANCEL.is_requested()
    })?;
    show(&stream.finish());
    if !json {
        show("\n");
    }
    // A reader that went away ends the text, and is no error.
    if let Some(e) = out.failed.filter(|e| e.kind() != std::io::ErrorKind::BrokenPipe) {
        return Err(Error::io("standard output", e));
    }
    if json {
        let seconds = start.elapsed().as_secs_f64();
        super::output::print_json(&json!({
            "model": escape::path(&path), "prompt_tokens": prompt.len(), "tokens": made, "text": whole,
            "finish_reason": reason(ended), "seconds": seconds,
        }))?;
    }
    if !args.common.quiet {
        let seconds = start.elapsed().as_secs_f64();
        say!("{} tokens after {}, {:.1} tokens/s", made.len(), prompt.len(), made.len() as f64 / seconds);
    }
    Ok(())
}

/// The whole of standard input, without the line break at its end.
fn piped() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => Error::bad_input("the prompt on standard input is not UTF-8"),
        _ => Error::io("standard input", e),
    })?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_string())
}

/// In the words of other interfaces.
fn reason(ended: Ended) -> &'static str {
    match ended {
        Ended::Stop => "stop",
        Ended::Length => "length",
        Ended::Interrupted => "interrupted",
    }
}

/// What the flags say of sampling.
///
/// # Errors
/// `Usage` for flags that would do nothing, and values that make no sense.
pub fn sampling(args: &SamplingArgs) -> Result<Sampling> {
    if !(args.temp >= 0.0 && args.temp.is_finite()) {
        return Err(Error::Usage(format!("--temp {}: the temperature is 0 or more", args.temp)));
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return Err(Error::Usage(format!("--top-p {}: the share is above 0 and at most 1", args.top_p)));
    }
    // At temperature 0 a default of --top-p does nothing, and need not.
    let idle = [(args.top_k > 0, "--top-k"), (args.seed.is_some(), "--seed")];
    if let Some((_, flag)) = idle.into_iter().find(|(given, _)| *given && args.temp == 0.0) {
        return Err(Error::Usage(format!("{flag} has no effect at --temp 0, which takes the most likely token")));
    }
    Ok(Sampling { temperature: args.temp, top_k: args.top_k, top_p: args.top_p, seed: args.seed.unwrap_or(0) })
}

/// The prompt's tokens: plain text behind BOS where the model wants one, or one user turn in the chat template.
fn prompt(model: &Runnable, args: &GenerateArgs) -> Result<Vec<u32>> {
    let tokens = if args.chat {
        let system = args.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain([Message::new("user", &args.prompt)]).collect();
        rendered(model, &messages)?
    } else {
        with_bos(model, model.tokenizer.encode(&args.prompt, args.special)?)
    };
    if tokens.is_empty() {
        return Err(Error::Usage("the prompt is empty; give --prompt TEXT".into()));
    }
    Ok(tokens)
}

/// The tokens of a conversation that the model is to answer.
pub fn rendered(model: &Runnable, messages: &[Message]) -> Result<Vec<u32>> {
    let tokens = model.tokenizer.encode(&model.render(messages, true)?, true)?;
    Ok(with_bos(model, tokens))
}

/// A template that writes BOS itself gets no second one.
fn with_bos(model: &Runnable, tokens: Vec<u32>) -> Vec<u32> {
    let bos = model.tokenizer.bos().filter(|_| model.tokenizer.add_bos());
    let bos = bos.filter(|bos| tokens.first() != Some(bos));
    bos.into_iter().chain(tokens).collect()
}
