//! Rows of models that fill in what is masked in a text (diffusion). Every token sees all others, so nothing of them predicts
//! what comes next: they run as encoders do, and each token's last hidden state is compared.

use super::Anatomy;
use super::rows::{PAIRS, PLAIN};
use crate::model::config::{Ending, Pooling};

const FILLS: Anatomy = Anatomy {
    encodes: true,
    finish: |_, c| {
        c.ending = Ending::Vectors(Pooling::Each);
        Ok(())
    },
    ..PLAIN
};

pub(super) static ALL: &[Anatomy] = &[
    Anatomy { gguf: &["dream", "rnd1"], ..FILLS },
    Anatomy { gguf: &["llada"], pairs: PAIRS.pairs, ..FILLS },
    Anatomy { gguf: &["llada-moe"], norm_topk: false, ..FILLS },
];
