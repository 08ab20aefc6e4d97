//! What people call the formats: `gptq-4bit-128g`, `w4a16`, `mlx-4bit-32g`, ... and the name that we print.

use super::{Format, Spec};
use std::fmt;

/// The format of this name, in any case, with `-` or `_` between its words; `None` when it is not one.
///
/// The first word says the format. The others, in any order, refine it: `4bit` or `int8` the width, `64g` or `channel`
/// the group, `sym` or `asym`, `desc` (GPTQ: by falling activation), `v2` (GPTQ's second layout), `dq` (bitsandbytes: with
/// double quantization).
pub fn parse(name: &str) -> Option<Spec> {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let name = name.replace("desc-act", "desc").replace("double-quant", "dq");
    let mut words = name.split('-').peekable();
    let mut spec = first(words.next()?, &mut words)?;
    let mut first_layout = false;
    for word in words {
        refine(&mut spec, word)?;
        first_layout |= word == "v1";
    }
    if spec.format == Format::Gptq && !spec.symmetric && !first_layout {
        // The first layout cannot hold a zero point of 0.
        spec.format = Format::GptqV2;
    }
    sound(&spec).then_some(spec)
}

fn row(format: Format, bits: u8, group: Option<usize>) -> Spec {
    let nested = false;
    Spec { format, bits, group, group_given: false, symmetric: true, desc_act: false, nested }
}

fn first<'a>(word: &str, rest: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> Option<Spec> {
    use Format::*;
    let mut next = |wanted: &[&str]| rest.next_if(|w| wanted.contains(w));
    Some(match word {
        "gptq" => row(Gptq, 4, Some(128)),
        "gptqv2" => row(GptqV2, 4, Some(128)),
        "awq" => Spec { symmetric: false, ..row(Awq, 4, Some(128)) },
        "w4a16" => row(PackQuantized, 4, Some(128)),
        "w8a16" => row(PackQuantized, 8, None),
        "fp8" => match next(&["block", "static", "dynamic"]) {
            Some("block") => row(Fp8Block, 8, None),
            Some("static") => row(Fp8Static, 8, None),
            _ => row(Fp8, 8, None),
        },
        "int8" | "w8a8" => row(Int8, 8, None),
        "nvfp4" => row(NvFp4, 4, Some(16)),
        "nvfp4a16" => row(NvFp4A16, 4, Some(16)),
        "mxfp4" | "mxfp4a16" => row(MxFp4, 4, Some(32)),
        "nf4" => row(Nf4, 4, Some(64)),
        "fp4" => row(Fp4, 4, Some(64)),
        "bnb" => match next(&["nf4", "fp4", "int8", "4bit", "8bit"])? {
            "fp4" => row(Fp4, 4, Some(64)),
            "int8" | "8bit" => row(BnbInt8, 8, None),
            _ => row(Nf4, 4, Some(64)),
        },
        "mlx" => match next(&["mxfp4", "nvfp4", "mxfp8"]) {
            Some("mxfp4") => row(MlxMxFp4, 4, Some(32)),
            Some("nvfp4") => row(MlxNvFp4, 4, Some(16)),
            Some(_) => row(MlxMxFp8, 8, Some(32)),
            None => Spec { symmetric: false, ..row(MlxAffine, 4, Some(64)) },
        },
        _ => return None,
    })
}

fn refine(spec: &mut Spec, word: &str) -> Option<()> {
    use Format::*;
    let gptq = matches!(spec.format, Gptq | GptqV2);
    let number = |prefix: &str, suffix: &str| word.strip_prefix(prefix)?.strip_suffix(suffix)?.parse::<usize>().ok();
    if let Some(bits) = number("", "bit").or_else(|| number("int", "")).or_else(|| number("w", "")) {
        let free = gptq || spec.format == MlxAffine;
        let bits = u8::try_from(bits).ok()?;
        if !free && bits != spec.bits {
            return None;
        }
        spec.bits = bits;
    } else if let Some(group) = number("", "g").or_else(|| number("g", "")).or_else(|| number("gs", "")) {
        let free = gptq || matches!(spec.format, Awq | PackQuantized | MlxAffine | Nf4 | Fp4);
        if !free && spec.group != Some(group) {
            return None;
        }
        (spec.group, spec.group_given) = (Some(group), true);
    } else {
        match word {
            "channel" | "g1" if gptq || matches!(spec.format, Awq | PackQuantized) => {
                (spec.group, spec.group_given) = (None, true);
            }
            "sym" if spec.format != MlxAffine => spec.symmetric = true,
            "asym" if gptq || matches!(spec.format, Awq | PackQuantized) => spec.symmetric = false,
            "desc" if gptq => spec.desc_act = true,
            "v1" if gptq => spec.format = Gptq,
            "v2" if gptq => spec.format = GptqV2,
            "dq" | "nested" | "double" if matches!(spec.format, Nf4 | Fp4) => spec.nested = true,
            _ => return None,
        }
    }
    Some(())
}

