//! Lists of ids, rebuilt from Parquet's levels and checked against the vocabulary.

use parquet::{column::reader::ColumnReaderImpl, data_type::DataType, schema::types::ColumnDescriptor};

use super::decode::{BadRow, LEVELS_AT_A_TIME, Segments, read};

/// An integer as Parquet stores it; unsigned ones are stored by their bits.
pub(super) trait StoredId: Copy {
    /// The bits as an unsigned number: negative ones lie outside every vocabulary.
    fn bits(self) -> u64;
    /// The number that is meant.
    fn number(self, unsigned: bool) -> i128;
}

impl StoredId for i32 {
    fn bits(self) -> u64 {
        u64::from(self as u32)
    }

    fn number(self, unsigned: bool) -> i128 {
        if unsigned { i128::from(self as u32) } else { i128::from(self) }
    }
}

impl StoredId for i64 {
    fn bits(self) -> u64 {
        self as u64
    }

    fn number(self, unsigned: bool) -> i128 {
        if unsigned { i128::from(self as u64) } else { i128::from(self) }
    }
}

/// What the ids of a column may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct IdLimits {
    /// Ids below this are in the vocabulary.
    pub vocab_size: usize,
    /// They are stored by the bits of unsigned numbers.
    pub unsigned: bool,
    /// Memory that all rows may take.
    pub max_bytes: usize,
}

/// Reads the lists of a column. Repetition level 0 starts a row; the definition level tells how deep a value exists.
pub(super) fn ids<T: DataType>(
    reader: ColumnReaderImpl<T>,
    rows: usize,
    descriptor: &ColumnDescriptor,
    limits: IdLimits,
) -> Result<Segments<u32>, String>
where
    T::T: StoredId,
{
    let levels =
        Levels { element: descriptor.max_def_level(), entry: descriptor.repeated_ancestor_def_level() };
    let IdLimits { vocab_size, unsigned, max_bytes } = limits;
    let limit = (vocab_size as u64).min(1 << 32);
    let mut out = Segments::default();
    read(reader, rows, LEVELS_AT_A_TIME, |definitions, repetitions, values: &[T::T]| {
        out.check_room(values.len(), max_bytes)?;
        let all_exist = values.len() == definitions.len();
        if all_exist && values.iter().fold(true, |fits, id| fits & (id.bits() < limit)) {
            whole_lists(repetitions, values, &mut out);
            return Ok(());
        }
        levels.lists(definitions, repetitions, values, &mut out, |id| {
            u32::try_from(id.bits())
                .ok()
                .filter(|_| id.bits() < limit)
                .ok_or_else(|| BadRow::Id(id.number(unsigned)))
        })
    })?;
    Ok(out)
}

/// The common case: no empty lists, no nulls, and all ids are in the vocabulary.
fn whole_lists<T: StoredId>(repetitions: &[i16], values: &[T], out: &mut Segments<u32>) {
    let base = out.values.len();
    out.values.extend(values.iter().map(|id| id.bits() as u32));
    let starts = (1..repetitions.len()).filter(|&index| repetitions[index] == 0);
    out.ends.extend(starts.map(|index| base + index));
    if !repetitions.is_empty() {
        out.end_row();
    }
}

/// Definition levels of a column.
struct Levels {
    /// An element has a value.
    element: i16,
    /// The list has an entry (which may be null); one below it is empty; further below it is null.
    entry: i16,
}

impl Levels {
    fn lists<T: StoredId>(
        &self,
        definitions: &[i16],
        repetitions: &[i16],
        values: &[T],
        out: &mut Segments<u32>,
        check: impl Fn(T) -> Result<u32, BadRow>,
    ) -> Result<(), String> {
        let mut values = values.iter();
        for (index, (&definition, &repetition)) in definitions.iter().zip(repetitions).enumerate() {
            if repetition == 0 && index > 0 {
                out.end_row();
            }
            let row = out.ends.len();
            if definition == self.element {
                match check(*values.next().ok_or("values are missing")?) {
                    Ok(id) => out.values.push(id),
                    Err(bad) => out.spoil(row, bad),
                }
            } else if definition != self.entry - 1 {
                out.spoil(row, BadRow::Null);
            }
        }
        if !definitions.is_empty() {
            out.end_row();
        }
        Ok(())
    }
}
