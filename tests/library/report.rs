//! Reports as a reader gets them: JSON that survives the round trip, and renderings that no content can break.

use quantize::eval::bootstrap::{Bootstrap, Rng, summarize};
use quantize::eval::{Estimate, Gates, Record};
use quantize::report::*;

/// Records of a made-up candidate: noise of the given size on a made-up base.
fn records(noise: f64) -> Vec<Record> {
    let mut rng = Rng::new(11);
    (0..12 * 255)
        .map(|_| {
            let (base, e, top) = (-(rng.unit().max(1e-6)).ln(), rng.unit() - 0.4, rng.unit());
            Record::new(base, (base + noise * e).max(0.0), noise * noise * (0.1 + e * e), top > 0.5 * noise)
        })
        .collect()
}

/// A report with something in every field, every free text of it being `text`.
fn sample(text: &str) -> Report {
    let names = [format!("Q8_0{text}"), format!("Q4_K_M{text}"), format!("Q2_K{text}")];
    let (stats, pairs) = summarize(&[records(0.05), records(0.3), records(0.9)], 12, Bootstrap::default());
    let artifact = |name: &str, bytes| Artifact {
        name: name.to_string(),
        path: format!("out/{text}.gguf"),
        format: "gguf".to_string(),
        bytes,
        parameters: 134_515_008,
        bpw: bytes as f64 * 8.0 / 134_515_008.0,
        activations: (bytes == 60_000_000).then(|| "fp8".to_string()),
        sha256: Some("00".repeat(32)),
    };
    let mut report = Report::new(format!("quantize compare {text}"));
    report.created = "2026-01-02T03:04:05Z".to_string();
    report.source = Some(artifact(&format!("Tiny{text}"), 269_000_000));
    report.base = Some(Base {
        artifact: artifact(&format!("F16{text}"), 270_000_000),
        ppl: Some(stats[0].ppl_base),
        vectors: None,
    });
    report.method = Some(MethodInfo {
        name: "llama.cpp".to_string(),
        ctx: 512,
        stride: 512,
        chunks: 12,
        tokens: 3060,
        text: text.to_string(),
        text_sha256: text.to_string(),
        text_format: "plain".to_string(),
        bos: Some(1),
        activations: "f32".to_string(),
        kv_cache: None,
        kl_floor: Some(-16.0),
        bootstrap: Bootstrap::default(),
    });
    let gates = Gates { max_kld: Some(0.05), max_ppl_increase: Some(0.5), min_top1: Some(0.8), min_cosine: None };
    for ((name, stats), bytes) in names.iter().zip(&stats).zip([143_000_000, 88_000_000, 60_000_000]) {
        report.gates.extend(gates.judge(name, stats, 12).unwrap());
        let tensor = |layer: usize| TensorDamage {
            name: format!("blk.{layer}.ffn_down.weight{text}"),
            layer: Some(layer),
            role: format!("ffn_down{text}"),
            ty: format!("Q6_K{text}"),
            bytes: 1_000_000,
            rel_error: 0.01 * (layer + 1) as f64,
            rel_error_weighted: (layer > 0).then_some(0.02),
        };
        let ablation = Ablation { group: format!("attn{text}"), tensors: 4, bytes: 9, kld: Estimate::new(0.01, 0.001) };
        report.candidates.push(Candidate {
            artifact: artifact(name, bytes),
            stats: Some(*stats),
            cosine: None,
            scores: None,
            positions: Vec::new(),
            made: Some(Origin { how: format!("by hand{text}"), recipe: None, overlap: Some(0.02) }),
            tensors: (0..4).map(tensor).collect(),
            ablation: vec![ablation],
        });
    }
    report.pairs = pairs;
    report.ledger.push(LedgerRow {
        candidate: names[1].clone(),
        kind: Default::default(),
        tensor: Some(text.to_string()),
        asked: format!("Q4_K{text}"),
        done: format!("Q5_0{text}"),
        reason: text.to_string(),
    });
    report.environment =
        Environment { os: text.to_string(), cpu: format!("cpu{text}"), threads: 2, seconds: 12.5, peak_rss: 1 << 30 };
    report
}

