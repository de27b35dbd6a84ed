//! Taking tokens out of a row of fixed width.

use crate::error::{Error, Result};

/// `ids` without the `unwanted` ones: what is left moves to the left, and the row is filled up with `pad` to its old width.
pub fn remove_tokens(ids: &[i64], unwanted: &[i64], pad: i64) -> Vec<i64> {
    compact(ids, ids.iter().map(|id| !unwanted.contains(id)), pad)
}

/// As [`remove_tokens`], with a mark for each id that is to stay.
///
/// # Errors
/// Marks and ids differ in number.
pub fn keep_tokens(ids: &[i64], keep: &[bool], pad: i64) -> Result<Vec<i64>> {
    Error::unless_sized("the marks of kept tokens", ids.len(), keep.len())?;
    Ok(compact(ids, keep.iter().copied(), pad))
}

fn compact(ids: &[i64], keep: impl Iterator<Item = bool>, pad: i64) -> Vec<i64> {
    let mut row: Vec<i64> = ids.iter().zip(keep).filter_map(|(&id, keep)| keep.then_some(id)).collect();
    row.resize(ids.len(), pad);
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_close_to_the_left() {
        assert_eq!(remove_tokens(&[4, 7, 0, 4, 9], &[4, 9], 0), [7, 0, 0, 0, 0]);
        assert_eq!(remove_tokens(&[4, 7], &[], 0), [4, 7]);
        assert_eq!(remove_tokens(&[], &[4], 0), [0i64; 0]);
        assert_eq!(keep_tokens(&[4, 7, 4], &[false, true, true], 5).unwrap(), [7, 4, 5]);
    }

    #[test]
    fn a_mark_too_few_is_an_error() {
        let message = keep_tokens(&[4, 7], &[true], 0).unwrap_err().to_string();
        assert_eq!(message, "the marks of kept tokens do not fit: 2 are needed but 1 were given");
    }
}
