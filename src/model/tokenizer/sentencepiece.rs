//! Reads the pieces of a SentencePiece `tokenizer.model`: a protobuf message, of which only the pieces (text, score,
//! type) matter here. Every length is checked against what is left of the file, so a hostile file costs no more memory
//! than its own size. Field numbers: `sentencepiece_model.proto`.

use crate::{Error, Result};
use std::path::Path;

/// The type of a piece, with the numbers that SentencePiece and GGUF share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenType {
    /// The type with this number; anything unknown counts as unused.
    pub fn from_i32(n: i32) -> Self {
        use TokenType::*;
        [Normal, Unknown, Control, UserDefined, Unused, Byte].into_iter().find(|&t| t as i32 == n).unwrap_or(Unused)
    }
}

/// One piece, by position in the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub text: String,
    pub score: f32,
    pub ty: TokenType,
}

/// Whether the file can be a SentencePiece model at all: its first field is a piece. (A tiktoken vocabulary, which some
/// folders hold under the same name, begins with base64 text.)
pub fn looks_like_model(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x0a)
}

/// A model file: its pieces in order of id, and what it does to text before.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub pieces: Vec<Piece>,
    /// The most likely pieces, not merges.
    pub is_unigram: bool,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    /// The compiled normalization.
    pub charsmap: Vec<u8>,
}

/// The pieces of a model file in order of id.
///
/// # Errors
/// [`Error::BadInput`] naming `path` when the bytes are not a model with at least one piece.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Piece>> {
    Ok(parse_model(path, bytes)?.pieces)
}

/// A model file.
///
/// # Errors
/// As [`parse`].
pub fn parse_model(path: &Path, bytes: &[u8]) -> Result<Model> {
    let bad = |what: &str| Error::bad_file(path, format!("not a SentencePiece model: {what}"));
    let mut model = Model {
        pieces: Vec::new(),
        is_unigram: true,
        add_dummy_prefix: true,
        remove_extra_whitespaces: true,
        charsmap: Vec::new(),
    };
    let mut message = Reader(bytes);
    while let Some(field) = message.field().map_err(bad)? {
        match field {
            (1, Wire::Bytes(bytes)) => model.pieces.push(piece(bytes).map_err(bad)?),
            (2, Wire::Bytes(bytes)) => {
                let mut trainer = Reader(bytes);
                while let Some(field) = trainer.field().map_err(bad)? {
                    if let (3, Wire::Varint(kind)) = field {
                        model.is_unigram = kind == 1;
                    }
                }
            }
            (3, Wire::Bytes(bytes)) => {
                let mut normalizer = Reader(bytes);
                while let Some(field) = normalizer.field().map_err(bad)? {
                    match field {
                        (2, Wire::Bytes(bytes)) => model.charsmap = bytes.to_vec(),
                        (3, Wire::Varint(on)) => model.add_dummy_prefix = on != 0,
                        (4, Wire::Varint(on)) => model.remove_extra_whitespaces = on != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if model.pieces.is_empty() {
        return Err(bad("it holds no pieces"));
    }
    Ok(model)
}

fn piece(bytes: &[u8]) -> Result<Piece, &'static str> {
    let mut piece = Piece { text: String::new(), score: 0.0, ty: TokenType::Normal };
    let mut message = Reader(bytes);
    while let Some(field) = message.field()? {
        match field {
            (1, Wire::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec()).map_err(|_| "a piece is not valid UTF-8")?;
            }
            (2, Wire::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Wire::Varint(n)) => piece.ty = i32::try_from(n).map_or(TokenType::Unused, TokenType::from_i32),
            _ => {}
        }
    }
    Ok(piece)
}

/// One protobuf value by wire type; groups are not used by this format.
enum Wire<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn field(&mut self) -> Result<Option<(u64, Wire<'a>)>, &'static str> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed64
            }
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| "a length does not fit")?;
                Wire::Bytes(self.take(len)?)
            }
            5 => {
                let bytes = self.take(4)?.try_into().map_err(|_| "a number is cut short")?;
                Wire::Fixed32(u32::from_le_bytes(bytes))
            }
            _ => return Err("a field has an unknown wire type"),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first().ok_or("it is cut short")?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number is too long")
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], &'static str> {
        let (head, rest) = self.0.split_at_checked(n).ok_or("it is cut short")?;
        self.0 = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(pieces: &[Piece]) -> Vec<u8> {
        let mut out = Vec::new();
        for p in pieces {
            let mut body = vec![0x0a, p.text.len() as u8];
            body.extend(p.text.as_bytes());
            body.push(0x15);
            body.extend(p.score.to_le_bytes());
            body.extend([0x18, p.ty as u8]);
            out.extend([0x0a, body.len() as u8]);
            out.extend(body);
        }
        out.extend([0x12, 2, 0x18, 1]); // a trainer_spec, to be skipped
        out
    }

    #[test]
    fn reads_pieces_and_refuses_what_is_cut_short() {
        let pieces = vec![
            Piece { text: "<unk>".into(), score: 0.0, ty: TokenType::Unknown },
            Piece { text: "▁the".into(), score: -2.5, ty: TokenType::Normal },
            Piece { text: "<0x0A>".into(), score: 0.0, ty: TokenType::Byte },
        ];
        let bytes = encode(&pieces);
        assert_eq!(parse(Path::new("m"), &bytes).unwrap(), pieces);
        let cut = parse(Path::new("dir/tokenizer.model"), &bytes[..bytes.len() - 1]).unwrap_err();
        assert_eq!(cut.exit_code(), 3);
        assert!(cut.to_string().contains("dir/tokenizer.model"), "{cut}");
        assert!(parse(Path::new("m"), b"").is_err());
        // A length far beyond the file.
        assert!(parse(Path::new("m"), &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Path::new("m"), &bytes);
        }
    }
}
