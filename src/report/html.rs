//! The report as one HTML file that needs no network: text, tables, inline SVG, one style sheet, a few lines of script that
//! make tables sort. All text from outside goes through `escape`. The charts themselves are in `charts`.

use std::fmt::Write;

use super::format::{
    add, bytes, count, duration, fixed, html as escape, parameters, percent, signed, signed_percent, significant,
};
use super::schema::{Candidate, Report, TensorDamage};
use super::summary;
use super::text::decimals_for;
use super::{charts, generation, names};
use crate::eval::{Estimate, Statistics};

/// Renders the whole page.
pub fn render_html(report: &Report) -> String {
    let report = &*names::shortened(report);
    let title = escape(&summary::title(report));
    let mut out = String::with_capacity(64 * 1024);
    add!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title} · quantization report</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n",
        include_str!("report.css")
    );
    header(&mut out, report, &title);
    section(
        &mut out,
        "Size against quality",
        &[
            "Each point is one artifact: further left is smaller, further down is closer to the original. Bars are 95 % \
         intervals; the line joins the artifacts that no other beats on both.",
        ],
        charts::scatter(report),
    );
    match report.is_of_vectors() {
        true => section(&mut out, "Results", &[], super::vectors::results(report)),
        false => section(&mut out, "Results", &["Small figures are 95 % intervals."], results(report)),
    }
    section(
        &mut out,
        "By text",
        &[if report.is_of_vectors() {
            "Mean cosine on each text; everything else on this page is for the first, the worst."
        } else {
            "KL divergence on each text; everything else on this page is for the first, the worst."
        }],
        sortable(&super::text::texts(report)),
    );
    section(
        &mut out,
        "Questions",
        &[
            "A model's answer is the one that it finds the most likely per token. Intervals are Wilson's; p is that of McNemar's \
         exact test on the pairs of answers.",
        ],
        answers(report),
    );
    let along = generation::positions(report);
    section(
        &mut out,
        "Along the context",
        &[
            "KL divergence by the number of tokens before the one that is predicted: what grows to the right is lost in long contexts.",
        ],
        along.and_then(|(_, rows)| sortable(&rows)),
    );
    if let Some((title, rows)) = generation::continuations(report) {
        let title = format!("{title}.");
        section(&mut out, "Generation", &[&title, generation::LEGEND], sortable(&rows));
    }
    section(
        &mut out,
        "How single predictions move",
        &[
            "How much more (right) or less (left) probability each artifact gives to the token that really came next. A \
         narrow, centred band means that predictions hardly changed.",
        ],
        charts::dp_bands(report).map(|svg| format!("{}<figure>{svg}</figure>", DP_KEY)),
    );
    section(
        &mut out,
        "Which of two is better?",
        &[
            "Paired differences in KL divergence on the same chunks of text, which cancels the difficulty of the text; p-values \
           are corrected for the number of pairs (Holm).",
        ],
        pairs(report),
    );
    let weighted = report.candidates.iter().flat_map(|c| &c.tensors).any(|t| t.rel_error_weighted.is_some());
    let error = if weighted {
        "The error of every tensor, weighted by the activations it meets"
    } else {
        "The error of every tensor"
    };
    let error = format!(
        "{error}, layer by layer from the input (left) to the output (right). All artifacts share one colour scale."
    );
    section(&mut out, "Where the error sits", &[error.as_str()], damage(report));
    section(
        &mut out,
        "What costs quality",
        &["KL divergence with only one group of tensors quantized and everything else as in the original."],
        ablations(report),
    );
    let origins: Vec<String> =
        summary::origins(report).iter().map(|line| format!("<li>{}</li>", prose(line))).collect();
    let origins = (!origins.is_empty()).then(|| format!("<ul class=\"advice\">{}</ul>", origins.concat()));
    section(&mut out, "How they were made", &["As each file records it."], origins);
    section(&mut out, "Departures from what was asked", &[], ledger(report));
    section(&mut out, "How it was measured", &[], Some(facts(report)));
    add!(
        out,
        "<footer>{} {}{}</footer>\n</main>\n<script>\n{}</script>\n</body>\n</html>\n",
        escape(&report.tool.name),
        escape(&report.tool.version),
        if report.created.is_empty() { String::new() } else { format!(" · {}", escape(&report.created)) },
        include_str!("report.js")
    );
    out
}

