//! From the names of a state dict to the flat arena of a model.

use std::collections::BTreeMap;
use std::fmt;

use super::error::WeightsError;
use super::file::WeightsFile;
use super::keys::is_frequencies;
use crate::error::Result;
use crate::layout::TensorEntry;

/// Names listed per kind of difference; the rest is a number.
const NAMED: usize = 3;

/// All that two tables of parameters do not have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// Wanted but not there.
    pub missing: Vec<String>,
    /// There but not wanted.
    pub surplus: Vec<String>,
    /// There with another shape.
    pub misshapen: Vec<ShapeDifference>,
}

/// A parameter with another shape than wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeDifference {
    /// The parameter's name.
    pub name: String,
    /// The shape it has.
    pub found: Vec<u64>,
    /// The shape wanted.
    pub wanted: Vec<u64>,
}

impl Differences {
    /// Compares two tables from names to shapes.
    pub(crate) fn between(found: &BTreeMap<&str, &[u64]>, wanted: &BTreeMap<&str, &[u64]>) -> Self {
        let mut differences = Self::default();
        for (&name, &shape) in wanted {
            match found.get(name) {
                None => differences.missing.push(name.into()),
                Some(&other) if other != shape => differences.misshapen.push(ShapeDifference {
                    name: name.into(),
                    found: other.into(),
                    wanted: shape.into(),
                }),
                Some(_) => {}
            }
        }
        let surplus = found.keys().filter(|name| !wanted.contains_key(*name));
        differences.surplus = surplus.map(|name| name.to_string()).collect();
        differences
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.surplus.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |names: &[String]| names.iter().map(|name| format!("'{name}'")).collect();
        let shapes = self.misshapen.iter();
        let shapes = shapes.map(|one| format!("'{}' {:?} instead of {:?}", one.name, one.found, one.wanted));
        let kinds: [(&str, Vec<String>); 3] = [
            ("missing", quoted(&self.missing)),
            ("surplus", quoted(&self.surplus)),
            ("of another shape", shapes.collect()),
        ];
        let mut separator = "";
        for (kind, items) in kinds.iter().filter(|(_, items)| !items.is_empty()) {
            let named = items.get(..NAMED).unwrap_or(items).join(", ");
            let rest = if items.len() > NAMED { ", ..." } else { "" };
            write!(f, "{separator}{} {kind} ({named}{rest})", items.len())?;
            separator = ", ";
        }
        Ok(())
    }
}

impl WeightsFile {
    /// Fills the arena of a model: every entry of `wanted` from the tensor of its name, the gaps between them left
    /// as they are. Frequencies are no parameters and may be there or not.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] with everything that is missing, surplus or of another shape,
    /// [`WeightsError::BufferSize`] for an entry beyond the end of `buffer`, [`WeightsError::Dtype`]; `buffer` is
    /// then as it was. Otherwise as [`WeightsFile::read_tensor`], with `buffer` in part overwritten.
    pub fn read_into(&self, wanted: &[TensorEntry], buffer: &mut [f32]) -> Result<()> {
        let parameters = || self.tensors().iter().filter(|(name, _)| !is_frequencies(name));
        let found = parameters().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice())).collect();
        let table = wanted.iter().map(|entry| (entry.name.as_str(), entry.shape.as_slice())).collect();
        let differences = Differences::between(&found, &table);
        if !differences.is_empty() {
            let (path, differences) = (self.path().into(), Box::new(differences));
            return Err(WeightsError::Mismatch { path, differences }.into());
        }
        for (_, tensor) in parameters() {
            tensor.float()?;
        }
        for entry in wanted {
            self.place(entry, buffer)?;
        }
        for entry in wanted {
            let place = self.place(entry, buffer)?;
            self.read_tensor(&entry.name, place)?;
        }
        Ok(())
    }

    /// An entry's part of the arena.
    fn place<'a>(&self, entry: &TensorEntry, buffer: &'a mut [f32]) -> Result<&'a mut [f32], WeightsError> {
        let elements = buffer.len();
        let end = entry.offset.checked_add(entry.len);
        let range = usize::try_from(entry.offset).ok().zip(end.and_then(|end| usize::try_from(end).ok()));
        range.and_then(|(start, end)| buffer.get_mut(start..end)).ok_or_else(|| WeightsError::BufferSize {
            path: self.path().into(),
            name: entry.name.clone(),
            buffer: elements,
            needed: end.unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_counted_and_the_first_ones_named() {
        let shape: &[u64] = &[2, 3];
        let found = ["a", "b", "s1", "s2"].map(|name| (name, shape)).into();
        let mut wanted: BTreeMap<&str, &[u64]> =
            ["a", "m1", "m2", "m3", "m4"].map(|name| (name, shape)).into();
        wanted.insert("b", &[3, 2]);
        let differences = Differences::between(&found, &wanted);
        assert_eq!(
            differences.to_string(),
            "4 missing ('m1', 'm2', 'm3', ...), 2 surplus ('s1', 's2'), 1 of another shape ('b' [2, 3] instead of [3, 2])"
        );
        assert!(!differences.is_empty());
        assert!(Differences::between(&found, &found).is_empty());
    }
}
