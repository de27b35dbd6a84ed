//! Which columns of a file are read, and as what; a file that lacks them is refused at the start.

use std::path::Path;

use parquet::{
    basic::{ConvertedType, LogicalType, Type as PhysicalType},
    schema::types::{ColumnDescriptor, SchemaDescriptor, Type},
};

use crate::error::{Error, Result};

/// The columns that make an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// One of `token_ids`, `input_ids` (lists of integers) or `text`, the first that exists; no prompt.
    Language,
    /// `prompt_ids` and `input_ids`, both lists of integers.
    PromptAndTarget,
}

/// What a column is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// One text a row.
    Text,
    /// One list of ids a row, stored as signed or unsigned integers.
    Ids {
        /// The bits are an unsigned number.
        unsigned: bool,
    },
}

/// A column of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub name: String,
    /// Index among the file's leaf columns.
    pub leaf: usize,
    pub content: Content,
}

impl Column {
    /// True for lists of ids, false for texts.
    pub fn is_ids(&self) -> bool {
        self.content != Content::Text
    }
}

/// The columns of one file: the prompt's, if rows have one, and the tokens'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RowColumns {
    pub prompt: Option<Column>,
    pub tokens: Column,
}

impl RowColumns {
    /// Every column that is read.
    pub fn all(&self) -> impl Iterator<Item = &Column> {
        self.prompt.iter().chain([&self.tokens])
    }
}

impl Columns {
    pub(super) fn resolve(self, schema: &SchemaDescriptor, path: &Path) -> Result<RowColumns> {
        let find = |names: &[&'static str]| {
            let roots = schema.root_schema().get_fields();
            names.iter().find(|name| roots.iter().any(|root| root.name() == **name)).copied().ok_or_else(
                || Error::MissingColumn {
                    path: path.to_owned(),
                    wanted: quoted(names.iter().copied(), " or "),
                    found: quoted(roots.iter().map(|root| root.name()), ", "),
                },
            )
        };
        match self {
            Columns::Language => {
                let name = find(&["token_ids", "input_ids", "text"])?;
                Ok(RowColumns { prompt: None, tokens: column(schema, path, name)? })
            }
            Columns::PromptAndTarget => Ok(RowColumns {
                prompt: Some(column(schema, path, find(&["prompt_ids"])?)?),
                tokens: column(schema, path, find(&["input_ids"])?)?,
            }),
        }
    }
}

/// The first names, on one line whatever they hold.
fn quoted<'a>(names: impl ExactSizeIterator<Item = &'a str>, separator: &str) -> String {
    const SHOWN: usize = 20;
    let more = names.len().saturating_sub(SHOWN);
    let mut quoted: Vec<String> =
        names.take(SHOWN).map(|name| format!("'{}'", name.escape_debug())).collect();
    if more > 0 {
        quoted.push(format!("{more} more"));
    }
    if quoted.is_empty() { "none".to_owned() } else { quoted.join(separator) }
}

/// The column of a name that exists: `text` is a text, all others are lists of ids.
fn column(schema: &SchemaDescriptor, path: &Path, name: &str) -> Result<Column> {
    let leaves: Vec<usize> =
        (0..schema.num_columns()).filter(|&leaf| schema.get_column_root(leaf).name() == name).collect();
    let (content, wanted) = if name == "text" {
        (one(schema, &leaves).filter(|leaf| is_text(leaf)).map(|_| Content::Text), "text")
    } else {
        (one(schema, &leaves).and_then(id_list), "a list of integers")
    };
    match (content, leaves.first()) {
        (Some(content), Some(&leaf)) => Ok(Column { name: name.to_owned(), leaf, content }),
        (_, leaf) => Err(Error::ColumnType {
            path: path.to_owned(),
            column: name.to_owned(),
            found: leaf.map_or("nothing".into(), |&leaf| describe(schema, leaf)),
            wanted,
        }),
    }
}

fn one<'a>(schema: &'a SchemaDescriptor, leaves: &[usize]) -> Option<&'a ColumnDescriptor> {
    match leaves {
        [leaf] => Some(schema.columns()[*leaf].as_ref()),
        _ => None,
    }
}

/// Bytes without an annotation count as text: whether they are UTF-8 is seen row by row.
fn is_text(leaf: &ColumnDescriptor) -> bool {
    let plain = match leaf.logical_type_ref() {
        Some(logical) => matches!(logical, LogicalType::String | LogicalType::Json | LogicalType::Enum),
        None => matches!(leaf.converted_type(), ConvertedType::NONE | ConvertedType::UTF8),
    };
    leaf.physical_type() == PhysicalType::BYTE_ARRAY
        && leaf.path().parts().len() == 1
        && !repeated(leaf)
        && plain
}

fn repeated(leaf: &ColumnDescriptor) -> bool {
    leaf.max_rep_level() > 0
}

fn id_list(leaf: &ColumnDescriptor) -> Option<Content> {
    use ConvertedType as C;
    let integer = matches!(leaf.physical_type(), PhysicalType::INT32 | PhysicalType::INT64);
    if !integer || leaf.max_rep_level() != 1 {
        return None;
    }
    let unsigned = match leaf.logical_type_ref() {
        Some(LogicalType::Integer(integer)) => !integer.is_signed,
        Some(_) => return None,
        None => match leaf.converted_type() {
            C::NONE | C::INT_8 | C::INT_16 | C::INT_32 | C::INT_64 => false,
            C::UINT_8 | C::UINT_16 | C::UINT_32 | C::UINT_64 => true,
            _ => return None,
        },
    };
    Some(Content::Ids { unsigned })
}

fn describe(schema: &SchemaDescriptor, leaf: usize) -> String {
    let descriptor = &schema.columns()[leaf];
    let kind = match schema.get_column_root(leaf) {
        Type::GroupType { .. } if repeated(descriptor) => "lists of ",
        Type::GroupType { .. } => "groups of ",
        Type::PrimitiveType { .. } => "",
    };
    match descriptor.logical_type_ref() {
        Some(LogicalType::String) => format!("{kind}text"),
        _ => format!("{kind}{}", descriptor.physical_type()),
    }
}