const DP_KEY: &str = "<ul class=\"key\"><li><i class=\"b3\"></i>middle 50 %</li><li><i class=\"b2\"></i>90 %</li>\
    <li><i class=\"b1\"></i>98 %</li><li><i class=\"line\"></i>99.8 %</li><li><i class=\"tick\"></i>median</li></ul>";

/// Escapes running text and keeps percent signs with their figures.
fn prose(text: &str) -> String {
    escape(text).replace(" %", "\u{a0}%")
}

fn section(out: &mut String, title: &str, notes: &[&str], body: Option<String>) {
    let Some(body) = body else { return };
    add!(out, "<section>\n<h2>{title}</h2>\n");
    for note in notes {
        add!(out, "<p class=\"note\">{}</p>\n", prose(note));
    }
    *out += &body;
    *out += "\n</section>\n";
}

fn header(out: &mut String, report: &Report, title: &str) {
    let model = report.source.as_ref().or(report.base.as_ref().map(|b| &b.artifact));
    let about = match model {
        Some(a) if a.parameters > 0 => format!(" · {} parameters", parameters(a.parameters)),
        _ => String::new(),
    };
    add!(out, "<header>\n<p class=\"eyebrow\">Quantization report{about}</p>\n<h1>{title}</h1>\n");
    add!(out, "<p class=\"lead\">{}</p>\n", prose(&summary::headline(report)));
    let verdict_lines = summary::verdict(report);
    if !verdict_lines.is_empty() {
        let items: Vec<String> = verdict_lines.iter().map(|line| format!("<li>{}</li>", prose(line))).collect();
        add!(out, "<ul class=\"advice\">{}</ul>\n", items.concat());
    }
    for line in summary::details(report) {
        add!(out, "<p>{}</p>\n", prose(&line));
    }
    if let Some((c, s)) = summary::headline_candidate(report) {
        figures(out, report, c, s);
    }
    verdict(out, report);
    *out += "</header>\n";
}

/// Gates folded away as soon as their list is longer than this; failed ones never are.
const SHOWN_GATES: usize = 6;

fn verdict(out: &mut String, report: &Report) {
    let Some((pass, verdict)) = summary::gates(report) else { return };
    add!(out, "<div class=\"verdict{}\"><p>{verdict}</p>", if pass { "" } else { " bad" });
    let list = |out: &mut String, pass: bool| {
        let (class, word) = if pass { ("", "Passed") } else { (" class=\"bad\"", "Failed") };
        *out += "<ul>";
        for gate in report.gates.iter().filter(|g| g.pass == pass) {
            add!(out, "<li{class}><span hidden>{word}: </span>{}</li>", prose(&gate.sentence()));
        }
        *out += "</ul>";
    };
    if !pass {
        list(out, false);
    }
    let passed = report.gates.iter().filter(|g| g.pass).count();
    if report.gates.len() > SHOWN_GATES && passed > 0 {
        add!(out, "<details><summary>{passed} passed</summary>");
        list(out, true);
        *out += "</details>";
    } else if passed > 0 {
        list(out, true);
    }
    *out += "</div>\n";
}

/// The four figures of the headline's candidate.
fn figures(out: &mut String, report: &Report, c: &Candidate, s: &Statistics) {
    let interval = |e: Estimate, show: &dyn Fn(f64) -> String| match e.ci95 {
        Some([low, high]) => format!("{} to {}", show(low), show(high)),
        None => format!("± {}", show(e.std_error)),
    };
    let size = summary::size_share(report, c).map_or(String::new(), |p| format!("{} of the original", percent(p, 0)));
    let top = |v: f64| percent(v, 1);
    let ppl = |v: f64| signed_percent(v - 1.0, 1);
    let kld = |v: f64| significant(v, 3);
    add!(out, "<dl class=\"figures\" aria-label=\"{}\">", escape(&c.artifact.name));
    for (name, value, below) in [
        (format!("{} size", c.artifact.name), bytes(c.artifact.bytes), size),
        ("Same top choice".into(), top(s.same_top.value), interval(s.same_top, &top)),
        (
            "Perplexity".into(),
            ppl(s.ppl_ratio.value),
            match s.ppl_ratio.ci95 {
                Some([low, high]) => format!("{} to {}", ppl(low), ppl(high)),
                None => format!("± {}", percent(s.ppl_ratio.std_error, 1)),
            },
        ),
        ("KL divergence, nats".into(), kld(s.kld.value), interval(s.kld, &kld)),
    ] {
        add!(out, "<div><dt>{}</dt><dd class=\"big\">{value}</dd><dd class=\"ci\">{below}</dd></div>", escape(&name));
    }
    *out += "</dl>\n";
}

