//! Packed rows as padded tables: to print and compare, never to compute on.

/// Where a dense row is padded or cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PadSide {
    /// Pads in front; keeps the end of what is too long.
    Left,
    /// Pads behind; keeps the start of what is too long.
    Right,
}

/// `ids` with pads added, or ids cut, to exactly `width`.
pub fn pad_truncate(ids: &[i64], width: usize, pad: i64, side: PadSide) -> Vec<i64> {
    let pads = std::iter::repeat_n(pad, width.saturating_sub(ids.len()));
    match side {
        PadSide::Left => pads.chain(ids[ids.len().saturating_sub(width)..].iter().copied()).collect(),
        PadSide::Right => ids.iter().copied().take(width).chain(pads).collect(),
    }
}

/// `[B, width]` of rows that lie end to end.
pub(crate) fn dense(row_ptr: &[i64], tokens: &[i64], width: usize, pad: i64, side: PadSide) -> Vec<Vec<i64>> {
    row_ptr
        .windows(2)
        .map(|row| pad_truncate(&tokens[row[0] as usize..row[1] as usize], width, pad, side))
        .collect()
}
