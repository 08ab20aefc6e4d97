//! stub
pub struct GgufVocab;
impl GgufVocab {
    pub fn from_hf_dir(_: &std::path::Path, _: usize, _: &str, _: Option<&str>) -> crate::Result<Self> { Ok(Self) }
    pub fn write(&self, _: &mut crate::gguf::Metadata) {}
}