fn sound(spec: &Spec) -> bool {
    use Format::*;
    let bits: &[u8] = match spec.format {
        Gptq | GptqV2 => &[2, 3, 4, 8],
        MlxAffine => &[2, 3, 4, 5, 6, 8],
        _ => return spec.group.is_none_or(|g| g > 0 && (!matches!(spec.format, Nf4 | Fp4) || g.is_power_of_two())),
    };
    let group = match (spec.format, spec.group) {
        (MlxAffine, group) => group.is_some_and(|g| [32, 64, 128].contains(&g)),
        (_, group) => group.is_none_or(|g| g > 0),
    };
    bits.contains(&spec.bits) && group
}

/// The name that [`parse`] takes back, complete where there is a choice.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Format::*;
        let group = self.group.map_or("channel".into(), |g| format!("{g}g"));
        let name = match self.format {
            Gptq | GptqV2 => {
                let mut name = format!("gptq-{}bit-{group}", self.bits);
                name += if self.symmetric { "" } else { "-asym" };
                name += if self.desc_act { "-desc" } else { "" };
                name += match (self.format, self.symmetric) {
                    (GptqV2, true) => "-v2",
                    (Gptq, false) => "-v1",
                    _ => "",
                };
                name
            }
            Awq => format!("awq-4bit-{group}{}", if self.symmetric { "-sym" } else { "" }),
            PackQuantized => format!("w{}a16-{group}{}", self.bits, if self.symmetric { "" } else { "-asym" }),
            Fp8 => "fp8".into(),
            Fp8Block => "fp8-block".into(),
            Fp8Static => "fp8-static".into(),
            Int8 => "int8".into(),
            NvFp4 => "nvfp4".into(),
            NvFp4A16 => "nvfp4a16".into(),
            MxFp4 => "mxfp4".into(),
            Nf4 | Fp4 => {
                let mut name = if self.format == Nf4 { "nf4" } else { "fp4" }.to_string();
                name += if self.group == Some(64) { "" } else { "-" };
                name += if self.group == Some(64) { "" } else { &group };
                name += if self.nested { "-dq" } else { "" };
                name
            }
            BnbInt8 => "bnb-int8".into(),
            MlxAffine => format!("mlx-{}bit-{group}", self.bits),
            MlxMxFp4 => "mlx-mxfp4".into(),
            MlxNvFp4 => "mlx-nvfp4".into(),
            MlxMxFp8 => "mlx-mxfp8".into(),
        };
        f.pad(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_mean() {
        let shown = |name: &str| parse(name).map(|s| s.to_string());
        for (name, canonical) in [
            ("gptq", "gptq-4bit-128g"),
            ("GPTQ-Int8", "gptq-8bit-128g"),
            ("gptq-4bit-64g", "gptq-4bit-64g"),
            ("gptq_v2", "gptq-4bit-128g-v2"),
            ("gptq-3bit-channel-asym-desc_act", "gptq-3bit-channel-asym-desc"),
            ("awq", "awq-4bit-128g"),
            ("awq-4bit-64g", "awq-4bit-64g"),
            ("w4a16-g64", "w4a16-64g"),
            ("w8a16", "w8a16-channel"),
            ("fp8", "fp8"),
            ("fp8-dynamic", "fp8"),
            ("fp8-block", "fp8-block"),
            ("fp8_static", "fp8-static"),
            ("int8", "int8"),
            ("w8a8", "int8"),
            ("nvfp4", "nvfp4"),
            ("nvfp4a16", "nvfp4a16"),
            ("mxfp4", "mxfp4"),
            ("nf4", "nf4"),
            ("nf4-dq", "nf4-dq"),
            ("bnb-4bit-double_quant", "nf4-dq"),
            ("fp4-128g", "fp4-128g"),
            ("bnb-int8", "bnb-int8"),
            ("mlx-4bit", "mlx-4bit-64g"),
            ("mlx-6bit-32g", "mlx-6bit-32g"),
            ("mlx-nvfp4", "mlx-nvfp4"),
        ] {
            assert_eq!(shown(name).as_deref(), Some(canonical), "{name}");
            assert_eq!(shown(canonical).as_deref(), Some(canonical));
        }
        for name in ["", "q4_k_m", "gptq-5bit", "awq-8bit", "mlx-7bit", "mlx-4bit-16g", "nvfp4-32g", "gptq-0g", "fp8-x"]
        {
            assert_eq!(parse(name), None, "{name}");
        }
        assert!(parse("gptq-128g").is_some_and(|s| s.group_given) && parse("gptq").is_some_and(|s| !s.group_given));
    }
}
