//! The charts of the HTML report as hand-written SVG: size against KL divergence, distribution of Δp, error per layer,
//! ablation. Colours come from the page's style sheet, so one drawing serves light, dark and print. Charts with text are
//! drawn twice, for wide and narrow screens, because text inside a scaled SVG would scale with it.

use std::fmt::Write;

use super::format::{add, bytes, fixed, html as escape, percent, significant};
use super::schema::{Ablation, Candidate, Report, TensorDamage};
use super::summary;
use crate::eval::Statistics;

/// A rectangle that something occupies, for placing labels: left, top, right, bottom.
type Rect = [f64; 4];

fn overlap(a: &Rect, b: &Rect) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

/// Rough width of a text in pixels at the charts' font size.
fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * 8.8
}

/// Round numbers 1, 2, 5 · 10ⁿ from `low` to `high`, and the powers of ten alone if those are many.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let inside = |t: &f64| *t >= low * 0.999 && *t <= high * 1.001;
    let fine: Vec<f64> =
        decades.clone().flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d))).filter(inside).collect();
    if fine.len() <= 9 { fine } else { decades.map(|d| 10f64.powi(d)).filter(inside).collect() }
}

/// A size that is a round number: `80 MB`, not `80.0 MB`.
fn round_bytes(n: f64) -> String {
    let text = bytes(n as u64);
    match text.split_once('\u{a0}') {
        Some((number, unit)) if number.contains('.') => {
            format!("{}\u{a0}{unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// About `n` round numbers from `low` to `high`.
fn linear_ticks(low: f64, high: f64, n: f64) -> Vec<f64> {
    let rough = (high - low) / n;
    if !rough.is_normal() || rough < 0.0 {
        return Vec::new();
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&s| s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|&t| t <= high).take(50).collect()
}

/// The 95 % interval of the KL divergence, or two standard errors.
fn kl_interval(s: &Statistics) -> [f64; 2] {
    s.kld.ci95.unwrap_or([s.kld.value - 2.0 * s.kld.std_error, s.kld.value + 2.0 * s.kld.std_error])
}

/// Wide and narrow drawing of one chart.
fn both(draw: impl Fn(bool) -> String) -> String {
    format!("{}{}", draw(false), draw(true))
}

fn open(out: &mut String, narrow: bool, width: f64, height: f64, title: &str, description: &str) {
    let class = if narrow { "narrow" } else { "wide" };
    add!(
        out,
        "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\"><desc>{}</desc>",
        escape(title),
        escape(description)
    );
}

/// Size against mean KL divergence with 95 % intervals; the line joins the candidates that none beats in both.
pub fn scatter(report: &Report) -> Option<String> {
    let points: Vec<_> = summary::measured(report).into_iter().filter(|(_, s)| s.kld.value > 0.0).collect();
    // One point shows nothing that the figures do not say.
    if points.len() < 2 {
        return None;
    }
    let limit = report.gates.iter().find(|g| g.gate == "max_kld").map(|g| g.limit).filter(|&l| l > 0.0);
    let values = || points.iter().map(|(_, s)| s.kld.value);
    let lowest = values().fold(f64::MAX, f64::min);
    let low = points.iter().map(|(_, s)| kl_interval(s)[0].max(lowest / 4.0)).chain(limit).fold(f64::MAX, f64::min);
    let high = points.iter().map(|(_, s)| kl_interval(s)[1]).chain(limit).fold(0.0, f64::max);
    let (low, high) = ((low.log10() - 0.12), (high.log10() + 0.12));
    let sizes = || points.iter().map(|(c, _)| c.artifact.bytes as f64);
    let (smallest, largest) = (sizes().fold(f64::MAX, f64::min), sizes().fold(0.0, f64::max));
    let pad = ((largest - smallest) * 0.08).max(largest * 0.03).max(1.0);
    let (left, right) = (smallest - pad, largest + pad * 1.6);

    let described: Vec<String> = points
        .iter()
        .map(|(c, s)| format!("{}: {}, KL {}", c.artifact.name, bytes(c.artifact.bytes), significant(s.kld.value, 3)))
        .collect();
    Some(both(|narrow| {
        let (w, h) = if narrow { (360.0, 330.0) } else { (960.0, 430.0) };
        let (x0, x1, y0, y1) = (if narrow { 56.0 } else { 58.0 }, w - 8.0, 34.0, h - 46.0);
        let x = |v: f64| x0 + (v - left) / (right - left) * (x1 - x0);
        let y = |v: f64| y1 - (v.max(1e-12).log10() - low) / (high - low) * (y1 - y0);
        let mut out = String::new();
        open(&mut out, narrow, w, h, "Size against KL divergence", &described.join("; "));
        add!(
            out,
            "<text x=\"0\" y=\"14\" class=\"soft\">KL divergence, nats per token (log scale; lower is better)</text>"
        );
        for t in log_ticks(10f64.powf(low), 10f64.powf(high)) {
            let label = format!("{t:.*}", (-t.log10().floor()).clamp(0.0, 9.0) as usize);
            add!(out, "<line x1=\"{x0}\" x2=\"{x1}\" y1=\"{0:.1}\" y2=\"{0:.1}\" class=\"grid\"/>", y(t));
            add!(out, "<text x=\"{:.1}\" y=\"{:.1}\" class=\"soft end\">{label}</text>", x0 - 8.0, y(t) + 4.0);
        }
        add!(out, "<line x1=\"{x0}\" x2=\"{x1}\" y1=\"{y1}\" y2=\"{y1}\" class=\"base\"/>");
        for t in linear_ticks(left.max(0.0), right, if narrow { 3.0 } else { 7.0 }) {
            let label = round_bytes(t);
            let middle = x(t).min(w - text_width(&label) / 2.0);
            add!(out, "<text x=\"{middle:.1}\" y=\"{:.1}\" class=\"soft mid\">{label}</text>", y1 + 19.0);
        }
        let title = match summary::base_bytes(report) {
            Some(base) => format!("size (original: {})", bytes(base)),
            None => "size".to_string(),
        };
        add!(out, "<text x=\"{x1}\" y=\"{:.1}\" class=\"soft end\">{title}</text>", y1 + 40.0);

        if let Some(limit) = limit {
            add!(out, "<line x1=\"{x0}\" x2=\"{x1}\" y1=\"{0:.1}\" y2=\"{0:.1}\" class=\"limit\"/>", y(limit));
            let text = format!("limit {limit}");
            add!(out, "<text x=\"{x1}\" y=\"{:.1}\" class=\"limit-label end\">{text}</text>", y(limit) - 6.0);
        }
        let losses: Vec<_> = points.iter().map(|(c, s)| (*c, s.kld.value)).collect();
        let beaten = summary::beaten(&losses);
        let frontier: Vec<String> = points
            .iter()
            .zip(&beaten)
            .filter(|(_, beaten)| !**beaten)
            .map(|(point, _)| point)
            .map(|(c, s)| format!("{:.1},{:.1}", x(c.artifact.bytes as f64), y(s.kld.value)))
            .collect();
        add!(out, "<polyline points=\"{}\" class=\"frontier\"/>", frontier.join(" "));

        let mut taken: Vec<Rect> = points
            .iter()
            .map(|(c, s)| {
                let (cx, [low, high]) = (x(c.artifact.bytes as f64), kl_interval(s));
                [
                    cx - 6.0,
                    y(high).min(y(s.kld.value) - 6.0),
                    cx + 6.0,
                    y(low.max(1e-12)).min(y1).max(y(s.kld.value) + 6.0),
                ]
            })
            .collect();
        if let Some(limit) = limit {
            taken.push([x1 - 90.0, y(limit) - 18.0, x1, y(limit)]);
        }
        for (c, s) in &points {
            let a = &c.artifact;
            let bad = if report.gates.iter().any(|g| g.candidate == a.name && !g.pass) { " bad" } else { "" };
            let (cx, cy, [ci_low, ci_high]) = (x(a.bytes as f64), y(s.kld.value), kl_interval(s));
            let (top, bottom) = (y(ci_high), y(ci_low.max(1e-12)).min(y1));
            add!(
                out,
                "<g><title>{}: {}, KL {} (95 % interval {} to {})</title>",
                escape(&a.name),
                bytes(a.bytes),
                significant(s.kld.value, 3),
                significant(ci_low, 3),
                significant(ci_high, 3)
            );
            let (l, r) = (cx - 4.0, cx + 4.0);
            add!(
                out,
                "<path d=\"M{cx:.1} {top:.1}V{bottom:.1}M{l:.1} {top:.1}H{r:.1}M{l:.1} {bottom:.1}H{r:.1}\" class=\"whisker{bad}\"/>"
            );
            match bad {
                "" => add_dot(&mut out, cx, cy),
                _ => {
                    add!(out, "<path d=\"M{cx:.1} {:.1}l6.5 6.5l-6.5 6.5l-6.5 -6.5z\" class=\"dot bad\"/>", cy - 6.5);
                }
            }
            // Around the point, right first: the first place that is free, or the left, where the plot has room.
            let width = text_width(&a.name);
            let near: [(f64, f64, &str, Rect); 5] = [
                (cx + 11.0, cy - 4.0, "", [cx + 10.0, cy - 15.0, cx + 11.0 + width, cy]),
                (cx - 11.0, cy + 13.0, " end", [cx - 11.0 - width, cy + 1.0, cx - 10.0, cy + 16.0]),
                (cx + 11.0, top - 8.0, "", [cx + 11.0, top - 20.0, cx + 11.0 + width, top - 4.0]),
                (cx - 11.0, bottom + 16.0, " end", [cx - 11.0 - width, bottom + 4.0, cx - 11.0, bottom + 20.0]),
                (cx - 11.0, cy - 4.0, " end", [cx - 11.0 - width, cy - 15.0, cx - 10.0, cy]),
            ];
            let inside = |r: &Rect| r[0] >= x0 && r[2] <= x1 && r[1] >= y0 - 10.0 && r[3] <= y1;
            // Further away, level by level, with a line to the point.
            let far =
                (1..12).flat_map(|level| [-1.0, 1.0].map(|side| (side, f64::from(level)))).flat_map(|(side, level)| {
                    let y = cy + side * (14.0 + 17.0 * level);
                    let right = (cx + 20.0, y, "", [cx + 19.0, y - 12.0, cx + 20.0 + width, y + 4.0]);
                    let left = (cx - 20.0, y, " end", [cx - 20.0 - width, y - 12.0, cx - 19.0, y + 4.0]);
                    [right, left]
                });
            let is_free = |p: &(f64, f64, &str, Rect)| inside(&p.3) && !taken.iter().any(|t| overlap(t, &p.3));
            let found = near.into_iter().find(&is_free).map(|p| (p, false));
            let found = found.or_else(|| far.into_iter().find(&is_free).map(|p| (p, true)));
            let Some(((tx, ty, anchor, rect), is_far)) = found else {
                // The table has it; a label on another point would say something false.
                out += "</g>";
                continue;
            };
            taken.push(rect);
            if is_far {
                add!(out, "<path d=\"M{cx:.1} {cy:.1}L{tx:.1} {:.1}\" class=\"leader\"/>", ty - 4.0);
            }
            add!(out, "<text x=\"{tx:.1}\" y=\"{ty:.1}\" class=\"name{anchor}\">{}</text></g>", escape(&a.name));
        }
        out + "</svg>"
    }))
}

fn add_dot(out: &mut String, cx: f64, cy: f64) {
    add!(out, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"5.5\" class=\"dot\"/>");
}

/// Percentile bands of Δp, a row per candidate, on a signed square-root axis that leaves room for both the narrow middle
/// and the far tails.
pub fn dp_bands(report: &Report) -> Option<String> {
    let mut rows = summary::measured(report);
    rows.reverse();
    let reach =
        rows.iter().flat_map(|(_, s)| [s.dp_percentiles.p0_1.abs(), s.dp_percentiles.p99_9.abs()]).fold(0.0, f64::max);
    if reach <= 0.0 {
        return None;
    }
    let reach = (reach * 1.05).min(1.0);
    let described: Vec<String> = rows
        .iter()
        .map(|(c, s)| {
            format!(
                "{}: RMS {}, median {}",
                c.artifact.name,
                percent(s.dp_rms.value, 2),
                percent(s.dp_percentiles.median, 2)
            )
        })
        .collect();
    Some(both(|narrow| {
        let w = if narrow { 360.0 } else { 960.0 };
        let widest = rows.iter().map(|(c, _)| text_width(&c.artifact.name)).fold(0.0, f64::max);
        let (x0, x1) = if narrow { (6.0, w - 6.0) } else { ((widest + 18.0).min(260.0), w - 104.0) };
        let (step, band, top) = if narrow { (54.0, 18.0, 8.0) } else { (44.0, 20.0, 8.0) };
        let y1 = top + step * rows.len() as f64;
        let x = |v: f64| (x0 + x1) / 2.0 + v.signum() * (v.abs().min(1.0) / reach).sqrt() * (x1 - x0) / 2.0;
        let mut out = String::new();
        open(&mut out, narrow, w, y1 + 46.0, "Change in the probability of the actual token", &described.join("; "));
        let shares: &[f64] = if narrow { &[0.01, 0.1, 0.5] } else { &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0] };
        for t in shares.iter().flat_map(|&t| [-t, t]).chain([0.0]).filter(|t| t.abs() <= reach) {
            let class = if t == 0.0 { "zero" } else { "grid" };
            add!(out, "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{y1:.1}\" class=\"{class}\"/>", x(t));
            let label = if t == 0.0 { "0".into() } else { super::format::signed(100.0 * t, 0) };
            add!(out, "<text x=\"{:.1}\" y=\"{:.1}\" class=\"soft mid\">{label}</text>", x(t), y1 + 18.0);
        }
        let axis = if narrow {
            "Δp, percentage points"
        } else {
            "Δp of the actual token, percentage points (square-root scale)"
        };
        add!(out, "<text x=\"{:.1}\" y=\"{:.1}\" class=\"soft mid\">{axis}</text>", (x0 + x1) / 2.0, y1 + 38.0);
        for (i, (c, s)) in rows.iter().enumerate() {
            let p = &s.dp_percentiles;
            let middle = top + step * (i as f64 + 0.5) + if narrow { 10.0 } else { 0.0 };
            let rms = format!("RMS {}", percent(s.dp_rms.value, 2));
            let (name_x, name_y, class) =
                if narrow { (x0, middle - 16.0, "name") } else { (0.0, middle + 4.5, "name") };
            add!(
                out,
                "<g><title>{}: 98 % of tokens change by {} to {} points</title>",
                escape(&c.artifact.name),
                super::format::signed(100.0 * p.p1, 1),
                super::format::signed(100.0 * p.p99, 1)
            );
            add!(
                out,
                "<text x=\"{name_x:.1}\" y=\"{name_y:.1}\" class=\"{class}\">{}</text>",
                escape(&c.artifact.name)
            );
            add!(
                out,
                "<text x=\"{:.1}\" y=\"{name_y:.1}\" class=\"soft end\">{rms}</text>",
                if narrow { x1 } else { w }
            );
            add!(out, "<path d=\"M{:.1} {middle:.1}H{:.1}\" class=\"whisker\"/>", x(p.p0_1), x(p.p99_9));
            for (low, high, class, height) in
                [(p.p1, p.p99, "b1", band), (p.p5, p.p95, "b2", band), (p.p25, p.p75, "b3", band)]
            {
                add!(
                    out,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height}\" rx=\"2\" class=\"{class}\"/>",
                    x(low),
                    middle - height / 2.0,
                    (x(high) - x(low)).max(0.5)
                );
            }
            let m = x(p.median);
            add!(out, "<path d=\"M{m:.1} {:.1}v{:.1}\" class=\"median\"/></g>", middle - band / 2.0 - 2.0, band + 4.0);
        }
        out + "</svg>"
    }))
}

/// The error that the strips show: weighted by activations where known.
pub fn shown_error(t: &TensorDamage) -> f64 {
    t.rel_error_weighted.unwrap_or(t.rel_error)
}

/// A tensor that has a place in a chart of errors.
fn shown(t: &&TensorDamage) -> bool {
    t.layer.is_some() && shown_error(t) > 0.0 && shown_error(t).is_finite()
}

/// The candidates that have one, the largest first.
pub fn with_strips(report: &Report) -> Vec<&Candidate> {
    let mut candidates: Vec<&Candidate> =
        report.candidates.iter().filter(|c| c.tensors.iter().any(|t| shown(&t))).collect();
    candidates.sort_by_key(|c| std::cmp::Reverse(c.artifact.bytes));
    candidates
}

/// Error per layer and kind of tensor: a strip for every kind, a block of strips for every candidate, all in one scale and
/// one order.
pub fn strips(report: &Report) -> Option<String> {
    let candidates = with_strips(report);
    let mut out = String::new();
    let all = || candidates.iter().flat_map(|c| c.tensors.iter().filter(shown));
    let low = all().map(shown_error).fold(f64::MAX, f64::min);
    let high = all().map(shown_error).fold(0.0, f64::max);
    let layers = all().filter_map(|t| t.layer).max().unwrap_or(0).saturating_add(1);
    // In the order of the first candidate's lowest layer that has each.
    let mut roles: Vec<(usize, &str)> = Vec::new();
    for t in all() {
        let layer = t.layer.unwrap_or(0);
        match roles.iter_mut().find(|(_, role)| *role == t.role) {
            Some((first, _)) => *first = (*first).min(layer),
            None => roles.push((layer, &t.role)),
        }
    }
    roles.sort_by_key(|(layer, _)| *layer);
    for (number, c) in candidates.iter().enumerate() {
        let tensors: Vec<&TensorDamage> = c.tensors.iter().filter(shown).collect();
        // Eight steps, even on a log scale; at least a factor of two from end to end, lest rounding look like structure.
        let (mid, span) = ((low * high).sqrt().ln(), (high / low).max(2.0).ln());
        let step = |e: f64| (((e.ln() - mid) / span + 0.5) * 8.0).floor().clamp(0.0, 7.0) as usize + 1;
        let end = |side: f64| percent((mid + side * span / 2.0).exp(), 2);
        add!(
            out,
            "<h3 class=\"ramp\" id=\"error-{number}\">{}<span>{}</span><svg viewBox=\"0 0 8 1\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"colour scale\">",
            escape(&c.artifact.name),
            end(-1.0)
        );
        for i in 0..8 {
            add!(out, "<rect x=\"{i}\" width=\"1.02\" height=\"1\" class=\"h{}\"/>", i + 1);
        }
        add!(out, "</svg><span>{}</span></h3><div class=\"strips\">", end(1.0));
        for (_, role) in roles.iter().copied() {
            let of_role: Vec<_> = tensors.iter().filter(|t| t.role == role).collect();
            let mean = of_role.iter().map(|t| shown_error(t)).sum::<f64>() / of_role.len().max(1) as f64;
            let label = format!("{role}: mean relative error {}", percent(mean, 2));
            add!(
                out,
                "<span>{}</span><svg viewBox=\"0 0 {layers} 1\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">",
                escape(role),
                escape(&label)
            );
            add!(out, "<rect width=\"{layers}\" height=\"1\" class=\"h0\"/>");
            for t in of_role {
                let (layer, error) = (t.layer.unwrap_or(0), shown_error(t));
                add!(
                    out,
                    "<rect x=\"{layer}\" width=\".93\" height=\"1\" class=\"h{}\"><title>{}: {}, {}</title></rect>",
                    step(error),
                    escape(&t.name),
                    escape(&t.ty),
                    percent(error, 2)
                );
            }
            out += "</svg>";
        }
        add!(out, "<span></span><span class=\"layers\"><span>layer 0</span><span>{}</span></span></div>", layers - 1);
    }
    (!candidates.is_empty()).then_some(out)
}

/// KL divergence with one group quantized at a time, longest bar first.
pub fn ablation(groups: &[Ablation]) -> String {
    let mut sorted: Vec<&Ablation> = groups.iter().collect();
    sorted.sort_by(|a, b| b.kld.value.total_cmp(&a.kld.value));
    let longest = sorted.first().map_or(1.0, |a| a.kld.value).max(1e-12);
    // One number of decimals for all, set by the longest bar.
    let digits = (2.0 - longest.log10().floor()).clamp(0.0, 9.0) as usize;
    let mut out = String::from("<div class=\"bars\">");
    for a in sorted {
        let width = (a.kld.value / longest).clamp(0.0, 1.0) * 100.0;
        add!(
            out,
            "<div><span>{}</span><svg viewBox=\"0 0 100 1\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect width=\"{width:.2}\" \
             height=\"1\"/></svg><span>{} <span class=\"ci\">± {}</span></span><span class=\"ci\">{}</span></div>",
            escape(&a.group),
            fixed(a.kld.value, digits),
            fixed(a.kld.std_error, digits),
            bytes(a.bytes)
        );
    }
    out + "</div>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(log_ticks(0.009, 0.3), [0.01, 0.02, 0.05, 0.1, 0.2]);
        assert_eq!(log_ticks(1e-5, 1.0).len(), 6);
        assert_eq!(linear_ticks(80e6, 210e6, 6.0), [1.0e8, 1.5e8, 2.0e8]);
        assert!(linear_ticks(5.0, 5.0, 4.0).is_empty());
    }
}
