//! Byte pair merges learnt from counted words; ties go to the lower ids, so that the same counts give the same merges.
//!
//! The `tokenizers` crate has trainers, but they walk through maps in an order that differs from run to run, and so do the
//! ids they give; their 32-bit counts also overflow on large texts.

use std::{cmp::Reverse, collections::BinaryHeap};

use ahash::AHashMap;

/// Two neighbouring tokens.
pub(super) type Pair = (u32, u32);

/// Strings by id and back.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    pub strings: Vec<String>,
    ids: AHashMap<String, u32>,
}

impl Vocabulary {
    /// The id of a string, a new one if it has none.
    pub fn id(&mut self, string: &str) -> u32 {
        if let Some(&id) = self.ids.get(string) {
            return id;
        }
        let id = self.strings.len() as u32;
        self.strings.push(string.to_owned());
        self.ids.insert(string.to_owned(), id);
        id
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.strings.len()
    }

    /// Every string with its id.
    pub fn into_ids(self) -> AHashMap<String, u32> {
        self.ids
    }
}

/// A word as tokens, and how often it occurs.
#[derive(Debug, Clone)]
pub(super) struct Word {
    pub ids: Vec<u32>,
    pub count: u64,
}

/// Merges of the most frequent neighbours, until something is used up.
#[derive(Debug, Default)]
pub(super) struct Merges {
    words: Vec<Word>,
    counts: AHashMap<Pair, u64>,
    /// Words that have, or once had, the pair.
    places: AHashMap<Pair, Vec<usize>>,
    /// Pairs with a count they once had, which is at least the present one for the highest entry of a pair.
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
}

impl Merges {
    pub fn new(words: Vec<Word>) -> Self {
        let mut merges = Self { words, ..Self::default() };
        for index in 0..merges.words.len() {
            merges.count(index, None);
        }
        merges.queue = merges.counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).collect();
        merges
    }

    /// The most frequent pair; none if it occurs less than `at_least` times.
    pub fn next(&mut self, at_least: u64) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if count == now {
                return (now >= at_least.max(1)).then_some(pair);
            }
            // A higher count has an entry of its own already.
            if now > 0 && now < count {
                self.queue.push((now, Reverse(pair)));
            }
        }
        None
    }

    /// Makes every occurrence of the pair the token `merged`, which is neither of the two.
    pub fn merge(&mut self, pair: Pair, merged: u32) {
        let mut places = self.places.remove(&pair).unwrap_or_default();
        places.sort_unstable();
        places.dedup();
        for &index in &places {
            self.uncount(index);
            replace(&mut self.words[index].ids, pair, merged);
            self.count(index, Some(merged));
        }
        self.counts.remove(&pair);
        let mut grown: Vec<Pair> =
            places.iter().flat_map(|&index| neighbours(&self.words[index].ids, Some(merged))).collect();
        grown.sort_unstable();
        grown.dedup();
        for pair in grown {
            if let Some(&count) = self.counts.get(&pair) {
                self.queue.push((count, Reverse(pair)));
            }
        }
    }

    fn uncount(&mut self, index: usize) {
        let word = &self.words[index];
        for pair in neighbours(&word.ids, None) {
            if let Some(count) = self.counts.get_mut(&pair) {
                *count -= word.count;
            }
        }
    }

    /// Counts the pairs of a word; enters its place for those with the token `of` (none: all).
    fn count(&mut self, index: usize, of: Option<u32>) {
        let word = &self.words[index];
        for pair in neighbours(&word.ids, None) {
            *self.counts.entry(pair).or_default() += word.count;
        }
        for pair in neighbours(&word.ids, of) {
            self.places.entry(pair).or_default().push(index);
        }
    }
}

/// Pairs of neighbours, those with the token `of` (none: all).
fn neighbours(ids: &[u32], of: Option<u32>) -> impl Iterator<Item = Pair> {
    let pairs = ids.windows(2).map(|pair| (pair[0], pair[1]));
    pairs.filter(move |pair| of.is_none_or(|id| pair.0 == id || pair.1 == id))
}

fn replace(ids: &mut Vec<u32>, pair: Pair, merged: u32) {
    let (mut read, mut write) = (0, 0);
    while read < ids.len() {
        if read + 1 < ids.len() && (ids[read], ids[read + 1]) == pair {
            ids[write] = merged;
            read += 2;
        } else {
            ids[write] = ids[read];
            read += 1;
        }
        write += 1;
    }
    ids.truncate(write);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(words: &[(&[u32], u64)], first: u32) -> Vec<Pair> {
        let words = words.iter().map(|(ids, count)| Word { ids: ids.to_vec(), count: *count }).collect();
        let mut merges = Merges::new(words);
        let mut learnt = Vec::new();
        while let Some(pair) = merges.next(2) {
            merges.merge(pair, first + learnt.len() as u32);
            learnt.push(pair);
        }
        learnt
    }

    #[test]
    fn the_most_frequent_pair_is_next_and_ties_go_to_the_lower_ids() {
        // "aaab" three times, "cb" twice, "ab" once; a=0, b=1, c=2.
        let words: [(&[u32], u64); 3] = [(&[0, 0, 0, 1], 3), (&[2, 1], 2), (&[0, 1], 1)];
        // aa 6; then (aa, a), (a, b) with 3 and 4; then (aa, ab) 3; then (c, b) 2.
        assert_eq!(learn(&words, 10), [(0, 0), (0, 1), (10, 11), (2, 1)]);
        assert_eq!(learn(&[(&[3, 4], 2), (&[1, 2], 2)], 10), [(1, 2), (3, 4)]);
    }

    #[test]
    fn counts_are_as_if_counted_anew() {
        let mut state = 7u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        let words: Vec<Word> = (0..200)
            .map(|_| Word {
                ids: (0..random(9)).map(|_| random(5)).collect(),
                count: u64::from(random(4)) + 1,
            })
            .collect();
        let mut merges = Merges::new(words);
        let mut merged = 5;
        while let Some(pair) = merges.next(1) {
            let anew = Merges::new(merges.words.clone());
            let best = anew.counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).max();
            assert_eq!(best, Some((anew.counts[&pair], Reverse(pair))));
            // A string may be reached in two ways, and then has its id already.
            let again = merged % 7 == 0 && pair.0 != merged - 1 && pair.1 != merged - 1;
            merges.merge(pair, if again { merged - 1 } else { merged });
            merged += 1;
        }
        assert!(merges.words.iter().all(|word| word.ids.len() < 2));
    }
}
