//! `quantize chat`: a conversation. Every turn the model's template is given all that was said; what of it the model has seen
//! already is not computed again. Ctrl-C ends an answer and not the conversation.

use super::commands::ChatArgs;
use super::generate::{rendered, sampling};
use super::options;
use super::output::Spoken;
use crate::eval::Runnable;
use crate::infer::{Cache, Ended, Sampler, continue_text};
use crate::model::tokenizer::Message;
use crate::{Error, Result};
use std::io::{BufRead, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Whether an answer is being given, and whether it is to stop.
static ANSWERING: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);
/// Whether Ctrl-C at the prompt was pressed once.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// Tokens of context where the model has more and nobody asked for them.
const CONTEXT: usize = 4096;
/// Tokens that are left for an answer at least, before turns are forgotten.
const ROOM: usize = 64;

const HELP: &str = "  /clear   forget the conversation\n  /exit    leave (so do Ctrl-D, and Ctrl-C twice)\n  \
    Ctrl-C   stop an answer\n  A line that ends in \\ goes on in the next one.";

pub fn run(args: ChatArgs) -> Result<()> {
    let sampling = sampling(&args.sampling)?;
    options::threads(args.threads)?;
    let path = options::resolve_model(&args.model, &args.hub, args.quiet)?;
    let model = Runnable::open(&path)?;
    model.engine.config.ending.needs_logits("a conversation")?;
    let most = model.engine.config.context;
    let context = args.context.unwrap_or(most.min(CONTEXT));
    if context > most {
        return Err(Error::Usage(format!("--context {context}: the model's context has {most} tokens")));
    }
    let system: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    // That there is a template is known before anybody has typed.
    rendered(&model, &[&system[..], &[Message::new("user", "Hello")]].concat())?;
    let mut talk = Conversation {
        cache: Cache::new(model.engine.config.layers.len(), context),
        sampler: Sampler::new(sampling),
        messages: system.clone(),
        model,
        context,
        limit: args.n as usize,
        quiet: args.quiet,
    };
    let mut input = Input { typed: std::io::stdin().is_terminal(), quiet: args.quiet };
    on_interrupt(interrupted)?;
    if input.typed && !args.quiet {
        say!("{} is ready; /help lists the commands", talk.model.artifact.name);
    }
    while let Some(text) = input.next()? {
        match text.trim() {
            "" => {}
            "/exit" | "/quit" | "/bye" => break,
            "/help" => say!("{HELP}"),
            "/clear" => {
                talk.messages = system.clone();
                if !args.quiet {
                    say!("the conversation was cleared");
                }
            }
            command if command.starts_with('/') && !command.contains([' ', '\n']) => {
                say!("there is no command {command}; /help lists them");
            }
            _ => talk.answer(text)?,
        }
    }
    Ok(())
}

/// Where turns come from.
struct Input {
    /// From a terminal, where a prompt is shown.
    typed: bool,
    quiet: bool,
}

impl Input {
    /// The next turn; none at the end.
    fn next(&mut self) -> Result<Option<String>> {
        let mut turn = String::new();
        loop {
            if self.typed && !self.quiet {
                eprint!("{}", if turn.is_empty() { "> " } else { ". " });
            }
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            let n = read.map_err(|e| match e.kind() {
                std::io::ErrorKind::InvalidData => Error::bad_input("standard input is not UTF-8"),
                _ => Error::io("standard input", e),
            })?;
            LEAVING.store(false, Ordering::SeqCst);
            let line = line.trim_end_matches(['\n', '\r']);
            match line.strip_suffix('\\').filter(|_| n > 0) {
                Some(begun) => turn = turn + begun + "\n",
                None if n == 0 && turn.is_empty() => return Ok(None),
                None => return Ok(Some(turn + line)),
            }
        }
    }
}

struct Conversation {
    model: Runnable,
    messages: Vec<Message>,
    cache: Cache,
    sampler: Sampler,
    context: usize,
    /// Tokens of an answer, at most.
    limit: usize,
    quiet: bool,
}

