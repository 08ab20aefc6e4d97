//! Reading a GGUF header from a file or from any byte stream. Nothing in the input is trusted: every count is held
//! against the bytes that are left before anything is allocated, so memory stays within a small multiple of the header.

use super::{ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, Header, MAGIC, MAX_DIMS, Metadata, TensorInfo, Value, align_up};
use crate::quant::GgmlType;
use crate::{Error, Result};
use std::collections::HashSet;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

/// The largest header that is read. Real ones hold a vocabulary and reach some 30 MB; a larger file is no reason to let
/// a string of it fill the memory.
const MAX_HEADER: u64 = 256 << 20;
/// The specification's limit on keys in bytes; tensor names are held to it too.
const MAX_NAME: usize = 65_535;
/// How deep arrays of arrays may go. ggml itself reads none.
const MAX_DEPTH: u32 = 4;
/// The smallest metadata entry: a key's length and one byte, the type, a one-byte value.
const MIN_ENTRY: u64 = 8 + 1 + 4 + 1;
/// The smallest row of the tensor table: a name's length, the number of dimensions, the type, the offset.
const MIN_TENSOR: u64 = 8 + 4 + 4 + 8;

/// Reads and checks the header of a GGUF file (version 2 or 3, little-endian). Tensor data is not read.
///
/// Errors: `Io` when the file cannot be read; `BadInput` naming the file and the key or tensor for anything wrong.
pub fn read_header(path: &Path) -> Result<Header> {
    let file = crate::input::open(path)?;
    let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
    parse_header(BufReader::with_capacity(1 << 16, file), len, path)
}

/// Like [`read_header`], for any stream of `file_len` bytes; `path` only names it in errors.
pub fn parse_header(reader: impl Read, file_len: u64, path: &Path) -> Result<Header> {
    let mut r = Reader { inner: reader, path, pos: 0, end: file_len.min(MAX_HEADER), file_len };
    let version = read_version(&mut r)?;
    let (tensor_count, entry_count) = (r.u64("the number of tensors")?, r.u64("the number of metadata entries")?);
    r.check_count("the file", "metadata entries", entry_count, MIN_ENTRY)?;
    r.check_count("the file", "tensors", tensor_count, MIN_TENSOR)?;

    let metadata = read_metadata(&mut r, entry_count)?;
    let alignment = alignment_of(&metadata).map_err(|what| r.bad(what))?;
    let mut tensors = Vec::new();
    for i in 0..tensor_count {
        tensors.push(read_tensor(&mut r, i)?);
    }
    // The header is over; from here on positions are those of the whole file.
    let data_start = align_up(r.pos, alignment).ok_or_else(|| r.bad("the data section begins beyond 2^64"))?;
    if tensor_count > 0 && data_start > file_len {
        return Err(r.cut("the padding before the data section"));
    }
    let header = Header { version, metadata, tensors, alignment, data_start, file_len };
    check_tensors(&header, path)?;
    Ok(header)
}

fn read_version(r: &mut Reader<impl Read>) -> Result<u32> {
    let magic: [u8; 4] = r.bytes("the magic number")?;
    if magic != MAGIC {
        let hint = match &magic {
            b"lmgg" | b"fmgg" | b"tjgg" => "this is a GGML file from before GGUF; convert the model again",
            [b'P', b'K', ..] => "this looks like a PyTorch or zip file; a checkpoint in safetensors is needed",
            b"vers" => "this looks like a Git LFS pointer; run `git lfs pull` to fetch the file itself",
            _ => "the file is of another format or damaged; fetch it again",
        };
        return Err(r.bad("not a GGUF file (it does not begin with 'GGUF')").hint(hint));
    }
    let version = r.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        1 => Err(r.bad("GGUF version 1 is not supported").hint("convert the model again, to version 3")),
        // A swapped small number has its low half empty.
        v if v != 0 && v & 0xffff == 0 => {
            Err(r.bad("big-endian GGUF is not supported").hint("use the little-endian file of this model"))
        }
        v => Err(r.bad(format!("GGUF version {v} is unknown (2 and 3 are supported)"))),
    }
}

fn read_metadata(r: &mut Reader<impl Read>, count: u64) -> Result<Metadata> {
    let mut entries = Vec::new();
    let mut seen = HashSet::new();
    for i in 0..count {
        let key = r.name(&format!("metadata key {i}"))?;
        let what = format!("metadata key '{}'", key.escape_debug());
        if !seen.insert(key.clone()) {
            return Err(r.bad(format!("{what} appears twice")));
        }
        let ty = r.u32(&what)?;
        let value = read_value(r, &what, ty)?;
        entries.push((key, value));
    }
    Ok(Metadata::from_unique(entries))
}

