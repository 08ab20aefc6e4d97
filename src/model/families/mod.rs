//! Model families as rows of data: which Hugging Face names belong together, which tensors a model of the family has and
//! what each one means, how its values change on the way to GGUF, which metadata it gets, and what its tokenizer does
//! differently. One file per lineage; adding a family is adding a row to one of them, and a test. Which tensor feeds which
//! is in `graph`. It reads no file. Sources of the facts: transformers' configuration and modelling files, gguf-py's
//! `tensor_mapping.py`, llama.cpp's conversion scripts and loaders.

mod cohere;
mod ernie;
mod exaone;
mod gemma;
mod glm;
mod granite;
mod llama;
mod olmo;
mod phi;
mod plain;
mod qwen;
mod rows;
mod seed;
mod stablelm;
mod starcoder;

pub use super::family::*;
pub use super::role::Role;

pub use phi::swallows_space;

/// Every lineage. Within each, the families in the order in which models are looked for.
static LINEAGES: &[&[Family]] = &[
    llama::FAMILIES,
    qwen::FAMILIES,
    phi::FAMILIES,
    gemma::FAMILIES,
    cohere::FAMILIES,
    ernie::FAMILIES,
    exaone::FAMILIES,
    glm::FAMILIES,
    granite::FAMILIES,
    olmo::FAMILIES,
    seed::FAMILIES,
    stablelm::FAMILIES,
    starcoder::FAMILIES,
];

/// Every supported family.
pub fn all() -> impl Iterator<Item = &'static Family> {
    LINEAGES.iter().flat_map(|families| families.iter())
}

/// Every spelling on the Hub with its family. A family may have many, and one spelling several families (rows with the
/// same names follow each other; the first whose facts fit is taken).
fn names() -> impl Iterator<Item = (&'static Family, &'static HfName)> {
    all().flat_map(|f| f.hf.iter().map(move |h| (f, h)))
}

/// Finds a family by `architectures[0]` and, failing that, by `model_type`.
pub fn by_hf(architecture: Option<&str>, model_type: Option<&str>) -> Option<(&'static Family, &'static HfName)> {
    match architecture {
        Some(name) => names().find(|(_, h)| h.architecture == name),
        None => names().find(|(_, h)| Some(h.model_type) == model_type),
    }
}

pub fn by_gguf(arch: &str) -> Option<&'static Family> {
    all().find(|f| f.gguf == arch)
}

/// What the tokenizers of a GGUF architecture do differently.
pub fn tokenizer_of(arch: &str) -> &'static TokenizerFacts {
    by_gguf(arch).map_or(&PLAIN_TOKENIZER, |f| &f.tokenizer)
}

/// The same for a `model_type`; of one that is not known, what Llama's do.
pub fn tokenizer_of_model_type(model_type: Option<&str>) -> &'static TokenizerFacts {
    by_hf(None, model_type).map_or(&llama::FAMILIES[0].tokenizer, |(f, _)| &f.tokenizer)
}

/// The `architectures` names of all families.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    names().map(|(_, h)| h.architecture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_names_on_both_sides_that_agree_on_the_layer() {
        for family in all() {
            let mut seen = std::collections::HashSet::new();
            for row in family.rows() {
                assert!(seen.insert(row.gguf), "{} lists {} twice", family.gguf, row.gguf);
                for source in row.sources {
                    let (Source::One(name) | Source::PerExpert(name) | Source::Half(name, _)) = source;
                    assert_eq!(name.contains("{layer}"), row.per_layer(), "{name}");
                    assert_eq!(name.contains("{expert}"), matches!(source, Source::PerExpert(_)), "{name}");
                }
                assert_eq!(row.gguf.ends_with(".bias"), row.role.is_bias());
            }
            for (role, _) in family.maps {
                assert!(family.has(*role), "{} maps {role:?}, which it has not", family.gguf);
            }
        }
    }

    #[test]
    fn spellings_are_unique() {
        let mut seen = std::collections::HashSet::new();
        for (_, name) in names() {
            assert!(seen.insert(name.architecture) && seen.insert(name.model_type));
        }
        assert_eq!(by_hf(None, Some("mixtral")).map(|(f, _)| f.gguf), Some("llama"));
        assert!(by_hf(Some("BertModel"), Some("llama")).is_none());
    }
}