/// One cell: the sort key, the text, and a small second line.
fn cell(out: &mut String, key: f64, text: &str, small: &str) {
    let small = if small.is_empty() { String::new() } else { format!("<span class=\"ci\">{small}</span>") };
    add!(out, "<td data-v=\"{key}\">{text}{small}</td>");
}

/// A cell of nothing; narrow screens leave it out.
const NONE: &str = "<td class=\"none\">–</td>";

/// `low–high`, for figures that are never negative.
fn range(e: Estimate, show: impl Fn(f64) -> String) -> String {
    e.ci95.map_or(String::new(), |[low, high]| format!("{}–{}", show(low), show(high)))
}

fn results(report: &Report) -> Option<String> {
    if (report.candidates.is_empty() && report.base.is_none()) || summary::answers_only(report) {
        return None;
    }
    let mut out = String::from(
        "<div class=\"scroll\"><table class=\"sort cards\"><thead><tr><th>Model</th><th>Size</th><th>KL mean</th><th>KL 99 %</th>\
         <th>Same top</th><th>Perplexity</th><th>Change</th><th>RMS Δp</th></tr></thead><tbody>",
    );
    let all = summary::measured(report);
    if let Some(base) = &report.base {
        let a = &base.artifact;
        add!(out, "<tr class=\"base\"><td>{} (base)</td>", escape(&a.name));
        cell(&mut out, a.bytes as f64, &bytes(a.bytes), &format!("{} bpw", fixed(a.bpw, 2)));
        out += &NONE.repeat(3);
        match base.ppl.or(all.first().map(|(_, s)| s.ppl_base)) {
            Some(p) => {
                let d = decimals_for(p).clamp(2, 3);
                cell(&mut out, p.value, &fixed(p.value, d), &range(p, |v| fixed(v, d)));
            }
            None => out += NONE,
        }
        out += &NONE.repeat(2);
        out += "</tr>";
    }
    let mut candidates: Vec<&Candidate> = report.candidates.iter().collect();
    candidates.sort_by_key(|c| std::cmp::Reverse(c.artifact.bytes));
    for c in candidates {
        let a = &c.artifact;
        let failed = report.gates.iter().any(|g| g.candidate == a.name && !g.pass);
        let tag = if failed { " <span class=\"tag bad\">failed</span>" } else { "" };
        add!(out, "<tr><td class=\"name\" title=\"{}\">{}{tag}</td>", escape(&a.path), escape(&a.name));
        let share = summary::size_share(report, c).map_or(String::new(), |s| format!("{} · ", percent(s, 0)));
        cell(&mut out, a.bytes as f64, &bytes(a.bytes), &format!("{share}{} bpw", fixed(a.bpw, 2)));
        match &c.stats {
            Some(s) => {
                let bare = |v: f64| fixed(100.0 * v, 1);
                let d = decimals_for(s.kld);
                cell(&mut out, s.kld.value, &fixed(s.kld.value, d), &range(s.kld, |v| fixed(v, d)));
                cell(&mut out, s.kld_percentiles.p99, &significant(s.kld_percentiles.p99, 3), "");
                cell(&mut out, s.same_top.value, &percent(s.same_top.value, 1), &range(s.same_top, bare));
                let d = decimals_for(s.ppl).clamp(2, 3);
                cell(&mut out, s.ppl.value, &fixed(s.ppl.value, d), &range(s.ppl, |v| fixed(v, d)));
                let d = decimals_for(Estimate::new(0.0, 100.0 * s.ppl_ratio.std_error)).min(2);
                let change = |v: f64| signed(100.0 * (v - 1.0), d);
                let ci = s.ppl_ratio.ci95.map_or(String::new(), |[l, h]| format!("{} to {}", change(l), change(h)));
                cell(&mut out, s.ppl_ratio.value, &signed_percent(s.ppl_ratio.value - 1.0, d), &ci);
                cell(&mut out, s.dp_rms.value, &percent(s.dp_rms.value, 1), &range(s.dp_rms, bare));
            }
            None => out += &NONE.repeat(6),
        }
        out += "</tr>";
    }
    out += "</tbody></table></div>";
    if !all.is_empty() {
        out += "<details><summary>All statistics</summary>";
        super::statistics::table(&mut out, &all);
        out += "</details>";
        out += GLOSSARY;
    }
    Some(out)
}