fn read_value(r: &mut Reader<impl Read>, what: &str, ty: u32) -> Result<Value> {
    Ok(match ty {
        0 => Value::U8(u8::from_le_bytes(r.bytes(what)?)),
        1 => Value::I8(i8::from_le_bytes(r.bytes(what)?)),
        2 => Value::U16(u16::from_le_bytes(r.bytes(what)?)),
        3 => Value::I16(i16::from_le_bytes(r.bytes(what)?)),
        4 => Value::U32(r.u32(what)?),
        5 => Value::I32(i32::from_le_bytes(r.bytes(what)?)),
        6 => Value::F32(f32::from_le_bytes(r.bytes(what)?)),
        7 => Value::Bool(r.bool(what)?),
        8 => Value::String(r.string(what)?),
        9 => Value::Array(read_array(r, what, 0)?),
        10 => Value::U64(r.u64(what)?),
        11 => Value::I64(i64::from_le_bytes(r.bytes(what)?)),
        12 => Value::F64(f64::from_le_bytes(r.bytes(what)?)),
        _ => return Err(r.bad(format!("{what} has the unknown value type {ty}"))),
    })
}

fn read_array(r: &mut Reader<impl Read>, what: &str, depth: u32) -> Result<Array> {
    if depth == MAX_DEPTH {
        return Err(r.bad(format!("{what} nests arrays more than {MAX_DEPTH} deep")));
    }
    let ty = r.u32(what)?;
    let count = r.u64(what)?;
    macro_rules! numbers {
        ($array:ident, $rust:ty) => {
            Array::$array(r.numbers(what, count, <$rust>::from_le_bytes)?)
        };
    }
    Ok(match ty {
        0 => numbers!(U8, u8),
        1 => numbers!(I8, i8),
        2 => numbers!(U16, u16),
        3 => numbers!(I16, i16),
        4 => numbers!(U32, u32),
        5 => numbers!(I32, i32),
        6 => numbers!(F32, f32),
        7 => {
            r.check_count(what, "array elements", count, 1)?;
            Array::Bool((0..count).map(|_| r.bool(what)).collect::<Result<_>>()?)
        }
        8 => {
            r.check_count(what, "array elements", count, 8)?;
            Array::String((0..count).map(|_| r.string(what)).collect::<Result<_>>()?)
        }
        9 => {
            r.check_count(what, "array elements", count, 4 + 8)?;
            Array::Nested((0..count).map(|_| read_array(r, what, depth + 1)).collect::<Result<_>>()?)
        }
        10 => numbers!(U64, u64),
        11 => numbers!(I64, i64),
        12 => numbers!(F64, f64),
        _ => return Err(r.bad(format!("{what} is an array of the unknown value type {ty}"))),
    })
}

fn alignment_of(metadata: &Metadata) -> Result<u64, String> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(v)) if v.is_power_of_two() => Ok(v.into()),
        Some(Value::U32(v)) => Err(format!("metadata key '{ALIGNMENT_KEY}' is {v}, which is not a power of two")),
        Some(_) => Err(format!("metadata key '{ALIGNMENT_KEY}' is not of type u32")),
    }
}

fn read_tensor(r: &mut Reader<impl Read>, index: u64) -> Result<TensorInfo> {
    let name = r.name(&format!("the name of tensor {index}"))?;
    let what = format!("the table row of tensor '{}'", name.escape_debug());
    let dim_count = r.u32(&what)?;
    if dim_count as usize > MAX_DIMS {
        return Err(r.bad(format!("has {dim_count} dimensions, more than {MAX_DIMS}")).tensor(name));
    }
    let dims = (0..dim_count).map(|_| r.u64(&what)).collect::<Result<Vec<_>>>()?;
    let id = r.u32(&what)?;
    let Some(ty) = GgmlType::from_id(id) else {
        let error = r.bad(format!("has the tensor type {id}, which is unknown")).tensor(name);
        return Err(error.hint("the file is damaged, or a newer or withdrawn ggml type is in it"));
    };
    let offset = r.u64(&what)?;
    Ok(TensorInfo { name, dims, ty, offset })
}

