//! The ranges of the arena that a rank updates, and where their elements lie in buffers that hold nothing else.

use std::ops::Range;

/// Ranges in ascending order. A buffer of [`len`](Parts::len) elements holds them one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    ranges: Vec<Part>,
    len: usize,
}

/// Some elements by their two places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Their range of the arena.
    pub arena: Range<usize>,
    /// Their range of the packed buffer.
    pub packed: Range<usize>,
}

impl Parts {
    /// What of ascending `ranges` lies in `0..arena_len`. Neighbours are joined.
    pub fn new(arena_len: usize, ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        let mut parts = Self { ranges: Vec::new(), len: 0 };
        for range in ranges {
            let arena = range.start..range.end.min(arena_len);
            if arena.is_empty() {
                continue;
            }
            let packed = parts.len..parts.len + arena.len();
            parts.len = packed.end;
            match parts.ranges.last_mut() {
                Some(last) if last.arena.end == arena.start => {
                    last.arena.end = arena.end;
                    last.packed.end = packed.end;
                }
                _ => parts.ranges.push(Part { arena, packed }),
            }
        }
        parts
    }

    /// The whole arena.
    pub fn whole(arena_len: usize) -> Self {
        Self::new(arena_len, std::iter::once(0..arena_len))
    }

    /// Elements of all ranges together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Part> {
        self.ranges.iter().cloned()
    }

    /// What of them lies in a range of the arena.
    pub fn within(&self, window: Range<usize>) -> impl Iterator<Item = Part> {
        let first = self.ranges.partition_point(|part| part.arena.end <= window.start);
        let overlapping = self.ranges[first..].iter().take_while(move |part| part.arena.start < window.end);
        overlapping.map(move |part| {
            let arena = part.arena.start.max(window.start)..part.arena.end.min(window.end);
            let packed = part.packed.start + (arena.start - part.arena.start);
            Part { packed: packed..packed + arena.len(), arena }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_clipped_joined_and_packed() {
        let parts = Parts::new(100, [0..10, 10..20, 40..50, 50..50, 90..130, 200..300]);
        let places: Vec<_> = parts.iter().map(|part| (part.arena, part.packed)).collect();
        assert_eq!(places, [(0..20, 0..20), (40..50, 20..30), (90..100, 30..40)]);
        assert_eq!(parts.len(), 40);
        assert_eq!(Parts::whole(7).iter().collect::<Vec<_>>(), [Part { arena: 0..7, packed: 0..7 }]);
        assert!(Parts::whole(0).is_empty());
    }

    #[test]
    fn a_window_shows_what_lies_in_it() {
        let parts = Parts::new(100, [0..20, 40..50]);
        let within = |window| parts.within(window).map(|part| (part.arena, part.packed)).collect::<Vec<_>>();
        assert_eq!(within(5..45), [(5..20, 5..20), (40..45, 20..25)]);
        assert_eq!(within(20..40), []);
        assert_eq!(within(0..100), [(0..20, 0..20), (40..50, 20..30)]);
        assert_eq!(within(45..46), [(45..46, 25..26)]);
    }
}
