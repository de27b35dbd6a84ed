//! Just enough of Thrift's compact protocol to weigh what a footer or a page claims before anything is allocated for it.

/// Groups within groups that a schema may have; a token list needs two.
const MAX_DEPTH: usize = 64;

/// A cursor over compact Thrift; every method is `None` where the bytes end or make no sense.
#[derive(Debug, Clone)]
pub(super) struct Compact<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The sizes that a page's header claims, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageSizes {
    /// Of the header itself.
    pub header: usize,
    /// Of the page when decompressed.
    pub decoded: i64,
    /// Of the page as it is stored.
    pub stored: i64,
}

/// Wire types of the protocol.
mod wire {
    pub const STOP: u8 = 0;
    pub const TRUE: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const BYTE: u8 = 3;
    pub const I16: u8 = 4;
    pub const I32: u8 = 5;
    pub const I64: u8 = 6;
    pub const DOUBLE: u8 = 7;
    pub const BINARY: u8 = 8;
    pub const LIST: u8 = 9;
    pub const SET: u8 = 10;
    pub const MAP: u8 = 11;
    pub const STRUCT: u8 = 12;
}

impl<'a> Compact<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// One byte.
    pub fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// An unsigned integer of seven bits a byte.
    pub fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Passes so many bytes.
    pub fn pass(&mut self, bytes: u64) -> Option<()> {
        let end = self.at.checked_add(usize::try_from(bytes).ok()?)?;
        self.at = (end <= self.bytes.len()).then_some(end)?;
        Some(())
    }

    fn integer(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The next field of a struct as (id, wire type), given the id before; the type is `STOP` after the last.
    fn field(&mut self, last: i64) -> Option<(i64, u8)> {
        let byte = self.byte()?;
        let kind = byte & 0x0f;
        match (kind, byte >> 4) {
            (wire::STOP, _) => Some((0, wire::STOP)),
            (_, 0) => Some((self.integer()?, kind)),
            (_, delta) => Some((last.checked_add(i64::from(delta))?, kind)),
        }
    }

    /// Hands every field of a struct to `take`, which must read it or pass it.
    fn fields(&mut self, mut take: impl FnMut(&mut Self, i64, u8) -> Option<()>) -> Option<()> {
        let mut last = 0;
        loop {
            let (id, kind) = self.field(last)?;
            if kind == wire::STOP {
                return Some(());
            }
            take(self, id, kind)?;
            last = id;
        }
    }

    /// The number of elements of a list and their wire type.
    fn list(&mut self) -> Option<(u64, u8)> {
        let byte = self.byte()?;
        let count = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
        Some((count, byte & 0x0f))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            wire::TRUE | wire::FALSE => Some(()),
            wire::BYTE => self.pass(1),
            wire::I16 | wire::I32 | wire::I64 => self.varint().map(|_| ()),
            wire::DOUBLE => self.pass(8),
            wire::BINARY => {
                let length = self.varint()?;
                self.pass(length)
            }
            wire::LIST | wire::SET => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| self.skip_element(kind, depth))
            }
            wire::MAP => {
                let count = self.varint()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 0x0f, depth)
                })
            }
            wire::STRUCT => self.fields(|cursor, _, kind| cursor.skip(kind, depth)),
            _ => None,
        }
    }

    /// Within lists and maps a boolean takes a byte.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        if matches!(kind, wire::TRUE | wire::FALSE) { self.pass(1) } else { self.skip(kind, depth) }
    }
}

/// The sizes in the page header at the start of `bytes`; none if it is no page header.
pub(super) fn page_sizes(bytes: &[u8]) -> Option<PageSizes> {
    let mut cursor = Compact::new(bytes);
    let (mut decoded, mut stored) = (None, None);
    cursor.fields(|cursor, id, kind| match (id, kind) {
        (2, wire::I32) => cursor.integer().map(|size| decoded = Some(size)),
        (3, wire::I32) => cursor.integer().map(|size| stored = Some(size)),
        _ => cursor.skip(kind, MAX_DEPTH),
    })?;
    Some(PageSizes { header: cursor.position(), decoded: decoded?, stored: stored? })
}

/// Whether the schema of a footer has the children that it claims and nests them no deeper than a reader's stack bears;
/// the decoder believes both.
pub(super) fn schema_is_plausible(footer: &[u8]) -> bool {
    let mut cursor = Compact::new(footer);
    let mut plausible = true;
    let walked = cursor.fields(|cursor, id, kind| match (id, kind) {
        (2, wire::LIST) => {
            let (count, kind) = cursor.list()?;
            plausible &= kind == wire::STRUCT && nests(cursor, count)?;
            plausible.then_some(())
        }
        _ => cursor.skip(kind, MAX_DEPTH),
    });
    walked.is_some() && plausible
}

/// Reads `count` schema elements, which stand in depth-first order with their numbers of children.
fn nests(cursor: &mut Compact<'_>, count: u64) -> Option<bool> {
    // Children still to come, from the root inwards.
    let mut open: Vec<u64> = Vec::new();
    for left in (0..count).rev() {
        let mut children = 0;
        cursor.fields(|cursor, id, kind| match (id, kind) {
            (5, wire::I32) => cursor.integer().map(|count| children = count),
            _ => cursor.skip(kind, MAX_DEPTH),
        })?;
        let children = u64::try_from(children).ok()?;
        if children > left || open.len() > MAX_DEPTH {
            return Some(false);
        }
        if let Some(siblings) = open.last_mut() {
            *siblings -= 1;
        }
        open.push(children);
        while open.last() == Some(&0) {
            open.pop();
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A struct element of a schema: a name and a number of children.
    fn element(children: u8) -> Vec<u8> {
        vec![0x48, 1, b'x', 0x15, children << 1, 0]
    }

    fn footer(children: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x15, 2, 0x19, 0xfc, children.len() as u8];
        bytes.extend(children.iter().flat_map(|&count| element(count)));
        bytes.push(0);
        bytes
    }

    #[test]
    fn a_schema_has_the_children_it_claims() {
        assert!(schema_is_plausible(&footer(&[2, 0, 1, 1, 0])));
        assert!(!schema_is_plausible(&footer(&[3, 0, 0])));
        assert!(!schema_is_plausible(&footer(&[2, 0])[..10]), "it ends early");
        let deep = |depth| footer(&[vec![1; depth], vec![0]].concat());
        assert!(schema_is_plausible(&deep(60)) && !schema_is_plausible(&deep(80)));
    }

    #[test]
    fn page_headers_tell_their_sizes() {
        // type 0, sizes 300 and 70, no CRC, a data page header with a boolean-free body.
        let header = [0x15, 0, 0x15, 0xd8, 4, 0x15, 0x8c, 1, 0x2c, 0x15, 8, 0x15, 0, 0, 0, 99];
        assert_eq!(page_sizes(&header), Some(PageSizes { header: 15, decoded: 300, stored: 70 }));
        assert_eq!(page_sizes(&header[..14]), None);
        assert_eq!(page_sizes(&[0x15, 0, 0]), None);
    }
}
