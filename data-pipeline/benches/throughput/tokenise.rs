//! From texts to token ids.

use std::{fs::File, hint::black_box, path::Path};

use arrow::array::AsArray;
use data_pipeline::{SpecialTokenNames, Tokenizer};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::{
    report::{Outcome, Runs},
    tokenizer_file,
};

/// Bytes of text of a run.
const BYTES: usize = 2_000_000;

pub fn run(data: &Path, runs: &Runs) -> Outcome<()> {
    let whole = data.join("owt-mini");
    let documents = if whole.is_dir() { whole } else { data.join("owt-gpt2-1024-split-mini") };
    let cases = [("lm1b-bert", "bert-base-uncased", data.join("lm1b-mini")), ("owt-gpt2", "gpt2", documents)];
    for (case, tokenizer, folder) in cases {
        let tokenizer = Tokenizer::open(&tokenizer_file(data, tokenizer), &SpecialTokenNames::default())?;
        let texts = texts(&folder)?;
        runs.measure("tokenise", case, |_, thread, threads| {
            let mut tokens = 0;
            for text in texts.iter().skip(thread).step_by(threads) {
                tokens += black_box(tokenizer.encode(text)?).len() as u64;
            }
            Ok(tokens)
        })?;
    }
    Ok(())
}

/// The first texts of a folder's training files.
fn texts(folder: &Path) -> Outcome<Vec<String>> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Outcome<_>>()?;
    files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("train-")));
    files.sort();
    let (mut texts, mut bytes) = (Vec::new(), 0);
    for file in files {
        for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(file)?)?.build()? {
            let batch = batch?;
            let column = batch.column_by_name("text").ok_or("the file has no column 'text'")?;
            for text in column.as_string::<i32>().iter().flatten() {
                if bytes >= BYTES {
                    return Ok(texts);
                }
                bytes += text.len();
                texts.push(text.to_owned());
            }
        }
    }
    Ok(texts)
}
