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
    prepare::{Manifest, Recipe},
};

const ROWS_PER_FILE: u64 = 10_000;
const ROWS_PER_GROUP: u64 = 1_000;

/// Writes all splits as `SPLIT-NNNNN-of-NNNNN.parquet` with the columns `prompt_ids` and `input_ids` (list of int32)
/// into `dir`, which is created if needed. Returns the files. A job that was killed goes on with those that are missing:
/// a file appears under its name only when it is complete.
///
/// # Errors
/// Bad settings; a folder with files of other settings, or that another job writes to; what the system refuses.
pub fn materialise(config: &StarConfig, seed: u64, dir: &Path) -> Result<Vec<PathBuf>> {
    let _lock = lock(dir)?;
    let dataset = |split| StarDataset::new(config, split, seed).map(|dataset| (split, dataset));
    let datasets = Split::ALL.into_iter().map(dataset).collect::<Result<Vec<_>>>()?;
    Manifest::enter(dir, &Split::ALL.map(Split::name), &recipe(config, seed))?;
    let mut files = Vec::new();
    for (split, dataset) in &datasets {
        let shards = dataset.len().div_ceil(ROWS_PER_FILE);
        for shard in 0..shards {
            let path = dir.join(format!("{}-{shard:05}-of-{shards:05}.parquet", split.name()));
            if !path.is_file() {
                let partial = path.with_extension("partial");
                let rows = shard * ROWS_PER_FILE..((shard + 1) * ROWS_PER_FILE).min(dataset.len());
                write_shard(dataset, rows, &partial)?;
                std::fs::rename(&partial, &path).map_err(io("write", &path))?;
            }
            files.push(path);
        }
    }
    Ok(files)
}

/// What the files of all splits are made of.
fn recipe(config: &StarConfig, seed: u64) -> Recipe {
    let StarConfig {
        kind,
        degree,
        path_length,
        min_path_length,
        max_path_length,
        min_plan_length,
        num_nodes,
        train_size,
        validation_size,
        test_size,
    } = config;
    let settings = [
        ("data.star.kind", format!("{kind:?}").to_lowercase()),
        ("data.star.degree", degree.to_string()),
        ("data.star.path_length", path_length.to_string()),
        ("data.star.min_path_length", min_path_length.to_string()),
        ("data.star.max_path_length", max_path_length.to_string()),
        ("data.star.min_plan_length", min_plan_length.to_string()),
        ("data.star.num_nodes", num_nodes.to_string()),
        ("data.star.train_size", train_size.to_string()),
        ("data.star.validation_size", validation_size.to_string()),
        ("data.star.test_size", test_size.to_string()),
        ("seed", seed.to_string()),
        ("rows of a file", ROWS_PER_FILE.to_string()),
    ];
    Recipe { settings: settings.map(|(key, value)| (key.to_owned(), value)).into(), inputs: Vec::new() }
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
