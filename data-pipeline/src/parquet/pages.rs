//! Pages of a column chunk whose claims are weighed before the decoder allocates what they ask for.

use parquet::{
    basic::{Encoding, Type as PhysicalType},
    column::page::{Page, PageMetadata, PageReader},
    errors::{ParquetError, Result},
    file::{metadata::ColumnChunkMetaData, serialized_reader::SerializedPageReader},
    schema::types::ColumnDescriptor,
};

use super::{
    chunk::Chunk,
    thrift::{Compact, page_sizes},
};

/// A page may take so many bytes whatever the footer says of its chunk: some writers count wrongly.
const ALWAYS_ALLOWED: i64 = 64 << 20;

/// The pages of a chunk, checked.
pub(super) struct Pages {
    inner: SerializedPageReader<Chunk>,
    claims: Claims,
}

/// What the pages of a chunk may claim.
struct Claims {
    /// Levels (values, nulls and empty lists) that the data pages may still hold.
    levels_left: i64,
    /// Values of a text page begin after its definition levels.
    has_definitions: bool,
    physical_type: PhysicalType,
}

impl Pages {
    /// Checks the sizes that all page headers claim.
    pub fn new(
        chunk: Chunk,
        metadata: &ColumnChunkMetaData,
        descriptor: &ColumnDescriptor,
        rows: usize,
    ) -> Result<Self> {
        check_sizes(chunk.bytes(), metadata.uncompressed_size().max(ALWAYS_ALLOWED))?;
        let claims = Claims {
            levels_left: metadata.num_values(),
            has_definitions: descriptor.max_def_level() > 0,
            physical_type: descriptor.physical_type(),
        };
        Ok(Self { inner: SerializedPageReader::new(chunk.into(), metadata, rows, None)?, claims })
    }
}