const GLOSSARY: &str = "<details><summary>What the columns mean</summary><dl class=\"facts\">\
    <dt>Perplexity</dt><dd>How surprised the model is by the text: e to the mean negative log-likelihood. Lower is better.</dd>\
    <dt>KL</dt><dd>KL divergence of the artifact's predictions from the original's, in nats per token: 0 is a perfect copy. \
    “99 %” is the value that one token in a hundred exceeds.</dd>\
    <dt>Δp</dt><dd>Change in the probability of the token that really came next; RMS is its root mean square.</dd>\
    <dt>Same top</dt><dd>Share of positions where both put the same token first.</dd>\
    <dt>bpw</dt><dd>Bits per weight: 8 times the bytes of tensor data over the number of parameters.</dd>\
    <dt>Intervals</dt><dd>95 % confidence intervals by bootstrap over whole chunks, because neighbouring tokens are not \
    independent.</dd></dl></details>";

/// More pairs than this are folded away behind their summary.
const SHOWN_PAIRS: usize = 6;

fn pairs(report: &Report) -> Option<String> {
    if report.pairs.is_empty() {
        return None;
    }
    let name = |i: usize| escape(report.candidates.get(i).map_or("?", |c| c.artifact.name.as_str()));
    let mut out = String::from(
        "<div class=\"scroll\"><table class=\"sort cards\"><thead><tr><th>Pair</th><th>KL difference</th><th>p (Holm)</th>\
         <th>Perplexity ratio</th><th>Same top difference</th><th class=\"text\">Closer to the original</th></tr></thead><tbody>",
    );
    for p in &report.pairs {
        add!(out, "<tr><td>{} against {}</td>", name(p.first), name(p.second));
        let d = decimals_for(Estimate::new(0.0, (p.kld.ci95[1] - p.kld.ci95[0]) / 4.0));
        let show = |v: f64| signed(v, d);
        cell(&mut out, p.kld.value, &show(p.kld.value), &format!("{} to {}", show(p.kld.ci95[0]), show(p.kld.ci95[1])));
        let value = p.kld.p_corrected.unwrap_or(p.kld.p_value);
        let p_value = if value < 0.001 { "&lt; 0.001".to_string() } else { significant(value, 2) };
        cell(&mut out, value, &p_value, "");
        let ratio = |v: f64| fixed(v.exp(), 4);
        let ci = p.ln_ppl.ci95;
        cell(&mut out, p.ln_ppl.value, &ratio(p.ln_ppl.value), &format!("{} to {}", ratio(ci[0]), ratio(ci[1])));
        let share = |v: f64| signed(100.0 * v, 2);
        let ci = p.same_top.ci95;
        let below = format!("{} to {}", share(ci[0]), share(ci[1]));
        cell(&mut out, p.same_top.value, &signed_percent(p.same_top.value, 2), &below);
        match p.better() {
            Some(i) => add!(out, "<td class=\"text\"><span class=\"tag\">{}</span></td></tr>", name(i)),
            None => add!(out, "<td class=\"text\"><span class=\"tag mute\">not significant</span></td></tr>"),
        };
    }
    out += "</tbody></table></div>";
    let unclear: Vec<String> = report
        .pairs
        .iter()
        .filter(|p| p.better().is_none())
        .map(|p| format!("{} and {}", name(p.first), name(p.second)))
        .collect();
    let verdict = match (report.pairs.len(), unclear.as_slice()) {
        (1, []) => "The difference is significant at the 95 % level.".to_string(),
        (n, []) => format!("All {n} differences are significant at the 95 % level."),
        (1, _) => "The difference is not significant: the text cannot tell them apart.".to_string(),
        (_, pairs) => format!(
            "The text cannot tell apart {}; all other differences are significant at the 95 % level.",
            pairs.join(", ")
        ),
    };
    if report.pairs.len() > SHOWN_PAIRS {
        out = format!("<details><summary>All {} pairs</summary>{out}</details>", report.pairs.len());
    }
    Some(format!("<p>{verdict}</p>{out}"))
}

