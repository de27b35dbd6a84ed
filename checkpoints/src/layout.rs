//! The layout table: which range of the flat arena is which parameter.

use serde::{Deserialize, Serialize};

/// One parameter's place in the arena.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// The parameter's name.
    pub name: String,
    /// Its shape; the product is `len`.
    pub shape: Vec<u64>,
    /// First element in the arena.
    pub offset: u64,
    /// Number of elements.
    pub len: u64,
}

/// The whole table. It does not depend on the number of ranks: padding that only makes the arena divisible by a
/// world size is not part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Elements of the arena, gaps for alignment included.
    pub len: u64,
    /// The parameters in ascending order of their offsets.
    pub tensors: Vec<TensorEntry>,
}

impl Layout {
    /// The entry of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Says what is wrong with the table: overlaps, wrong lengths, names given twice, entries beyond the end.
    pub(crate) fn validate(&self) -> Result<(), String> {
        let mut names = std::collections::BTreeSet::new();
        let mut end = 0;
        for tensor in &self.tensors {
            let name = &tensor.name;
            let product = tensor.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
            if product != Some(tensor.len) {
                return Err(format!(
                    "parameter '{name}' has {} elements and shape {:?}",
                    tensor.len, tensor.shape
                ));
            }
            if tensor.offset < end {
                return Err(format!("parameter '{name}' at {} overlaps the one before it", tensor.offset));
            }
            end = match tensor.offset.checked_add(tensor.len) {
                Some(end) if end <= self.len => end,
                _ => {
                    return Err(format!("parameter '{name}' ends beyond the arena of {} elements", self.len));
                }
            };
            if !names.insert(name) {
                return Err(format!("parameter '{name}' is named twice"));
            }
        }
        Ok(())
    }

    /// Names the first difference between a saved table (`self`) and a model's.
    pub(crate) fn difference(&self, model: &Layout) -> Option<String> {
        for (saved, wanted) in self.tensors.iter().zip(&model.tensors) {
            if saved.name != wanted.name {
                return Some(format!(
                    "it has parameter '{}' where the model has '{}'",
                    saved.name, wanted.name
                ));
            }
            if saved.shape != wanted.shape {
                return Some(format!(
                    "parameter '{}' has shape {:?} where the model has {:?}",
                    saved.name, saved.shape, wanted.shape
                ));
            }
            if saved != wanted {
                return Some(format!(
                    "parameter '{}' lies at {} where the model has it at {}",
                    saved.name, saved.offset, wanted.offset
                ));
            }
        }
        let (saved, wanted) = (self.tensors.len(), model.tensors.len());
        if saved != wanted {
            return Some(format!("it has {saved} parameters and the model {wanted}"));
        }
        (self.len != model.len)
            .then(|| format!("its arena has {} elements and the model's {}", self.len, model.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, shape: &[u64], offset: u64, len: u64) -> TensorEntry {
        TensorEntry { name: name.into(), shape: shape.into(), offset, len }
    }

    #[test]
    fn contradictions_are_named() {
        let check = |tensors: &[TensorEntry]| Layout { len: 20, tensors: tensors.to_vec() }.validate();
        assert_eq!(check(&[entry("a", &[2, 3], 0, 6), entry("b", &[4], 16, 4)]), Ok(()));
        assert_eq!(check(&[entry("scalar", &[], 0, 1)]), Ok(()));
        for (tensors, part) in [
            (vec![entry("a", &[2, 3], 0, 7)], "shape"),
            (vec![entry("a", &[u64::MAX, 3], 0, 7)], "shape"),
            (vec![entry("a", &[6], 0, 6), entry("b", &[6], 5, 6)], "overlaps"),
            (vec![entry("a", &[6], 15, 6)], "beyond"),
            (vec![entry("a", &[6], u64::MAX, 6)], "beyond"),
            (vec![entry("a", &[6], 0, 6), entry("a", &[6], 6, 6)], "twice"),
        ] {
            let what = check(&tensors).unwrap_err();
            assert!(what.contains(part), "{what}");
        }
    }

    #[test]
    fn the_first_difference_is_named() {
        let saved = Layout { len: 20, tensors: vec![entry("a", &[2, 3], 0, 6), entry("b", &[4], 16, 4)] };
        let mut model = saved.clone();
        assert_eq!(saved.difference(&model), None);
        model.len = 32;
        assert!(saved.difference(&model).unwrap().contains("20 elements and the model's 32"));
        model.tensors[1].offset = 12;
        assert!(saved.difference(&model).unwrap().contains("lies at 16"));
        model.tensors[0].shape = vec![3, 2];
        assert!(saved.difference(&model).unwrap().contains("shape [2, 3] where the model has [3, 2]"));
        model.tensors[0].name = "c".into();
        assert!(saved.difference(&model).unwrap().contains("'a' where the model has 'c'"));
        model.tensors.clear();
        assert!(saved.difference(&model).unwrap().contains("2 parameters and the model 0"));
    }
}
