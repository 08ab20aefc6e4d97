//! The evaluator as a caller sees it, over toy models whose probabilities are known on paper.

use std::ops::Range;
use std::path::Path;

use ndarray::ArrayView2;

use quantize::Result;
use quantize::eval::bootstrap::{self, Bootstrap, Rng};
use quantize::eval::klbase::{KlBaseReader, KlBaseWriter};
use quantize::eval::{Base, Candidate, EachRows, Logits, Method, Options, Windows, compare};

/// A bigram model: the logits after token `t` are row `t` of a table, whatever came before.
struct Bigram {
    vocab: usize,
    table: Vec<f32>,
    poison: Option<usize>,
    seen: Vec<Vec<u32>>,
    /// Where the last batch begins in `seen`.
    first: usize,
}

impl Bigram {
    fn new(vocab: usize, noise: f32) -> Bigram {
        let mut base = Rng::new(1);
        let mut extra = Rng::new(2);
        let table =
            (0..vocab * vocab).map(|_| base.unit() as f32 * 8.0 + (extra.unit() as f32 - 0.5) * noise).collect();
        Bigram { vocab, table, poison: None, seen: Vec::new(), first: 0 }
    }

    fn p(&self, after: u32, token: u32) -> f64 {
        let row = &self.table[after as usize * self.vocab..][..self.vocab];
        (row[token as usize] as f64).exp() / row.iter().map(|&v| (v as f64).exp()).sum::<f64>()
    }
}

impl Logits for Bigram {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn run(&mut self, chunks: &[Vec<u32>], _: usize) -> Result<()> {
        self.first = self.seen.len();
        self.seen.extend_from_slice(chunks);
        Ok(())
    }

    fn logits(&mut self, chunk: usize, wanted: Range<usize>, each: &mut EachRows) -> Result<()> {
        let tokens = &self.seen[self.first + chunk];
        for position in wanted {
            let mut row = self.table[tokens[position] as usize * self.vocab..][..self.vocab].to_vec();
            if self.poison == Some(position) {
                row[3] = f32::NAN;
            }
            each(position, ArrayView2::from_shape((1, self.vocab), &row).unwrap())?;
        }
        Ok(())
    }
}

fn candidate<'a>(name: &str, model: &'a mut Bigram) -> Candidate<'a> {
    Candidate { name: name.to_string(), model }
}

fn stream(vocab: usize, n: usize) -> Vec<u32> {
    let mut rng = Rng::new(9);
    (0..n).map(|_| rng.below(vocab) as u32).collect()
}

#[test]
fn a_comparison_finds_the_figures_known_on_paper() {
    let (mut base, mut near, mut far) = (Bigram::new(40, 0.0), Bigram::new(40, 0.2), Bigram::new(40, 2.0));
    let text = stream(40, 1000);
    let windows = Windows::plan(Method::LlamaCpp { ctx: 100 }, text.len(), None, Some(0)).unwrap();
    let result = compare(
        Base::Model(candidate("base", &mut base)),
        &mut [candidate("near", &mut near), candidate("far", &mut far)],
        &text,
        &windows,
        Options::default(),
    )
    .unwrap();
    assert_eq!(result.chunks, 10);
    assert_eq!(result.base.len(), 10 * 49);
    // Every chunk was run once by each model, in lock-step, with BOS in its first place.
    assert_eq!(base.seen.len(), 10);
    assert_eq!(base.seen, near.seen);
    assert!(base.seen.iter().enumerate().all(|(i, t)| t[0] == 0 && t[1..] == text[i * 100 + 1..i * 100 + 100]));

    for (model, records) in [(&near, &result.candidates[0]), (&far, &result.candidates[1])] {
        assert_eq!(records.len(), 490);
        for (i, record) in records.iter().enumerate() {
            let at = i / 49 * 100 + 50 + i % 49;
            let (after, next) = (text[at], text[at + 1]);
            assert!((record.nll + model.p(after, next).ln()).abs() < 1e-6);
            assert!((record.nll_base + base.p(after, next).ln()).abs() < 1e-6);
            assert!((record.dp - (model.p(after, next) - base.p(after, next))).abs() < 1e-6);
            let kld: f64 = (0..40).map(|t| base.p(after, t) * (base.p(after, t) / model.p(after, t)).ln()).sum();
            assert!((record.kld - kld).abs() < 1e-6, "{} against {kld}", record.kld);
        }
    }

    let (stats, pairs) = result.summarize(Bootstrap::default());
    assert!(stats[0].kld.value < stats[1].kld.value && stats[0].same_top.value > stats[1].same_top.value);
    assert_eq!(pairs[0].better(), Some(0));
    let [low, high] = stats[0].kld.ci95.unwrap();
    assert!(low < stats[0].kld.value && stats[0].kld.value < high);
}

