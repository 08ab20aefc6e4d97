//! The report as GitHub-flavoured Markdown, for a pull-request comment or a model card: headline, table, gates, and the
//! rest folded away. Text from outside is escaped, so a file name cannot break the table.

use super::format::{html as escape, percent, significant};
use super::schema::{Report, TensorDamage};
use super::{departures, generation, names, summary, text, vectors};
use crate::escape::markdown as inert;

/// Most damaged tensors shown per candidate.
const WORST: usize = 10;

/// A code span that survives any content.
fn code(s: &str) -> String {
    format!("<code>{}</code>", escape(s).replace('|', "&#124;"))
}

fn table(out: &mut String, rows: &[Vec<String>]) {
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|c| inert(c)).collect();
        *out += &format!("| {} |\n", cells.join(" | "));
        if i == 0 {
            *out += &format!("|{}\n", ":---|".to_string() + &"---:|".repeat(row.len() - 1));
        }
    }
    out.push('\n');
}

fn fold(out: &mut String, title: &str, body: &str) {
    *out += &format!("<details>\n<summary>{title}</summary>\n\n{body}\n</details>\n\n");
}

/// Renders for GitHub and Hugging Face.
pub fn render_markdown(report: &Report) -> String {
    let report = &*names::shortened(report);
    let mut out = format!("## {}\n\n**{}**\n\n", inert(&summary::title(report)), inert(&summary::headline(report)));
    for line in summary::verdict(report) {
        out += &format!("- {}\n", inert(&line));
    }
    out.push('\n');
    for line in summary::details(report) {
        out += &format!("{}\n", inert(&line));
    }
    if let Some((pass, verdict)) = summary::gates(report) {
        out += &format!("\n{} **{verdict}**\n\n", if pass { "✅" } else { "❌" });
        for gate in &report.gates {
            out += &format!("- {} {}\n", if gate.pass { "✅" } else { "❌" }, inert(&gate.sentence()));
        }
    }
    out.push('\n');
    let rows = text::table(report);
    if rows.len() > 1 && !summary::answers_only(report) {
        table(&mut out, &rows);
        if report.is_of_vectors() {
            out += &format!("<sub>{}</sub>\n\n", vectors::LEGEND);
        } else {
            out += "<sub>KL: mean KL divergence from the base in nats per token. Δp: change in the probability of the actual \
                token. Same top: share of positions where both put the same token first. ± is one standard error over chunks of the text.</sub>\n\n";
        }
    }
    let texts = text::texts(report);
    if !texts.is_empty() {
        out += if report.is_of_vectors() { "Mean cosine" } else { "KL divergence" };
        out += " by text. Everything else here is for the first, the worst.\n\n";
        table(&mut out, &texts);
    }
    for (title, rows) in super::tasks::tables(report) {
        out += &format!("**{}**\n\n", inert(&title));
        table(&mut out, &rows);
    }
    for (title, rows) in generation::positions(report).into_iter().chain(generation::continuations(report)) {
        out += &format!("**{}**\n\n", inert(&title));
        table(&mut out, &rows);
    }
    if !report.pairs.is_empty() {
        let name = |i: usize| report.candidates.get(i).map_or("?", |c| c.artifact.name.as_str());
        let mut rows =
            vec![["pair", "KL difference", "95 % interval", "p (Holm)", "better"].map(str::to_string).to_vec()];
        for p in &report.pairs {
            rows.push(vec![
                format!("{} − {}", name(p.first), name(p.second)),
                significant(p.kld.value, 3),
                format!("{} to {}", significant(p.kld.ci95[0], 3), significant(p.kld.ci95[1], 3)),
                significant(p.kld.p_corrected.unwrap_or(p.kld.p_value), 2),
                p.better().map_or("not significant".to_string(), |i| name(i).to_string()),
            ]);
        }
        let mut body = String::new();
        table(&mut body, &rows);
        fold(&mut out, "Which of two is better?", &body);
    }
    for c in report.candidates.iter().filter(|c| !c.tensors.is_empty()) {
        let error = |t: &TensorDamage| t.rel_error_weighted.unwrap_or(t.rel_error);
        let mut worst: Vec<_> = c.tensors.iter().collect();
        worst.sort_by(|a, b| error(b).total_cmp(&error(a)));
        let mut rows = vec![["tensor", "type", "error", "weighted"].map(str::to_string).to_vec()];
        for t in worst.into_iter().take(WORST) {
            let weighted = t.rel_error_weighted.map_or("–".into(), |e| percent(e, 2));
            rows.push(vec![t.name.clone(), t.ty.clone(), percent(t.rel_error, 2), weighted]);
        }
        let mut body = String::new();
        table(&mut body, &rows);
        fold(&mut out, &format!("Most damaged tensors of {}", escape(&c.artifact.name)), &body);
    }
    for c in report.candidates.iter().filter(|c| !c.ablation.is_empty()) {
        let mut groups: Vec<_> = c.ablation.iter().collect();
        groups.sort_by(|a, b| b.kld.value.total_cmp(&a.kld.value));
        let mut rows = vec![["group quantized alone", "KL", "±"].map(str::to_string).to_vec()];
        for a in groups {
            rows.push(vec![a.group.clone(), significant(a.kld.value, 3), significant(a.kld.std_error, 2)]);
        }
        let mut body = String::new();
        table(&mut body, &rows);
        fold(&mut out, &format!("What costs {} its quality", escape(&c.artifact.name)), &body);
    }
    let origins = summary::origins(report);
    if !origins.is_empty() {
        let body: Vec<String> = origins.iter().map(|line| format!("- {}\n", inert(line))).collect();
        fold(&mut out, "How they were made", &body.concat());
    }
    if !report.ledger.is_empty() {
        let mut rows = vec![["model", "what", "tensor", "asked", "done", "reason"].map(str::to_string).to_vec()];
        for l in &report.ledger {
            let tensor = l.tensor.clone().unwrap_or("–".into());
            rows.push(vec![
                l.candidate.clone(),
                l.kind.clone(),
                tensor,
                l.asked.clone(),
                l.done.clone(),
                l.reason.clone(),
            ]);
        }
        out += "### Departures from what was asked\n\n";
        departures::lines(report).iter().for_each(|line| out += &format!("- {}\n", inert(line)));
        out.push('\n');
        let mut body = String::new();
        table(&mut body, &rows);
        fold(&mut out, "Tensor by tensor", &body);
    }
    let mut how = String::new();
    if let Some(method) = summary::method(report) {
        how += &format!("{}\n\n", inert(&method));
    }
    if let Some(m) = &report.method {
        how += &format!("Text SHA-256 {}. ", code(&m.text_sha256));
        how += &format!("{} bootstrap resamples over chunks, seed {}.\n\n", m.bootstrap.resamples, m.bootstrap.seed);
    }
    how += &format!("{} {}: {}\n", inert(&report.tool.name), inert(&report.tool.version), code(&report.command));
    fold(&mut out, "How it was measured", &how);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_in_their_cell() {
        assert_eq!(inert("a|b\nc<script>"), "a\\|b c&lt;script&gt;");
        assert_eq!(code("x`|y"), "<code>x`&#124;y</code>");
    }
}