impl Claims {
    fn check(&mut self, page: &Page) -> Result<()> {
        let claimed = i64::from(page.num_values());
        if let Page::DictionaryPage { buf, .. } = page {
            // Plain values: 8 bytes, 4 bytes, or a length of 4 bytes and the text.
            let width = if self.physical_type == PhysicalType::INT64 { 8 } else { 4 };
            return plausible(claimed <= (buf.len() / width) as i64, "values of its dictionary", claimed);
        }
        self.levels_left -= claimed;
        plausible(self.levels_left >= 0, "values of a page", claimed)?;
        if self.physical_type == PhysicalType::BYTE_ARRAY {
            let lengths = delta_lengths(page, self.has_definitions);
            for count in lengths.ok_or_else(|| ParquetError::EOF("a page ends within its lengths".into()))? {
                plausible(count <= claimed as u64, "lengths of texts", count)?;
            }
        }
        Ok(())
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.inner.get_next_page()?;
        page.iter().try_for_each(|page| self.claims.check(page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.inner.skip_next_page()
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

fn plausible(is: bool, what: &str, count: impl std::fmt::Display) -> Result<()> {
    if is { Ok(()) } else { Err(ParquetError::General(format!("it claims {count} {what}"))) }
}

/// Walks the page headers of a chunk. Bytes after them that are no header are left to the decoder, which never looks at
/// what it has no values for.
fn check_sizes(mut chunk: &[u8], allowed: i64) -> Result<()> {
    while let Some(sizes) = page_sizes(chunk) {
        plausible(sizes.decoded <= allowed, "bytes of a page", sizes.decoded)?;
        match usize::try_from(sizes.stored).ok().and_then(|stored| chunk.get(sizes.header + stored..)) {
            Some(rest) => chunk = rest,
            None => return Ok(()),
        }
    }
    Ok(())
}

/// How many lengths of texts (and of shared prefixes) a page claims that stores them as deltas; none if it ends early.
fn delta_lengths(page: &Page, has_definitions: bool) -> Option<Vec<u64>> {
    let sections = match page.encoding() {
        Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
        Encoding::DELTA_BYTE_ARRAY => 2,
        _ => return Some(Vec::new()),
    };
    let mut cursor = Compact::new(page.buffer());
    match page {
        Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => {
            cursor.pass(u64::from(*def_levels_byte_len) + u64::from(*rep_levels_byte_len))?;
        }
        Page::DataPage { def_level_encoding, num_values, .. } if has_definitions => {
            match def_level_encoding {
                Encoding::RLE => {
                    let length = [cursor.byte()?, cursor.byte()?, cursor.byte()?, cursor.byte()?];
                    cursor.pass(u64::from(u32::from_le_bytes(length)))?;
                }
                _ => cursor.pass(u64::from(num_values.div_ceil(8)))?,
            }
        }
        _ => {}
    }
    let mut counts = vec![cursor.clone().delta_header()?.count];
    if sections == 2 {
        pass_deltas(&mut cursor)?;
        counts.push(cursor.delta_header()?.count);
    }
    Some(counts)
}

/// Passes integers in the encoding DELTA_BINARY_PACKED.
fn pass_deltas(cursor: &mut Compact<'_>) -> Option<()> {
    let DeltaHeader { block, miniblocks, count } = cursor.delta_header()?;
    let per_miniblock = block.checked_div(miniblocks).filter(|&values| values > 0)?;
    // The first value stands in the header.
    let mut left = count.saturating_sub(1);
    while left > 0 {
        cursor.varint()?;
        let mut widths = cursor.clone();
        cursor.pass(miniblocks)?;
        for _ in 0..miniblocks {
            let width = u64::from(widths.byte()?);
            // The last block has no bytes of miniblocks without values.
            if left > 0 {
                cursor.pass(per_miniblock.checked_mul(width)?.div_ceil(8))?;
                left = left.saturating_sub(per_miniblock);
            }
        }
    }
    Some(())
}

/// What integers in the encoding DELTA_BINARY_PACKED begin with.
struct DeltaHeader {
    /// Values a block.
    block: u64,
    /// Miniblocks a block.
    miniblocks: u64,
    /// Values in all.
    count: u64,
}

impl Compact<'_> {
    fn delta_header(&mut self) -> Option<DeltaHeader> {
        let header = DeltaHeader { block: self.varint()?, miniblocks: self.varint()?, count: self.varint()? };
        // The first value.
        self.varint()?;
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn data(encoding: Encoding, num_values: u32, bytes: &'static [u8]) -> Page {
        Page::DataPage {
            buf: Bytes::from_static(bytes),
            num_values,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        }
    }

    fn texts(has_definitions: bool) -> Claims {
        Claims { levels_left: 10, has_definitions, physical_type: PhysicalType::BYTE_ARRAY }
    }

    #[test]
    fn a_dictionary_holds_what_its_bytes_can_hold() {
        let dictionary = |num_values| Page::DictionaryPage {
            buf: Bytes::from_static(&[0; 16]),
            num_values,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        for (physical_type, values) in
            [(PhysicalType::BYTE_ARRAY, 4), (PhysicalType::INT32, 4), (PhysicalType::INT64, 2)]
        {
            let mut claims = Claims { physical_type, ..texts(true) };
            claims.check(&dictionary(values)).unwrap();
            let error = claims.check(&dictionary(u32::MAX)).unwrap_err().to_string();
            assert!(error.contains("claims 4294967295 values of its dictionary"), "{error}");
            assert!(claims.check(&dictionary(values + 1)).is_err());
        }
    }

    #[test]
    fn pages_together_hold_no_more_than_their_chunk() {
        let mut claims = texts(false);
        claims.check(&data(Encoding::PLAIN, 7, &[])).unwrap();
        claims.check(&data(Encoding::PLAIN, 3, &[])).unwrap();
        assert!(claims.check(&data(Encoding::PLAIN, 1, &[])).is_err());
    }

    #[test]
    fn texts_stored_as_deltas_are_as_many_as_the_page_says() {
        // Blocks of 128 values in 4 miniblocks, 3 values: 2, and deltas in one block of width 1 from 0.
        const THREE: [u8; 13] = [0x80, 1, 4, 3, 4, 0, 1, 0, 0, 0, 1, 0, 0];
        const MANY: [u8; 9] = [0x80, 1, 4, 0xff, 0xff, 0xff, 0xff, 0x0f, 4];
        let lengths = Encoding::DELTA_LENGTH_BYTE_ARRAY;
        texts(false).check(&data(lengths, 3, &THREE)).unwrap();
        assert!(texts(false).check(&data(lengths, 2, &THREE)).is_err());
        assert!(texts(false).check(&data(lengths, 9, &MANY)).is_err());
        let levels_first: &[u8] = &[2, 0, 0, 0, 6, 1, 0x80, 1, 4, 3, 4];
        texts(true).check(&data(lengths, 3, levels_first)).unwrap();
        assert!(texts(true).check(&data(lengths, 2, levels_first)).is_err());
        // Shared prefixes, then suffixes: the second count lies.
        let both: &'static [u8] = Box::leak([&THREE[..], &[0], &MANY].concat().into_boxed_slice());
        let error = texts(false).check(&data(Encoding::DELTA_BYTE_ARRAY, 9, both)).unwrap_err().to_string();
        assert!(error.contains("claims 4294967295 lengths"), "{error}");
    }

    #[test]
    fn a_page_header_may_not_claim_more_than_its_chunk() {
        let header = |size: &[u8]| [&[0x15, 0, 0x15][..], size, &[0x15, 4, 0, 9, 9]].concat();
        check_sizes(&[header(&[80]), header(&[80])].concat(), 40).unwrap();
        check_sizes(&header(&[80]), 39).unwrap_err();
        check_sizes(&[header(&[80]), header(&[0x80, 0x80, 0x80, 0x80, 4])].concat(), 40).unwrap_err();
    }
}
