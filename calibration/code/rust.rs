//! A small LRU cache, a run-length codec and a word counter.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::io::{self, BufRead, Write};

/// Doubly linked list threaded through a `Vec`; `usize::MAX` stands for "none".
const NIL: usize = usize::MAX;

struct Node<K, V> {
    key: K,
    value: V,
    prev: usize,
    next: usize,
}

pub struct Lru<K, V> {
    map: HashMap<K, usize>,
    nodes: Vec<Node<K, V>>,
    head: usize,
    tail: usize,
    capacity: usize,
}

impl<K: Hash + Eq + Clone, V> Lru<K, V> {
    pub fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "a cache of nothing is no cache");
        Lru { map: HashMap::with_capacity(capacity), nodes: Vec::new(), head: NIL, tail: NIL, capacity }
    }

    fn unlink(&mut self, i: usize) {
        let (prev, next) = (self.nodes[i].prev, self.nodes[i].next);
        if prev == NIL { self.head = next } else { self.nodes[prev].next = next }
        if next == NIL { self.tail = prev } else { self.nodes[next].prev = prev }
    }

    fn push_front(&mut self, i: usize) {
        self.nodes[i].prev = NIL;
        self.nodes[i].next = self.head;
        if self.head != NIL {
            let h = self.head;
            self.nodes[h].prev = i;
        }
        self.head = i;
        if self.tail == NIL {
            self.tail = i;
        }
    }

    pub fn get(&mut self, key: &K) -> Option<&V> {
        let i = *self.map.get(key)?;
        self.unlink(i);
        self.push_front(i);
        Some(&self.nodes[i].value)
    }

    /// Returns the pair that had to go, if any.
    pub fn put(&mut self, key: K, value: V) -> Option<(K, V)> {
        if let Some(&i) = self.map.get(&key) {
            let old = std::mem::replace(&mut self.nodes[i].value, value);
            self.unlink(i);
            self.push_front(i);
            return Some((key, old));
        }
        if self.nodes.len() < self.capacity {
            self.nodes.push(Node { key: key.clone(), value, prev: NIL, next: NIL });
            let i = self.nodes.len() - 1;
            self.map.insert(key, i);
            self.push_front(i);
            return None;
        }
        let i = self.tail;
        self.unlink(i);
        let old = std::mem::replace(&mut self.nodes[i], Node { key: key.clone(), value, prev: NIL, next: NIL });
        self.map.remove(&old.key);
        self.map.insert(key, i);
        self.push_front(i);
        Some((old.key, old.value))
    }
}

#[derive(Debug, PartialEq)]
pub enum RleError {
    Truncated { at: usize },
    ZeroRun(usize),
}

impl fmt::Display for RleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RleError::Truncated { at } => write!(f, "input ends inside a pair at byte {at}"),
            RleError::ZeroRun(at) => write!(f, "run of length zero at byte {at}"),
        }
    }
}

impl std::error::Error for RleError {}

pub fn rle_encode(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = data;
    while let Some(&first) = rest.first() {
        let run = rest.iter().take(255).take_while(|&&b| b == first).count();
        out.extend([run as u8, first]);
        rest = &rest[run..];
    }
    out
}

pub fn rle_decode(data: &[u8]) -> Result<Vec<u8>, RleError> {
    let mut out = Vec::new();
    for (i, pair) in data.chunks(2).enumerate() {
        match *pair {
            [0, _] => return Err(RleError::ZeroRun(2 * i)),
            [n, b] => out.extend(std::iter::repeat_n(b, n as usize)),
            _ => return Err(RleError::Truncated { at: 2 * i }),
        }
    }
    Ok(out)
}

fn main() -> io::Result<()> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for line in io::stdin().lock().lines() {
        for word in line?.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
            *counts.entry(word.to_lowercase()).or_default() += 1;
        }
    }
    let mut rows: Vec<_> = counts.into_iter().collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut out = io::stdout().lock();
    for (word, n) in rows.iter().take(20) {
        writeln!(out, "{n:>6}  {word}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evicts_the_oldest() {
        let mut c = Lru::new(2);
        c.put("a", 1);
        c.put("b", 2);
        assert_eq!(c.get(&"a"), Some(&1));
        assert_eq!(c.put("c", 3), Some(("b", 2)));
        assert!(c.get(&"b").is_none());
    }

    #[test]
    fn rle_round_trip() {
        let text = b"aaaabccddddddddd";
        assert_eq!(rle_decode(&rle_encode(text)).unwrap(), text);
        assert_eq!(rle_decode(&[3]), Err(RleError::Truncated { at: 0 }));
    }
}