#[test]
fn json_survives_the_round_trip() {
    let report = sample("x");
    let json = report.to_json().unwrap();
    let again = Report::from_json(&json).unwrap();
    assert_eq!(again, report);
    assert_eq!(again.to_json().unwrap(), json);
    // What a reader of the documentation looks for.
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["schema"], "quantize-report/1");
    assert_eq!(value["candidates"][1]["name"], "Q4_K_Mx");
    assert!(value["candidates"][0]["stats"]["kld"]["ci95"][1].is_f64());
    assert!(value["candidates"][0]["stats"]["dp_percentiles"]["p99.9"].is_f64());
    assert_eq!(value["candidates"][0]["tensors"][0]["type"], "Q6_Kx");
    assert!(!json.contains("null"));
}

#[test]
fn every_field_of_the_json_is_documented() {
    fn names(value: &serde_json::Value, out: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => map.iter().for_each(|(k, v)| {
                out.push(k.clone());
                names(v, out);
            }),
            serde_json::Value::Array(list) => list.iter().for_each(|v| names(v, out)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    names(&serde_json::from_str(&sample("x").to_json().unwrap()).unwrap(), &mut found);
    let documented = std::fs::read_to_string("docs/report-schema.md").unwrap();
    for name in found {
        assert!(documented.contains(&format!("`{name}`")), "docs/report-schema.md does not name `{name}`");
    }
}

#[test]
fn other_schemas_and_broken_reports_are_refused() {
    let error = |text: &str| Report::from_json(text).unwrap_err().to_string();
    let json = sample("x").to_json().unwrap();
    assert!(error(&json.replace("quantize-report/1", "quantize-report/2")).contains("'quantize-report/2'"));
    assert!(error("{}").contains("no \"schema\""));
    assert!(error("nonsense").contains("not JSON"));
    assert!(error(&json[..json.len() / 2]).contains("not JSON"));
    let mut wild = sample("x");
    wild.pairs[0].second = 7;
    assert!(error(&wild.to_json().unwrap()).contains("candidates 0 and 7 of 3"));
    // Unknown fields are a newer writer's, not an error.
    assert!(Report::from_json(&json.replacen('{', "{\"added_later\": [1],", 1)).is_ok());
}

/// Walks the page as an XML reader would: every element closed, in order, with quoted attributes.
fn check_well_formed(html: &str) {
    let void = ["meta", "!doctype"];
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        let end = at + rest[at..].find('>').expect("a tag is closed");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "closing tag <{tag}> before {:?}", &rest[..rest.len().min(80)]);
        } else if !tag.ends_with('/') && !void.contains(&name) {
            open.push(name);
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes of <{tag}>");
        if tag == "style" || tag == "script" {
            let skip = rest.find(&format!("</{name}>")).expect("style and script are closed");
            rest = &rest[skip..];
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

/// No figure on the page, drawn or written, is NaN or infinite.
fn assert_figures(html: &str) {
    let page = html.split("<script>").next().unwrap();
    for bad in ["NaN", "\"inf", ">inf", "-inf", " inf ", "\"-inf"] {
        if let Some(at) = page.find(bad) {
            panic!("{bad} on the page: {:?}", page[at.saturating_sub(60)..].chars().take(120).collect::<String>());
        }
    }
}

#[test]
fn html_stands_alone_and_is_well_formed() {
    let html = render_html(&sample("x")).unwrap();
    check_well_formed(&html);
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!html.contains(outside), "{outside} in the page");
    }
    for wanted in
        ["<svg", "prefers-color-scheme: dark", "@media print", "aria-sort", "Size against quality", "Departures"]
    {
        assert!(html.contains(wanted), "{wanted} is missing");
    }
    assert_figures(&html);
}

#[test]
fn no_text_from_outside_becomes_markup() {
    let hostile = "\"'><script>alert(1)</script>|\n`*_[x](y)\u{0}&amp;";
    let html = render_html(&sample(hostile)).unwrap();
    check_well_formed(&html);
    assert!(!html.contains("<script>alert"));
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!html.contains('\u{0}'));
    let markdown = render_markdown(&sample(hostile)).unwrap();
    assert!(!markdown.contains("<script>"));
    // Nothing is escaped twice.
    for page in [&html, &markdown] {
        assert!(!page.contains("&amp;amp;amp;") && !page.contains("&amp;lt;script"));
    }
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let table: Vec<&str> = markdown.lines().skip_while(|l| !l.starts_with("| model")).take(6).collect();
    assert!(table.iter().all(|row| columns(row) == columns(table[0])), "{table:#?}");
}

