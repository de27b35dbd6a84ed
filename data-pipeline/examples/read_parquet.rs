//! Reads every row of a set once, tells the bad ones and how fast it went: `read_parquet LOCATION [TOKENIZER.json]`.

use std::{path::Path, sync::Arc, time::Instant};

use data_pipeline::{
    Columns, Dataset, Detokenizer, OnBad, ParquetDataset, ParquetOptions, SpecialTokenNames, Tokenizer,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let location = arguments.next().ok_or("give a Parquet file, a directory or a glob")?;
    let tokenizer = match arguments.next() {
        Some(path) => Tokenizer::open(Path::new(&path), &SpecialTokenNames::default())?,
        None => Tokenizer::numbers(1 << 20),
    };
    let options = ParquetOptions {
        columns: Columns::Language,
        detokenizer: Detokenizer::None,
        max_tokens: None,
        on_bad_row: OnBad::Skip,
        on_bad_file: OnBad::Skip,
    };
    let dataset = ParquetDataset::open(&location, &Arc::new(tokenizer), options)?;
    let (start, mut tokens) = (Instant::now(), 0);
    for row in 0..dataset.len() {
        tokens += dataset.example(row)?.map_or(0, |example| example.tokens.len());
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} rows ({} skipped), {tokens} tokens in {seconds:.3} s: {:.1} million tokens a second",
        dataset.len(),
        dataset.skipped(),
        tokens as f64 / seconds / 1e6
    );
    Ok(())
}
