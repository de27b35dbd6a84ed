//! `ilm-worker plan`: what a run would do on hardware that is only described.

use anyhow::Context;
use data_pipeline::{Dataset, Split};
use ilm_model::{ModelShape, ParamLayout};
use serde_json::json;

use crate::assembly::Assembly;
use crate::cli::PlanArgs;
use crate::config::{self, Experiment, Resolved};
use crate::scale::{Prediction, Row, RowMoments, Subject, assumed_rows, table};
use crate::{exit, say};

/// Rows that stand for all.
const LOOKED_AT: usize = 4096;

/// What is known of the data, and from where.
struct Data {
    rows: RowMoments,
    looked_at: Vec<Row>,
    vocabulary: i64,
    padding: i64,
    source: String,
}

impl Data {
    fn new(looked_at: Vec<Row>, vocabulary: i64, padding: i64, source: String) -> anyhow::Result<Self> {
        let rows = RowMoments::of(looked_at.iter().copied());
        let rows = rows.context("every row that was looked at is skipped as bad")?;
        Ok(Self { rows, looked_at, vocabulary, padding, source })
    }
}

/// Prints the plan.
///
/// # Errors
/// If the configuration or the description of the hardware is wrong, or data that it names cannot be read.
pub fn plan(args: &PlanArgs) -> anyhow::Result<i32> {
    let dir = args.experiment.config_dir.config_dir.as_deref();
    let resolved = config::load(&args.experiment.experiment, &args.experiment.overrides, dir)?;
    config::validate::settings(&resolved.experiment)?;
    let hardware = config::load_hardware(&args.hardware, dir)?;
    let data = look_at_data(args, &resolved.experiment)?;
    let experiment = &resolved.experiment;
    let shape = ModelShape {
        config: experiment.model.clone(),
        num_embeddings: data.vocabulary,
        padding_idx: data.padding,
        max_length: experiment.max_length(),
        precision: experiment.trainer.precision,
        recompute: experiment.trainer.recompute,
    };
    let layout = ParamLayout::new(&shape)?;
    let subject =
        Subject { experiment, shape: &shape, layout: &layout, rows: data.rows, looked_at: &data.looked_at };
    let predict = |&gpus: &u64| Prediction::new(&subject, &hardware, gpus);
    let predictions: Vec<Prediction> = args.gpus.iter().map(predict).collect();
    if args.json {
        let plan = json!({
            "experiment": args.experiment.experiment,
            "hardware": hardware,
            "parameters": layout.parameters(),
            "rows": data.rows,
            "rows_from": data.source,
            "predictions": predictions,
        });
        say!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        say!("{}", heading(args, &resolved, &hardware.description, &data, layout.parameters()));
        say!("{}", table(&predictions));
    }
    Ok(exit::OK)
}

fn heading(args: &PlanArgs, resolved: &Resolved, hardware: &str, data: &Data, parameters: usize) -> String {
    let experiment = &resolved.experiment;
    format!(
        "{}, {:.0} M parameters, {} rows a step; rows of {:.0} tokens, {:.0} visible ({}).\nHardware: {hardware}.\n",
        args.experiment.experiment,
        parameters as f64 / 1e6,
        experiment.global_batch_size,
        data.rows.source,
        data.rows.visible,
        data.source
    )
}

/// Lengths of rows and the vocabulary: from the training data and the tokenizer where the experiment names them.
fn look_at_data(args: &PlanArgs, experiment: &Experiment) -> anyhow::Result<Data> {
    let is_star = experiment.data.task == data_pipeline::Task::Star;
    if !is_star && experiment.data.tokenizer.is_none() {
        return assumed(args, experiment, i64::from(args.vocab_size), 0);
    }
    let assembly = Assembly::open(experiment)?;
    let (vocabulary, padding) =
        (assembly.tokenizer.vocab_size() as i64, i64::from(assembly.tokenizer.special().pad));
    if !Assembly::has_split(experiment, Split::Train) {
        return assumed(args, experiment, vocabulary, padding);
    }
    let dataset = assembly.open_split(experiment, Split::Train)?;
    let looked_at = look_at_rows(experiment, dataset.as_ref())?;
    let source = format!("of {} rows of the data", looked_at.len());
    Data::new(looked_at, vocabulary, padding, source)
}

fn assumed(args: &PlanArgs, experiment: &Experiment, vocabulary: i64, padding: i64) -> anyhow::Result<Data> {
    let rows = assumed_rows(f64::from(args.median_tokens), experiment.block_size, LOOKED_AT);
    Data::new(rows.collect(), vocabulary, padding, format!("assumed, median {}", args.median_tokens))
}

/// Evenly spread rows, cut to the blocks as training cuts them.
fn look_at_rows(experiment: &Experiment, dataset: &dyn Dataset) -> anyhow::Result<Vec<Row>> {
    let room = experiment.row_length().saturating_sub(2);
    let count = dataset.len().min(LOOKED_AT as u64);
    let mut rows = Vec::new();
    for index in 0..count {
        let row = (u128::from(dataset.len()) * u128::from(index) / u128::from(count)) as u64;
        if let Some(example) = dataset.example(row)? {
            let prompt = example.prompt.len().min(room);
            rows.push(Row { prompt, tokens: example.tokens.len().min(room - prompt) });
        }
    }
    Ok(rows)
}