#[test]
fn the_headline_speaks_of_the_smallest_that_passes() {
    let mut report = sample("");
    let top = report.candidates[1].stats.unwrap().same_top.value;
    let headline = format!("Q4_K_M keeps {:.1}\u{a0}% of the top choices at 33\u{a0}% of the size.", 100.0 * top);
    let failed: Vec<&str> = report.gates.iter().filter(|g| !g.pass).map(|g| g.candidate.as_str()).collect();
    assert!(!failed.is_empty() && failed.iter().all(|&c| c == "Q2_K"), "{failed:?}");
    for text in [render_html(&report).unwrap(), render_text(&report)] {
        assert!(text.contains(&headline), "{headline} is missing");
    }
    assert!(render_markdown(&report).unwrap().contains(&headline.replace('_', "\\_")));
    report.gates.clear();
    assert!(render_text(&report).contains(&headline));
}

/// A figure has the same digits, signs and units in all renderings.
#[test]
fn a_figure_reads_the_same_everywhere() {
    let report = sample("");
    let [text, markdown, html] =
        [render_text(&report), render_markdown(&report).unwrap(), render_html(&report).unwrap()];
    let rows = text.lines().filter(|line| line.starts_with("Q4_K_M  "));
    // Without the errors, which HTML has as intervals.
    let cells = rows.flat_map(|row| row.split("  ").skip(1)).map(|cell| cell.trim().split(" ± ").next().unwrap());
    let cells: Vec<&str> = cells.filter(|cell| !cell.is_empty()).collect();
    assert_eq!(cells.len(), 9, "{cells:?}");
    for cell in cells {
        assert!(markdown.contains(&format!("| {cell}")), "{cell} in Markdown");
        assert!([">", " ", "> "].iter().any(|before| html.contains(&format!("{before}{cell}"))), "{cell} in HTML");
    }
    assert!(markdown.contains("&lt; 0.001 |") && html.contains(">&lt; 0.001<"));
}

#[test]
fn terminal_columns_line_up() {
    let text = render_text(&sample(""));
    let table: Vec<&str> = text.lines().skip_while(|l| !l.starts_with("model")).take(5).collect();
    let width = table[0].chars().count();
    assert!(table.iter().all(|l| l.chars().count() == width), "{table:#?}");
    assert!(width <= 120, "{width} columns");
}

#[test]
fn partial_reports_render_too() {
    let mut converted = sample("");
    converted.candidates.iter_mut().for_each(|c| {
        c.stats = None;
        c.tensors.clear();
        c.ablation.clear();
    });
    (converted.method, converted.base) = (None, None);
    converted.pairs.clear();
    converted.gates.clear();
    let mut perplexity = sample("");
    perplexity.candidates.clear();
    perplexity.pairs.clear();
    perplexity.gates.clear();
    let mut one = sample("");
    one.candidates.truncate(1);
    one.pairs.clear();
    let mut perfect = sample("");
    for c in &mut perfect.candidates {
        let same: Vec<Record> = (0..2000).map(|i| Record::new(i as f64 * 1e-3, i as f64 * 1e-3, 0.0, true)).collect();
        c.stats = Some(summarize(&[same], 4, Bootstrap::default()).0[0]);
        c.tensors.iter_mut().for_each(|t| (t.rel_error, t.rel_error_weighted) = (0.0, None));
    }
    let mut sizeless = sample("");
    sizeless.candidates.iter_mut().for_each(|c| c.artifact.bytes = 0);
    for report in [Report::new("quantize"), converted, perplexity, one, perfect, sizeless] {
        let html = render_html(&report).unwrap();
        check_well_formed(&html);
        assert_figures(&html);
        assert!(!render_markdown(&report).unwrap().is_empty() && !render_text(&report).is_empty());
    }
}
