//! Generated star graphs as Parquet shards that read back as the same rows.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{ListBuilder, PrimitiveBuilder, RecordBatch},
    datatypes::{DataType, Field, Int32Type, Schema},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
};

use super::dataset::StarDataset;
use crate::{
    config::StarConfig,
    dataset::{Dataset, Example},
    error::{Error, Result},
    open::Split,
    output::lock,
};

const ROWS_PER_FILE: u64 = 10_000;
const ROWS_PER_GROUP: u64 = 1_000;

/// Writes all splits as `SPLIT-NNNNN-of-NNNNN.parquet` with the columns `prompt_ids` and `input_ids` (list of int32)
/// into `dir`, which is created if needed. Returns the files.
///
/// # Errors
/// Bad settings; files of a split that are there already; another job that writes there; what the system refuses. A file appears under its name only
/// when it is complete.
pub fn materialise(config: &StarConfig, seed: u64, dir: &Path) -> Result<Vec<PathBuf>> {
    let _lock = lock(dir)?;
    let mut files = Vec::new();
    for split in Split::ALL {
        refuse_existing(dir, split)?;
        let dataset = StarDataset::new(config, split, seed)?;
        let shards = dataset.len().div_ceil(ROWS_PER_FILE);
        for shard in 0..shards {
            let path = dir.join(format!("{}-{shard:05}-of-{shards:05}.parquet", split.name()));
            let partial = path.with_extension("partial");
            let rows = shard * ROWS_PER_FILE..((shard + 1) * ROWS_PER_FILE).min(dataset.len());
            write_shard(&dataset, rows, &partial)?;
            std::fs::rename(&partial, &path).map_err(io("write", &path))?;
            files.push(path);
        }
    }
    Ok(files)
}

/// Shards of an older set would be read along with the new ones.
fn refuse_existing(dir: &Path, split: Split) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(io("read", dir))? {
        let path = entry.map_err(io("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&format!("{}-", split.name())) && name.ends_with(".parquet") {
            return Err(Error::Setting(format!(
                "'{}' exists already; materialise into an empty directory",
                path.display()
            )));
        }
    }
    Ok(())
}

fn write_shard(dataset: &StarDataset, rows: std::ops::Range<u64>, path: &Path) -> Result<()> {
    let write = |error: ParquetError| Error::Write { path: path.to_owned(), reason: error.to_string() };
    let element = Arc::new(Field::new_list_field(DataType::Int32, false));
    let field = |name| Field::new(name, DataType::List(element.clone()), false);
    let schema = Arc::new(Schema::new(vec![field("prompt_ids"), field("input_ids")]));
    let properties =
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let file = File::create(path).map_err(io("create", path))?;
    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(write)?;
    let mut first = rows.start;
    while first < rows.end {
        let end = (first + ROWS_PER_GROUP).min(rows.end);
        let examples =
            (first..end).map(|row| Ok(dataset.graph(row)?.example())).collect::<Result<Vec<_>>>()?;
        let column = |ids: fn(&Example) -> &[u32]| {
            let mut lists =
                ListBuilder::new(PrimitiveBuilder::<Int32Type>::new()).with_field(element.clone());
            for example in &examples {
                // Node ids are far below 2^31 (the settings are checked).
                lists.append_value(ids(example).iter().map(|&id| Some(id as i32)));
            }
            Arc::new(lists.finish())
        };
        let batch =
            RecordBatch::try_new(schema.clone(), vec![column(|row| &row.prompt), column(|row| &row.tokens)])
                .map_err(|error| write(error.into()))?;
        writer.write(&batch).and_then(|()| writer.flush()).map_err(write)?;
        first = end;
    }
    let file = writer.into_inner().map_err(write)?;
    file.sync_all().map_err(io("write", path))
}

fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path: path.clone(), source }
}
