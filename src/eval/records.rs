//! The records of a comparison as bytes, so that one made in parts is, bit for bit, the one made in one go.

use super::compare::Comparison;
use super::stats::Record;

const MAGIC: &[u8; 8] = b"records1";
/// Bytes of a candidate's record: two numbers, and whether the first choice is the same.
const RECORD: usize = 17;

impl Comparison {
    /// Little-endian: the numbers of windows, positions and candidates, the base's negative log-likelihoods, then every candidate's
    /// negative log-likelihood, KL divergence and first choice, position by position.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for n in [self.chunks, self.base.len(), self.candidates.len()] {
            out.extend((n as u64).to_le_bytes());
        }
        self.base.iter().for_each(|nll| out.extend(nll.to_le_bytes()));
        for record in self.candidates.iter().flatten() {
            out.extend(record.nll.to_le_bytes());
            out.extend(record.kld.to_le_bytes());
            out.push(record.same_top.into());
        }
        out
    }

    /// What [`Self::to_bytes`] made bytes of; `None` for others.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (sizes, rest) = rest.split_at_checked(24)?;
        let mut sizes = sizes.chunks_exact(8).map(|n| usize::try_from(u64::from_le_bytes(n.try_into().ok()?)).ok());
        let (chunks, positions, candidates) = (sizes.next()??, sizes.next()??, sizes.next()??);
        let (base, rest) = rest.split_at_checked(positions.checked_mul(8)?)?;
        let number = |bytes: &[u8]| bytes.try_into().map(f64::from_le_bytes).ok();
        let base: Vec<f64> = base.chunks_exact(8).map(number).collect::<Option<_>>()?;
        let each = positions.checked_mul(RECORD)?;
        if each.checked_mul(candidates)? != rest.len() {
            return None;
        }
        let record = |(nll_base, bytes): (&f64, &[u8])| {
            Some(Record::new(*nll_base, number(&bytes[..8])?, number(&bytes[8..16])?, bytes[16] != 0))
        };
        let candidates = (0..candidates).map(|i| {
            base.iter().zip(rest[i * each..][..each].chunks_exact(RECORD)).map(record).collect::<Option<Vec<_>>>()
        });
        let candidates = candidates.collect::<Option<_>>()?;
        Some(Self { base, candidates, chunks, stored: None })
    }

    /// Adds what was measured on the windows behind. Whether it is of as many candidates.
    pub fn append(&mut self, behind: Comparison) -> bool {
        if self.chunks == 0 {
            *self = behind;
            return true;
        }
        self.chunks += behind.chunks;
        self.base.extend(behind.base);
        self.candidates.iter_mut().zip(&behind.candidates).for_each(|(all, more)| all.extend(more));
        self.candidates.len() == behind.candidates.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_comes_back_and_nothing_else_is_read() {
        let record = |i: usize| Record::new(0.1 * i as f64, 0.3 / (i + 1) as f64, 1e-9 * i as f64, i.is_multiple_of(2));
        let records: Vec<Record> = (0..5).map(record).collect();
        let base = records.iter().map(|r| r.nll_base).collect();
        let made =
            || Comparison { base: Vec::clone(&base), candidates: vec![records.clone(); 2], chunks: 1, stored: None };
        let (all, bytes) = (made(), made().to_bytes());
        let back = Comparison::from_bytes(&bytes).unwrap();
        assert!(back.base == all.base && back.candidates == all.candidates && back.chunks == 1);
        for bad in [&bytes[1..], &bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat()[..], b"records1", b""] {
            assert!(Comparison::from_bytes(bad).is_none());
        }
        let mut sum = Comparison::default();
        assert!(sum.append(made()) && sum.append(made()));
        assert!(sum.chunks == 2 && sum.base.len() == 10 && sum.candidates[1].len() == 10);
        assert!(!sum.append(Comparison { candidates: Vec::new(), ..made() }));
    }
}