/// More candidates than this have a list of links above their charts.
const LISTED: usize = 4;

fn damage(report: &Report) -> Option<String> {
    let mut out = charts::strips(report)?;
    let names: Vec<&str> = charts::with_strips(report).iter().map(|c| c.artifact.name.as_str()).collect();
    if names.len() > LISTED {
        let links = names.iter().enumerate().map(|(i, name)| format!("<a href=\"#error-{i}\">{}</a>", escape(name)));
        out = format!("<nav class=\"toc\">{}</nav>{out}", links.collect::<Vec<_>>().join(" "));
    }
    let absent: Vec<String> = report
        .candidates
        .iter()
        .map(|c| &c.artifact.name)
        .filter(|n| !names.contains(&n.as_str()))
        .map(|n| escape(n))
        .collect();
    if !absent.is_empty() {
        let why =
            "their tensors cannot be compared with the original's one by one, because channels were scaled or sorted";
        add!(out, "<p class=\"note\">Not shown: {}; {why}.</p>", absent.join(", "));
    }
    for c in report.candidates.iter().filter(|c| !c.tensors.is_empty()) {
        let mut tensors: Vec<&TensorDamage> = c.tensors.iter().collect();
        tensors.sort_by(|a, b| charts::shown_error(b).total_cmp(&charts::shown_error(a)));
        add!(
            out,
            "<details><summary>Tensors of {}, worst first</summary><div class=\"scroll\"><table class=\"sort\"><thead><tr>\
             <th>Tensor</th><th class=\"text\">Type</th><th>Size</th><th>Relative error</th><th>Weighted error</th></tr></thead><tbody>",
            escape(&c.artifact.name)
        );
        for t in tensors {
            add!(out, "<tr><td><code>{}</code></td><td class=\"text\">{}</td>", escape(&t.name), escape(&t.ty));
            cell(&mut out, t.bytes as f64, &bytes(t.bytes), "");
            cell(&mut out, t.rel_error, &percent(t.rel_error, 3), "");
            match t.rel_error_weighted {
                Some(e) => cell(&mut out, e, &percent(e, 3), ""),
                None => out += "<td data-v=\"-1\">–</td>",
            }
            out += "</tr>";
        }
        out += "</tbody></table></div></details>";
    }
    Some(out)
}

fn ablations(report: &Report) -> Option<String> {
    let mut out = String::new();
    for c in report.candidates.iter().filter(|c| !c.ablation.is_empty()) {
        add!(out, "<h3>{}</h3>{}", escape(&c.artifact.name), charts::ablation(&c.ablation));
    }
    (!out.is_empty()).then_some(out)
}

/// A table that sorts; the first row is its head.
fn sortable(rows: &[Vec<String>]) -> Option<String> {
    let (head, rows) = rows.split_first()?;
    let mut out = String::from("<div class=\"scroll\"><table class=\"cards sort\"><thead><tr>");
    head.iter().for_each(|name| add!(out, "<th>{}</th>", escape(name)));
    out += "</tr></thead><tbody>";
    for row in rows {
        out += "<tr>";
        row.iter().for_each(|cell| add!(out, "<td>{}</td>", escape(cell)));
        out += "</tr>";
    }
    out += "</tbody></table></div>";
    Some(out)
}

