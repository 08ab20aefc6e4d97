//! Rounding to nearest against the files of the tools that each format comes from, byte by byte. Needs such files, so it
//! runs only when asked: `tests/interop/compare_formats.sh` makes them and calls this.

use quantize::packed::{Module, ScaleRule, parse};
use quantize::quant::GgmlType;
use quantize::source::{Checkpoint, Dtype, TensorMeta, parse_safetensors_header};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

struct Raw {
    file: File,
    tensors: HashMap<String, TensorMeta>,
}

impl Raw {
    fn open(dir: &Path) -> Self {
        let path = dir.join("model.safetensors");
        let file = File::open(&path).unwrap();
        let header = parse_safetensors_header(&file, file.metadata().unwrap().len(), &path).unwrap();
        Raw { file, tensors: header.tensors.into_iter().map(|t| (t.name.clone(), t)).collect() }
    }

    fn bytes(&self, t: &TensorMeta) -> Vec<u8> {
        let mut out = vec![0; t.bytes() as usize];
        self.file.read_exact_at(&mut out, t.range.start).unwrap();
        out
    }

    fn f32(&self, name: &str) -> Option<f32> {
        let t = self.tensors.get(name)?;
        let bytes = self.bytes(t);
        Some(match t.dtype {
            Dtype::Ggml(GgmlType::F16) => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
            _ => f32::from_le_bytes(bytes.try_into().unwrap()),
        })
    }
}

/// A half-precision maximum with this global scale.
fn input_max(global: f32) -> f32 {
    let half = half::f16::from_f32;
    let near = half(2688.0 / global).to_bits();
    let candidates = (near - 4..=near + 4).map(|bits| half::f16::from_bits(bits).to_f32());
    let scale = |max: f32| half(half(1.0 / max).to_f32() * 2688.0).to_f32();
    candidates.into_iter().find(|max| scale(*max) == global).unwrap_or(2688.0 / global)
}

/// `PEER_SPEC` names the format, `PEER_SOURCE` the checkpoint, `PEER_FOLDER` what the tool made of it. Prints how many
/// bytes of each kind of tensor differ and fails when more than `PEER_MISSES` (a fraction, default 0) do.
#[test]
#[ignore = "needs files of other tools"]
fn bytes_are_those_of_the_peer() {
    let env = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let spec = parse(&env("PEER_SPEC")).unwrap();
    let source = Checkpoint::open(Path::new(&env("PEER_SOURCE"))).unwrap();
    let allowed: f64 = std::env::var("PEER_MISSES").map_or(0.0, |m| m.parse().unwrap());
    let peer = Raw::open(Path::new(&env("PEER_FOLDER")));
    let weights = |name: &str| {
        let t = &source.tensors()[source.find(name).unwrap()];
        let Dtype::Ggml(ty) = t.dtype else { panic!("{name} is {}", t.dtype) };
        let mut w = vec![0.0; t.elements()];
        source.read_f32(t, 0..t.elements(), &mut Vec::new(), &mut w).unwrap();
        (w, t.shape.clone(), ty)
    };
    let largest = |name: &str| weights(name).0.iter().fold(0f32, |m, w| m.max(w.abs()));
    let mut counts: HashMap<&str, [u64; 4]> = HashMap::new();
    let mut modules = 0;
    for t in source.tensors() {
        let Some(module) = t.name.strip_suffix(".weight") else { continue };
        let packed = ["qweight", "weight_packed", "weight_scale", "scales", "SCB", "weight.absmax"];
        if !packed.iter().any(|s| peer.tensors.contains_key(&format!("{module}.{s}"))) {
            continue;
        }
        modules += 1;
        let (w, shape, dtype) = weights(&t.name);
        let mut m = Module::new(&w, shape[0], shape[1], dtype);
        m.scales = ScaleRule::Peer;
        if spec.shares_global_scale() {
            let fused: &[&str] = match module.rsplit('.').next().unwrap() {
                "q_proj" | "k_proj" | "v_proj" => &["q_proj", "k_proj", "v_proj"],
                "gate_proj" | "up_proj" => &["gate_proj", "up_proj"],
                _ => &[],
            };
            let stem = module.rsplit_once('.').unwrap().0;
            let max = fused.iter().map(|f| largest(&format!("{stem}.{f}.weight"))).reduce(f32::max);
            m.fused_max = max;
        }
        // The largest input is the calibration's; here it comes from the peer's own scale.
        m.input_max = peer
            .f32(&format!("{module}.input_scale"))
            .map(|s| s * 448.0)
            .or(peer.f32(&format!("{module}.input_global_scale")).map(input_max));
        for piece in spec.quantize_nearest(&m).unwrap() {
            let name = format!("{module}.{}", piece.suffix);
            let theirs = peer.tensors.get(&name).unwrap_or_else(|| panic!("the peer has no {name}"));
            if !piece.suffix.starts_with("weight.quant_state") {
                assert_eq!((theirs.dtype, &theirs.shape[..]), (piece.dtype, &piece.shape[..]), "{name}");
            }
            let bytes = peer.bytes(theirs);
            if piece.suffix.starts_with("weight.quant_state") {
                // Ours is padded to one length for all modules.
                let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap().trim_end().to_string();
                assert!(allowed > 0.0 || text(&bytes) == text(&piece.data), "{name}");
                continue;
            }
            let differing = bytes.iter().zip(&piece.data).filter(|(a, b)| a != b).count() as u64;
            let count = counts.entry(piece.suffix).or_default();
            count[0] += 1;
            count[1] += u64::from(differing != 0);
            count[2] += bytes.len() as u64;
            count[3] += differing;
            if differing != 0 && count[1] == 1 {
                let at = bytes.iter().zip(&piece.data).position(|(a, b)| a != b).unwrap();
                let end = (at + 8).min(bytes.len());
                println!("  {name} from {at}: theirs {:02x?} ours {:02x?}", &bytes[at..end], &piece.data[at..end]);
            }
        }
    }
    assert!(modules > 0, "the peer's folder has no packed modules");
    let mut rows: Vec<_> = counts.into_iter().collect();
    rows.sort();
    for (suffix, [tensors, other, bytes, differing]) in &rows {
        println!("{spec} {suffix}: {tensors} tensors, {other} differ; {bytes} bytes, {differing} differ");
    }
    let misses = rows.iter().map(|(_, c)| c[3] as f64 / c[2] as f64).fold(0.0, f64::max);
    assert!(misses <= allowed, "{misses} of the bytes of a kind differ; {allowed} are allowed");
}