/// Sizes, alignment, bounds, unique names and disjoint ranges of all tensors.
fn check_tensors(header: &Header, path: &Path) -> Result<()> {
    let mut names = HashSet::with_capacity(header.tensors.len());
    let mut ranges = Vec::with_capacity(header.tensors.len());
    let room = header.file_len.saturating_sub(header.data_start);
    for t in &header.tensors {
        let bad = |what: String| Error::bad_file(path, what).tensor(t.name.as_str());
        if !names.insert(t.name.as_str()) {
            return Err(bad("appears twice in the tensor table".into()));
        }
        // Without the zeros, so that no dimension is out of range and no partial product overflows, in any order.
        let product = t.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)));
        if !product.is_some_and(|n| i64::try_from(n).is_ok() && usize::try_from(n).is_ok()) {
            return Err(bad(format!("the shape {:?} has too many elements", t.dims)));
        }
        let Some(bytes) = t.bytes() else {
            let (row, block) = (t.dims.first().copied().unwrap_or(1), t.ty.block());
            return Err(bad(format!("rows of {row} are not a multiple of the {block}-weight block of {}", t.ty)));
        };
        if !t.offset.is_multiple_of(header.alignment) {
            return Err(bad(format!("the offset {} is not a multiple of {}", t.offset, header.alignment)));
        }
        let Some(end) = t.offset.checked_add(bytes).filter(|&end| end <= room) else {
            let what = format!("{bytes} bytes at offset {} reach beyond the file's {room} bytes of data", t.offset);
            return Err(bad(what).hint("the file is truncated or damaged; fetch it again"));
        };
        if bytes > 0 {
            ranges.push((t.offset, end, t.name.as_str()));
        }
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && start < end
        {
            return Err(Error::bad_file(path, format!("its data overlaps that of tensor '{first}'")).tensor(*second));
        }
    }
    Ok(())
}

/// A stream that knows how far it is and how much may still follow.
struct Reader<'a, R> {
    inner: R,
    path: &'a Path,
    pos: u64,
    /// Where the header must have ended: the end of the file, or the cap.
    end: u64,
    file_len: u64,
}

impl<R: Read> Reader<'_, R> {
    fn bad(&self, what: impl Into<String>) -> Error {
        Error::bad_file(self.path, what)
    }

    /// Refuses a count of things of at least `size` bytes each that the rest of the header cannot hold.
    fn check_count(&self, what: &str, things: &str, count: u64, size: u64) -> Result<()> {
        let left = self.end - self.pos;
        if count > left / size {
            return Err(self.bad(format!("{what} claims {count} {things}, but only {left} bytes of header can follow")));
        }
        Ok(())
    }

    fn fill(&mut self, what: &str, out: &mut [u8]) -> Result<()> {
        let len = out.len() as u64;
        if len > self.end - self.pos {
            return Err(self.cut(what));
        }
        self.inner.read_exact(out).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => self.cut(what),
            _ => Error::io(self.path, e),
        })?;
        self.pos += len;
        Ok(())
    }

    fn cut(&self, what: &str) -> Error {
        if self.end < self.file_len {
            return self.bad(format!("the header is larger than {MAX_HEADER} bytes at {what}"));
        }
        self.bad(format!("the file ends within {what}")).hint("the file is truncated; fetch it again")
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(what, &mut out)?;
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn bool(&mut self, what: &str) -> Result<bool> {
        match self.bytes(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [v] => Err(self.bad(format!("{what} holds the truth value {v}, neither 0 nor 1"))),
        }
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let len = self.u64(what)?;
        self.check_count(what, "bytes of text", len, 1)?;
        let mut bytes = vec![0; len as usize];
        self.fill(what, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.bad(format!("{what} is not valid UTF-8")))
    }

    /// A key or a tensor's name.
    fn name(&mut self, what: &str) -> Result<String> {
        match self.string(what)? {
            name if name.is_empty() => Err(self.bad(format!("{what} is empty"))),
            name if name.len() > MAX_NAME => Err(self.bad(format!("{what} is longer than {MAX_NAME} bytes"))),
            name => Ok(name),
        }
    }

    fn numbers<T, const N: usize>(&mut self, what: &str, count: u64, decode: fn([u8; N]) -> T) -> Result<Vec<T>> {
        self.check_count(what, "array elements", count, N as u64)?;
        let mut out = Vec::with_capacity(count as usize);
        let mut buffer = [[0; N]; 512];
        while out.len() < count as usize {
            let chunk = &mut buffer[..(count as usize - out.len()).min(512)];
            self.fill(what, chunk.as_flattened_mut())?;
            out.extend(chunk.iter().map(|&bytes| decode(bytes)));
        }
        Ok(out)
    }
}
