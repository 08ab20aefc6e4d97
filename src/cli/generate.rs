//! `quantize generate`: text from a model, through the reference inference. Text goes to standard output as it comes.

use super::args::Format;
use super::commands::GenerateArgs;
use super::interrupt;
use super::options;
use crate::eval::Runnable;
use crate::infer::{Sampling, generate};
use crate::model::tokenizer::Message;
use crate::{Error, Result, escape};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::time::Instant;

pub fn run(args: GenerateArgs) -> Result<()> {
    idle(&args)?;
    interrupt::catch_interrupt()?;
    options::threads(args.common.threads)?;
    let path = options::resolve_model(&args.model, &args.hub, args.common.quiet)?;
    let model = Runnable::open(&path)?;
    model.engine.config.ending.needs_logits("generating text")?;
    let prompt = prompt(&model, &args)?;
    let sampling =
        Sampling { temperature: args.temp, top_k: args.top_k, top_p: args.top_p, seed: args.seed.unwrap_or(0) };
    let limit = args.n.min(model.engine.config.context.saturating_sub(prompt.len()));
    if limit == 0 {
        let context = model.engine.config.context;
        return Err(Error::bad_input(format!("the prompt's {} tokens fill the context of {context}", prompt.len())));
    }
    let mut stream = model.tokenizer.stream();
    let mut out = std::io::stdout().lock();
    let (start, mut failed) = (Instant::now(), None);
    // A file gets what the model says; a terminal is not to be driven by it.
    let terminal = out.is_terminal();
    let json = args.common.format == Format::Json;
    let mut whole = String::new();
    let mut show = |text: &str| {
        if json {
            whole.push_str(text);
            return true;
        }
        let text = if terminal { escape::block(text) } else { text.into() };
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        if let Err(e) = written {
            // A reader that went away ends the text, and is no error.
            failed = (e.kind() != std::io::ErrorKind::BrokenPipe).then_some(e);
            return false;
        }
        true
    };
    let stop = model.tokenizer.end_tokens().to_vec();
    let made = generate(&model.engine, &prompt, limit, &stop, sampling, |token| {
        let go_on = show(&stream.push(token));
        go_on && !interrupt::CANCEL.is_requested()
    })?;
    show(&stream.finish());
    if !json {
        show("\n");
    }
    drop(out);
    if let Some(e) = failed {
        return Err(Error::io("standard output", e));
    }
    if json {
        let seconds = start.elapsed().as_secs_f64();
        super::output::print_json(&json!({
            "model": escape::path(&path), "prompt_tokens": prompt.len(), "tokens": made, "text": whole, "seconds": seconds,
        }))?;
    }
    if !args.common.quiet {
        let seconds = start.elapsed().as_secs_f64();
        say!("{} tokens after {}, {:.1} tokens/s", made.len(), prompt.len(), made.len() as f64 / seconds);
    }
    Ok(())
}

/// Flags that would do nothing.
fn idle(args: &GenerateArgs) -> Result<()> {
    if args.chat && args.special {
        return Err(Error::Usage(
            "--special has no effect with --chat, whose template has special tokens anyway".into(),
        ));
    }
    if args.temp > 0.0 {
        return Ok(());
    }
    for (given, flag) in [(args.top_k > 0, "--top-k"), (args.top_p < 1.0, "--top-p"), (args.seed.is_some(), "--seed")] {
        if given {
            return Err(Error::Usage(format!("{flag} has no effect at --temp 0, which takes the most likely token")));
        }
    }
    Ok(())
}

/// The prompt's tokens: plain text behind BOS where the model wants one, or one user turn in the chat template.
fn prompt(model: &Runnable, args: &GenerateArgs) -> Result<Vec<u32>> {
    let bos = model.tokenizer.bos().filter(|_| model.tokenizer.add_bos());
    let tokens = if args.chat {
        let mut messages = Vec::new();
        if let Some(system) = &args.system {
            messages.push(Message::new("system", system));
        }
        messages.push(Message::new("user", &args.prompt));
        model.tokenizer.encode(&model.render(&messages, true)?, true)?
    } else {
        model.tokenizer.encode(&args.prompt, args.special)?
    };
    // A template that writes BOS itself gets no second one.
    let bos = bos.filter(|bos| tokens.first() != Some(bos));
    let tokens: Vec<u32> = bos.into_iter().chain(tokens).collect();
    if tokens.is_empty() {
        return Err(Error::Usage("the prompt is empty; give --prompt TEXT".into()));
    }
    Ok(tokens)
}