#[test]
fn the_base_alone_gives_perplexity() {
    let mut base = Bigram::new(16, 0.0);
    let text = stream(16, 400);
    let windows = Windows::plan(Method::Strided { ctx: 40, stride: 10 }, text.len(), Some(20), None).unwrap();
    let result =
        compare(Base::Model(candidate("base", &mut base)), &mut [], &text, &windows, Options::default()).unwrap();
    let ppl = bootstrap::perplexity(&result.base, result.chunks, Bootstrap::default());
    let expected = (30..230).map(|i| -base.p(text[i - 1], text[i]).ln()).sum::<f64>() / 200.0;
    assert!((ppl.value - expected.exp()).abs() < 1e-4, "{} against {}", ppl.value, expected.exp());
    assert!(ppl.std_error > 0.0 && ppl.ci95.is_some());
}

#[test]
fn a_saved_base_serves_as_well_as_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.kld");
    let text = stream(41, 330);
    let windows = Windows::plan(Method::LlamaCpp { ctx: 64 }, text.len(), None, Some(1)).unwrap();
    let (mut base, mut q) = (Bigram::new(41, 0.0), Bigram::new(41, 1.0));
    let save_base = Some(KlBaseWriter::create(&path, &windows, 41, &text).unwrap());
    let options = Options { save_base, progress: None };
    let mut live =
        compare(Base::Model(candidate("base", &mut base)), &mut [candidate("q", &mut q)], &text, &windows, options)
            .unwrap();
    live.stored.take().unwrap().finish().unwrap();

    let reader = Box::new(KlBaseReader::open(&path).unwrap());
    let (stored, windows) = (reader.tokens().to_vec(), reader.windows(Some(1)));
    assert_eq!(stored, text[..320]);
    let file =
        compare(Base::File(reader), &mut [candidate("q", &mut q)], &stored, &windows, Options::default()).unwrap();
    for (a, b) in live.candidates[0].iter().zip(&file.candidates[0]) {
        assert!((a.kld - b.kld).abs() < 2e-4 && (a.nll_base - b.nll_base).abs() < 2e-4 && a.same_top == b.same_top);
    }

    // Another text than the file's is refused.
    let reader = Box::new(KlBaseReader::open(&path).unwrap());
    let mut other = stored.clone();
    other[70] ^= 1;
    let error = compare(Base::File(reader), &mut [candidate("q", &mut q)], &other, &windows, Options::default());
    assert!(error.unwrap_err().to_string().contains("another text"));
}

#[test]
fn faults_name_the_model_and_the_place() {
    let text = stream(16, 400);
    let windows = Windows::plan(Method::LlamaCpp { ctx: 100 }, text.len(), None, None).unwrap();
    let mut base = Bigram::new(16, 0.0);
    let run = |base: &mut Bigram, q: &mut Bigram, text: &[u32]| {
        compare(
            Base::Model(candidate("base", base)),
            &mut [candidate("bad.gguf", q)],
            text,
            &windows,
            Options::default(),
        )
        .unwrap_err()
    };
    let mut broken = Bigram::new(16, 0.0);
    broken.poison = Some(60);
    let error = run(&mut base, &mut broken, &text);
    assert_eq!(error.exit_code(), 3);
    let message = error.to_string();
    assert!(message.contains("'bad.gguf' gives a logit of NaN for token 3 at position 60 of chunk 1"), "{message}");
    let message = run(&mut broken, &mut base, &text).to_string();
    assert!(message.contains("'base' gives a logit of NaN"), "{message}");

    let message = run(&mut base, &mut Bigram::new(17, 0.0), &text).to_string();
    assert!(message.contains("'bad.gguf' has a vocabulary of 17 tokens, the base has 16"), "{message}");

    let mut foreign = text.clone();
    foreign[5] = 16;
    assert!(run(&mut base, &mut Bigram::new(16, 1.0), &foreign).to_string().contains("token 16"));
}

#[test]
fn progress_can_stop_the_run() {
    let text = stream(16, 400);
    let windows = Windows::plan(Method::LlamaCpp { ctx: 100 }, text.len(), None, None).unwrap();
    let (mut base, mut q) = (Bigram::new(16, 0.0), Bigram::new(16, 0.3));
    let mut calls = Vec::new();
    let mut progress = |p: &quantize::eval::Progress| {
        calls.push((p.model.to_string(), p.done, p.records.len()));
        if calls.len() == 3 { Err(quantize::Error::Interrupted) } else { Ok(()) }
    };
    let options = Options { save_base: None, progress: Some(&mut progress) };
    let stopped =
        compare(Base::Model(candidate("b", &mut base)), &mut [candidate("q", &mut q)], &text, &windows, options);
    assert_eq!(stopped.unwrap_err().exit_code(), 75);
    assert_eq!(calls, [("b".into(), 1, 0), ("q".into(), 1, 49), ("b".into(), 2, 0)]);
}

#[test]
fn a_base_file_is_written_under_its_final_name_only_when_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.kld");
    let text = stream(16, 400);
    let windows = Windows::plan(Method::LlamaCpp { ctx: 100 }, text.len(), None, None).unwrap();
    let mut broken = Bigram::new(16, 0.0);
    broken.poison = Some(60);
    let save_base = Some(KlBaseWriter::create(&path, &windows, 16, &text).unwrap());
    let options = Options { save_base, progress: None };
    assert!(compare(Base::Model(candidate("b", &mut broken)), &mut [], &text, &windows, options).is_err());
    assert_eq!(std::fs::read_dir(Path::new(dir.path())).unwrap().count(), 0);
}
