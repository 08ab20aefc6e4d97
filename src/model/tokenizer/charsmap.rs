//! SentencePiece's compiled normalization (`precompiled_charsmap`): the length of a trie in bytes, the trie as a double
//! array of 32-bit units (darts-clone), then the texts that matches become, each ended by a zero byte. The library that
//! follows it trusts every place in it; here each one that a text can reach is looked at before.

use std::collections::HashSet;

/// Bytes of a map, at most. Those of real models have about 300,000.
const LONGEST: usize = 4 << 20;

/// How many times as long a text can become; the error says what is wrong with the map.
pub(super) fn check(map: &[u8]) -> Result<f64, String> {
    let broken = || "has a character map that is cut short or points out of itself".to_string();
    if map.len() > LONGEST {
        return Err(format!("has a character map of {} bytes; {LONGEST} is the limit", map.len()));
    }
    let (size, rest) = map.split_first_chunk().ok_or_else(broken)?;
    let (trie, texts) = rest.split_at_checked(u32::from_le_bytes(*size) as usize / 4 * 4).ok_or_else(broken)?;
    let texts = std::str::from_utf8(texts).map_err(|_| broken())?;
    let units: Vec<usize> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let unit = |at: usize| units.get(at).copied().ok_or_else(broken);
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    // From every place to the end of its text.
    let mut lengths = vec![0u32; texts.len() + 1];
    for (i, byte) in texts.bytes().enumerate().rev() {
        lengths[i] = if byte == 0 { 0 } else { lengths[i + 1] + 1 };
    }
    let mut growth = 1.0f64;
    let first = offset(unit(0)?);
    let (mut seen, mut nodes) = (HashSet::from([first]), vec![first]);
    for depth in 1.. {
        let mut next = Vec::new();
        for (node, byte) in nodes.into_iter().flat_map(|node| (1..256).map(move |byte| (node, byte))) {
            let at = node ^ byte;
            let unit_of_byte = unit(at)?;
            if unit_of_byte & (1 << 31 | 0xff) != byte {
                continue;
            }
            let to = at ^ offset(unit_of_byte);
            if unit_of_byte >> 8 & 1 == 1 {
                let place = unit(to)? & ((1 << 31) - 1);
                if !texts.is_char_boundary(place) {
                    return Err(broken());
                }
                growth = growth.max(f64::from(lengths[place]) / f64::from(depth));
            }
            if seen.insert(to) {
                next.push(to);
            }
        }
        if next.is_empty() {
            break;
        }
        nodes = next;
    }
    Ok(growth)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a` becomes the text at `place`.
    fn map(units: usize, place: u32, texts: &str) -> Vec<u8> {
        let mut trie = vec![0u32; units];
        trie[usize::from(b'a')] = u32::from(b'a') | 1 << 8 | 0x71 << 10;
        trie[0x10] = place | 1 << 31;
        let size = (4 * units as u32).to_le_bytes();
        [&size[..], &trie.iter().flat_map(|unit| unit.to_le_bytes()).collect::<Vec<u8>>(), texts.as_bytes()].concat()
    }

    #[test]
    fn maps_are_followed_to_their_ends() {
        assert_eq!(check(&map(256, 0, "bcd\0é\0")), Ok(3.0));
        assert_eq!(check(&map(256, 4, "bcd\0é\0")), Ok(2.0));
        // In the middle of a character, and behind the end.
        for place in [5, 8] {
            assert!(check(&map(256, place, "bcd\0é\0")).is_err(), "{place}");
        }
        let cut = map(256, 0, "b\0");
        for len in [0, 3, 4, 100, 1027] {
            assert!(check(&cut[..len]).is_err(), "{len}");
        }
        // Units that no text gets past the end of, and those that one does.
        assert!(check(&map(200, 0, "b\0")).is_err());
        assert!(check(&[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'a', 0]).is_err());
        assert!(check(&vec![0; LONGEST + 1]).is_err());
    }
}
