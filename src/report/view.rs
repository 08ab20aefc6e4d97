//! What the templates are filled with: the report's figures and sentences as plain text.

use super::charts::shown_error;
use super::figures::{self, Figure};
use super::format::{bytes, count, duration, significant};
use super::results::{self, Losses, Row};
use super::schema::{Candidate, LedgerRow, Report, TensorDamage};
use super::{departures, generation, names, summary, table, tasks, vectors};
use minijinja::context;
use minijinja::value::Value;

impl From<Figure> for Value {
    fn from(f: Figure) -> Value {
        context! { key => f.key, text => f.text, with_error => f.with_error, interval => f.interval }
    }
}

impl From<Losses> for Value {
    fn from(l: Losses) -> Value {
        context! { kl => l.kl, kl_99 => l.kl_99, same_top => l.same_top, change => l.change, dp_rms => l.dp_rms }
    }
}

impl From<Row<'_>> for Value {
    fn from(row: Row) -> Value {
        context! {
            name => row.name, path => row.artifact.path.clone(), is_base => row.candidate.is_none(), failed => row.failed,
            size => row.size, share => row.share, bpw => row.bpw, loss => row.loss, perplexity => row.perplexity,
        }
    }
}

/// What HTML and Markdown share.
pub fn of(report: &Report) -> Value {
    let method = report.method.as_ref().map(|m| {
        context! { sha256 => m.text_sha256.clone(), resamples => m.bootstrap.resamples, seed => m.bootstrap.seed }
    });
    context! {
        title => summary::title(report), headline => summary::headline(report),
        verdict => summary::verdict(report), details => summary::details(report), gates => gates(report),
        of_vectors => report.is_of_vectors(), answers_only => summary::answers_only(report), legend => vectors::LEGEND,
        cells => table::cells(report), rows => values(results::rows(report)), texts => table::texts(report),
        tasks => titled(tasks::tables(report)), positions => titled(generation::positions(report)),
        continuations => titled(generation::continuations(report)), samples => samples(report), first_difference => generation::LEGEND,
        pairs => pairs(report), candidates => values(report.candidates.iter().map(candidate)),
        origins => summary::origins(report), departures => departures::lines(report),
        ledger => values(report.ledger.iter().map(departure)), method => summary::method(report), measured => method,
        command => report.command.clone(), created => report.created.clone(),
        tool => format!("{} {}", report.tool.name, report.tool.version),
    }
}

fn values<T: Into<Value>>(items: impl IntoIterator<Item = T>) -> Vec<Value> {
    items.into_iter().map(Into::into).collect()
}

/// Prompts and what each model made of them, the base first.
fn samples(report: &Report) -> Vec<Value> {
    let all = report.continuations.iter().flat_map(|found| &found.samples);
    let names = || std::iter::once("base").chain(report.candidates.iter().map(|c| c.artifact.name.as_str()));
    let sample = |sample: &super::schema::Sample| {
        let texts = std::iter::once(&sample.base).chain(&sample.candidates);
        let rows = names().zip(texts).map(|(name, text)| vec![name.to_string(), text.clone()]).collect::<Vec<_>>();
        context! { prompt => &sample.prompt, rows }
    };
    all.map(sample).collect()
}

/// Tables of text, the header first, with their titles.
fn titled(tables: impl IntoIterator<Item = (String, Vec<Vec<String>>)>) -> Vec<Value> {
    tables.into_iter().map(|(title, cells)| context! { title, cells }).collect()
}

fn gates(report: &Report) -> Option<Value> {
    let (pass, verdict) = summary::gates(report)?;
    let all = report.gates.iter().map(|g| context! { pass => g.pass, sentence => g.sentence() });
    Some(context! { pass, verdict, all => all.collect::<Vec<_>>() })
}