fn answers(report: &Report) -> Option<String> {
    let mut out = String::new();
    for (title, rows) in super::tasks::tables(report) {
        add!(out, "<h3>{}</h3>{}", escape(&title), sortable(&rows)?);
    }
    (!out.is_empty()).then_some(out)
}

/// More departures than this are folded away behind their number.
const SHOWN_DEPARTURES: usize = 20;

fn ledger(report: &Report) -> Option<String> {
    if report.ledger.is_empty() {
        return None;
    }
    let mut out = String::from(
        "<div class=\"scroll\"><table class=\"sort cards\"><thead><tr><th>Model</th><th class=\"text\">What</th>\
         <th class=\"text\">Tensor</th><th class=\"text\">Asked</th><th class=\"text\">Done</th><th class=\"text\">Reason</th></tr></thead><tbody>",
    );
    for l in &report.ledger {
        add!(
            out,
            "<tr><td>{}</td><td class=\"text\">{}</td><td class=\"text\"><code>{}</code></td><td class=\"text\">{}</td>\
             <td class=\"text\">{}</td><td class=\"text wrap\">{}</td></tr>",
            escape(&l.candidate),
            escape(&l.kind),
            escape(l.tensor.as_deref().unwrap_or("–")),
            escape(&l.asked),
            escape(&l.done),
            escape(&l.reason)
        );
    }
    out += "</tbody></table></div>";
    if report.ledger.len() > SHOWN_DEPARTURES {
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for row in &report.ledger {
            match kinds.iter_mut().find(|(kind, _)| *kind == row.kind) {
                Some((_, n)) => *n += 1,
                None => kinds.push((&row.kind, 1)),
            }
        }
        let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{} {}", count(*n), escape(kind))).collect();
        out = format!(
            "<details><summary>{} departures: {}</summary>{out}</details>",
            count(report.ledger.len()),
            kinds.join(", ")
        );
    }
    Some(out)
}

/// Method, command and environment.
fn facts(report: &Report) -> String {
    let mut out = String::new();
    if let Some(method) = summary::method(report) {
        add!(out, "<p>{}</p>", escape(&method));
    }
    out += "<dl class=\"facts\">";
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            add!(out, "<dt>{name}</dt><dd>{value}</dd>");
        }
    };
    if !report.command.is_empty() {
        fact("Command", format!("<code>{}</code>", escape(&report.command)));
    }
    for (name, artifact) in [("Source", report.source.as_ref()), ("Base", report.base.as_ref().map(|b| &b.artifact))] {
        if let Some(a) = artifact {
            fact(name, format!("<code>{}</code>, {}, {}", escape(&a.path), escape(&a.format), bytes(a.bytes)));
        }
    }
    if let Some(m) = &report.method {
        fact("Context", format!("{} tokens, stride {}", count(m.ctx), count(m.stride)));
        fact("Chunks", format!("{} ({} tokens scored)", count(m.chunks), count(m.tokens)));
        fact("Text", format!("<code>{}</code> ({})", escape(&m.text), escape(&m.text_format)));
        fact("Text SHA-256", format!("<code>{}</code>", escape(&m.text_sha256)));
        fact("BOS", m.bos.map_or("none".into(), |b| format!("token {b}, first of every chunk")));
        fact("Activations", escape(&m.activations));
        if let Some(floor) = m.kl_floor {
            fact(
                "KL sum",
                format!("tokens with ln p above {} in the base, as llama-perplexity does", significant(floor, 2)),
            );
        }
        fact(
            "Intervals",
            format!("{} bootstrap resamples of whole chunks, seed {}", count(m.bootstrap.resamples), m.bootstrap.seed),
        );
    }
    let e = &report.environment;
    fact(
        "Machine",
        match (e.cpu.is_empty(), e.threads) {
            (true, _) => String::new(),
            (_, threads) => format!("{}, {} threads, {}", escape(&e.cpu), threads, escape(&e.os)),
        },
    );
    if e.seconds > 0.0 {
        let memory = if e.peak_rss > 0 { format!(", peak memory {}", bytes(e.peak_rss)) } else { String::new() };
        fact("Run time", format!("{}{memory}", duration(e.seconds)));
    }
    out + "</dl>"
}