impl Conversation {
    /// Answers a turn, on standard output as it comes.
    fn answer(&mut self, text: String) -> Result<()> {
        self.messages.push(Message::new("user", text));
        let tokens = match self.fitted() {
            Ok(tokens) => tokens,
            Err(e) => {
                self.messages.pop();
                say!("{e}");
                return Ok(());
            }
        };
        STOP.store(false, Ordering::SeqCst);
        ANSWERING.store(true, Ordering::SeqCst);
        let (start, mut said) = (Instant::now(), String::new());
        let mut stream = self.model.tokenizer.stream();
        let mut out = Spoken::new();
        let limit = self.limit.min(self.context - tokens.len());
        let stop = self.model.tokenizer.end_tokens().to_vec();
        let (engine, cache) = (&self.model.engine, &mut self.cache);
        let made = continue_text(engine, cache, &tokens, limit, &stop, &mut self.sampler, |token| {
            let text = stream.push(token);
            said.push_str(&text);
            out.show(&text) && !STOP.load(Ordering::SeqCst)
        });
        ANSWERING.store(false, Ordering::SeqCst);
        let (made, ended) = made?;
        let rest = stream.finish();
        said.push_str(&rest);
        out.show(&rest);
        out.show("\n");
        if let Some(e) = out.failed {
            return Err(Error::io("standard output", e));
        }
        self.messages.push(Message::new("assistant", said));
        if !self.quiet {
            let rate = made.len() as f64 / start.elapsed().as_secs_f64();
            let used = tokens.len() + made.len();
            let how = match ended {
                Ended::Stop => "",
                Ended::Interrupted => "stopped; ",
                Ended::Length => "cut off at the limit; ",
            };
            say!("({how}{} tokens, {rate:.1} tokens/s; {used} of {} in use)", made.len(), self.context);
        }
        Ok(())
    }

    /// The conversation's tokens, without the oldest turns where it has become too long.
    fn fitted(&mut self) -> Result<Vec<u32>> {
        let first = usize::from(self.messages.first().is_some_and(|m| m.role == "system"));
        let mut forgotten = 0;
        loop {
            let tokens = rendered(&self.model, &self.messages)?;
            if tokens.len() + ROOM.min(self.limit) <= self.context {
                if forgotten > 0 && !self.quiet {
                    say!("(the context of {} tokens is full; the oldest {forgotten} turns were dropped)", self.context);
                }
                return Ok(tokens);
            }
            // A question and its answer go together.
            if self.messages.len() < first + 3 {
                let what = format!("this takes {} tokens, too many for the context of {}", tokens.len(), self.context);
                return Err(Error::bad_input(what));
            }
            self.messages.drain(first..first + 2);
            forgotten += 2;
        }
    }
}

/// Ctrl-C ends an answer; where none is given, the second one ends the program.
fn interrupted() {
    if ANSWERING.load(Ordering::SeqCst) {
        STOP.store(true, Ordering::SeqCst);
    } else if LEAVING.swap(true, Ordering::SeqCst) || !std::io::stdin().is_terminal() {
        eprintln!();
        std::process::exit(0);
    } else {
        eprint!("\n(/exit, Ctrl-D or Ctrl-C again to leave)\n> ");
    }
}

/// Does `action` on Ctrl-C. The termination signal still ends the program.
#[cfg(unix)]
fn on_interrupt(action: fn()) -> Result<()> {
    use std::io::Read;
    let failed = |e: std::io::Error| Error::Internal(format!("signal handler: {e}"));
    let (mut read, write) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGINT, write).map_err(failed)?;
    std::thread::spawn(move || {
        let mut one = [0];
        while read.read_exact(&mut one).is_ok() {
            action();
        }
    });
    Ok(())
}

#[cfg(not(unix))]
fn on_interrupt(action: fn()) -> Result<()> {
    ctrlc::set_handler(action).map_err(|e| Error::Internal(format!("signal handler: {e}")))
}