fn pairs(report: &Report) -> Vec<Value> {
    let name = |i: usize| names::of_candidate(report, i).to_string();
    let pair = |p: &crate::eval::bootstrap::Pair| {
        context! {
            first => name(p.first), second => name(p.second), kl => figures::kl_difference(&p.kld),
            p => figures::p_value(p.kld.p_corrected.unwrap_or(p.kld.p_value)),
            ratio => figures::perplexity_ratio(&p.ln_ppl), same_top => figures::share_difference(&p.same_top),
            better => p.better().map(name),
        }
    };
    report.pairs.iter().map(pair).collect()
}

/// What is known of single tensors, the worst first, and of groups of them.
fn candidate(c: &Candidate) -> Value {
    let mut worst: Vec<&TensorDamage> = c.tensors.iter().collect();
    worst.sort_by(|a, b| shown_error(b).total_cmp(&shown_error(a)));
    let tensor = |t: &TensorDamage| {
        context! {
            name => t.name.clone(), ty => t.ty.clone(), size => figures::size(t.bytes),
            error => figures::error(t.rel_error), weighted => t.rel_error_weighted.map(figures::error),
        }
    };
    let mut groups: Vec<_> = c.ablation.iter().collect();
    groups.sort_by(|a, b| b.kld.value.total_cmp(&a.kld.value));
    let group = |a: &super::schema::Ablation| context! { name => a.group.clone(), kl => figures::kl(a.kld) };
    context! {
        name => c.artifact.name.clone(), tensors => worst.into_iter().map(tensor).collect::<Vec<_>>(),
        groups => groups.into_iter().map(group).collect::<Vec<_>>(),
    }
}

fn departure(row: &LedgerRow) -> Value {
    context! {
        candidate => row.candidate.clone(), kind => row.kind.to_string(), tensor => row.tensor.clone(),
        asked => row.asked.clone(), done => row.done.clone(), reason => row.reason.clone(),
    }
}

/// Method, command and environment: a name, what stands in code, and what stands behind it.
pub fn facts(report: &Report) -> Vec<Value> {
    let mut facts = Vec::new();
    let mut fact = |name: &str, code: &str, text: String| {
        if !(code.is_empty() && text.is_empty()) {
            facts.push(context! { name, code, text });
        }
    };
    fact("Command", &report.command, String::new());
    for (name, artifact) in [("Source", report.source.as_ref()), ("Base", report.base.as_ref().map(|b| &b.artifact))] {
        if let Some(a) = artifact {
            fact(name, &a.path, format!(", {}, {}", a.format, bytes(a.bytes)));
        }
    }
    if let Some(m) = &report.method {
        fact("Context", "", format!("{} tokens, stride {}", count(m.ctx), count(m.stride)));
        fact("Chunks", "", format!("{} ({} tokens scored)", count(m.chunks), count(m.tokens)));
        fact("Text", &m.text, format!(" ({})", m.text_format));
        fact("Text SHA-256", &m.text_sha256, String::new());
        fact("BOS", "", m.bos.map_or("none".into(), |b| format!("token {b}, first of every chunk")));
        fact("Activations", "", m.activations.clone());
        if let Some(floor) = m.kl_floor {
            let what =
                format!("tokens with ln p above {} in the base, as llama-perplexity does", significant(floor, 2));
            fact("KL sum", "", what);
        }
        let (resamples, seed) = (count(m.bootstrap.resamples), m.bootstrap.seed);
        fact("Intervals", "", format!("{resamples} bootstrap resamples of whole chunks, seed {seed}"));
    }
    let e = &report.environment;
    if !e.cpu.is_empty() {
        fact("Machine", "", format!("{}, {} threads, {}", e.cpu, e.threads, e.os));
    }
    if e.seconds > 0.0 {
        let memory = if e.peak_rss > 0 { format!(", peak memory {}", bytes(e.peak_rss)) } else { String::new() };
        fact("Run time", "", format!("{}{memory}", duration(e.seconds)));
    }
    facts
}
