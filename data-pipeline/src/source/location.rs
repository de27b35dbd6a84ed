//! Where the files of a split lie: one place or a list of places, each a file, directory, glob or URL.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// One or several of: a file, a directory (its `*.parquet` files), a glob, or a URL of one of these.
///
/// URLs are `file://`, `s3://`, `gs://`, `hf://datasets/ORGANISATION/NAME[@REVISION]/PATH` (each / of a revision is
/// written `%2F`) and `http(s)://`; the last names single files, because such servers list nothing. In a configuration
/// it is a string or a list of strings. The files of one place are read in the order of their names, the places in the
/// order of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location(Vec<String>);

impl Location {
    /// The places, in order; at least one if it came from a configuration.
    pub fn places(&self) -> &[String] {
        &self.0
    }
}

impl From<&str> for Location {
    fn from(place: &str) -> Self {
        Self(vec![place.to_owned()])
    }
}

impl From<String> for Location {
    fn from(place: String) -> Self {
        Self(vec![place])
    }
}

impl From<Vec<String>> for Location {
    fn from(places: Vec<String>) -> Self {
        Self(places)
    }
}

/// The places between quotes that the message brings.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [first, _, .., last] => write!(f, "{first}' to '{last}"),
            places => f.write_str(&places.join("', '")),
        }
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [place] => serializer.serialize_str(place),
            places => places.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Location {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = Location;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path or URL, or a list of them")
    }

    fn visit_str<E: de::Error>(self, place: &str) -> Result<Location, E> {
        Ok(place.into())
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Location, A::Error> {
        let mut places = Vec::new();
        while let Some(place) = list.next_element::<String>()? {
            places.push(place);
        }
        if places.is_empty() { Err(de::Error::invalid_length(0, &self)) } else { Ok(Location(places)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_or_a_list_of_strings_in_both_directions() {
        for (json, places) in [("\"a\"", vec!["a"]), ("[\"a\",\"s3://b/c\"]", vec!["a", "s3://b/c"])] {
            let location: Location = serde_json::from_str(json).unwrap();
            assert_eq!(location.places(), places);
            assert_eq!(serde_json::to_string(&location).unwrap(), json);
        }
        for wrong in ["3", "[]", "[1]", "true", "{}"] {
            assert!(serde_json::from_str::<Location>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn messages_name_the_places() {
        let shown = |places: &[&str]| {
            let places: Vec<String> = places.iter().map(ToString::to_string).collect();
            format!("'{}'", Location::from(places))
        };
        assert_eq!(shown(&["a"]), "'a'");
        assert_eq!(shown(&["a", "b"]), "'a', 'b'");
        assert_eq!(shown(&["a", "b", "c"]), "'a' to 'c'");
    }
}
