//! Path finding in star graphs: generated rows, and the same rows as Parquet files.

mod dataset;
mod generate;
mod materialise;

pub use dataset::StarDataset;
pub use generate::StarGraph;
pub use materialise::materialise;
