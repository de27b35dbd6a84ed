//! What is measured on: a name such as `lm1b_full_64` is a kind of data, a size of model and the examples of a step.

use std::path::Path;
use std::sync::Arc;

use data_pipeline::{
    BatchPool, Dataset, LoaderOptions, MicroBatchLimit, PlainMemory, Repacker, Split, StepBatch, Tokenizer,
    TrainLoader, TrainStream,
};

use super::BenchError;
use super::texts::{Lengths, Texts};
use crate::assembly::Assembly;
use crate::config::{self, Experiment, validate};

/// Sizes of model by name, and the file of group `model` that each is.
const MODELS: [(&str, &str); 3] =
    [("full", "rotary_small"), ("small", "rotary_mini"), ("tiny", "rotary_tiny")];

/// Data by name, and the experiment that trains on it.
const DATA: [(&str, &str); 5] = [
    ("star_easy", "star_easy_ilm"),
    ("star_medium", "star_medium_ilm"),
    ("star_hard", "star_hard_ilm"),
    ("lm1b", "lm1b_ilm"),
    ("owt", "owt_ilm"),
];

/// The tokens of bert-base-uncased, and those of gpt2 with the special tokens that it lacks.
const BERT: usize = 30_522;
const GPT2: usize = 50_263;
/// Special tokens of a tokenizer of numbers.
const SPECIAL: usize = 7;

/// An experiment with its data opened.
pub struct Case {
    /// As it stands in the output.
    pub name: String,
    /// The settings.
    pub experiment: Experiment,
    /// Tokenizer, collator and model.
    pub assembly: Assembly,
    /// The rows.
    pub dataset: Arc<dyn Dataset>,
}

impl Case {
    /// The case of that name. Settings of the user's win over those that the name stands for.
    ///
    /// # Errors
    /// [`BenchError::Case`] for a name that is not DATA_MODEL_EXAMPLES; settings that do not fit.
    pub fn named(name: &str, precision: &str, overrides: &[String]) -> anyhow::Result<Self> {
        let Name { data, model, examples } = Name::parse(name)?;
        let own = [
            format!("model={model}"),
            format!("per_device_batch_size={examples}"),
            format!("global_batch_size={examples}"),
            format!("trainer.precision={precision}"),
            "trainer.ema_decay=".to_owned(),
        ];
        let experiment = load(experiment_of(data), &own, overrides, None)?;
        let (vocabulary, lengths) = match data {
            "lm1b" => (BERT, Lengths { median: 26.0, sigma: 0.55, least: 3.0, most: 126.0 }),
            "owt" => (GPT2, Lengths { median: 520.0, sigma: 0.5, least: 64.0, most: 1022.0 }),
            _ => return Self::open(name, experiment),
        };
        let tokenizer = Tokenizer::numbers(vocabulary - SPECIAL);
        let dataset = Arc::new(Texts::new(lengths, &tokenizer));
        Ok(Self {
            name: name.to_owned(),
            experiment,
            assembly: Assembly { tokenizer: Arc::new(tokenizer) },
            dataset,
        })
    }

    /// An experiment as it is, on its own training rows.
    ///
    /// # Errors
    /// Settings that do not fit, data that cannot be opened.
    pub fn of_experiment(
        name: &str,
        precision: &str,
        overrides: &[String],
        config_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let own = [format!("trainer.precision={precision}")];
        let experiment = load(name, &own, overrides, config_dir)?;
        validate::training(&experiment, 1)?;
        Self::open(name, experiment)
    }

    fn open(name: &str, experiment: Experiment) -> anyhow::Result<Self> {
        let assembly = Assembly::open(&experiment)?;
        let dataset = assembly.open_split(&experiment, Split::Train)?;
        Ok(Self { name: name.to_owned(), experiment, assembly, dataset })
    }

    /// Packs steps as training does.
    pub fn repacker(&self) -> Repacker {
        Repacker::new(self.limit(), BatchPool::new(Arc::new(PlainMemory), 64))
    }

    fn limit(&self) -> MicroBatchLimit {
        validate::micro_batch_limit(&self.experiment, self.experiment.trainer.max_tokens_per_micro_batch)
    }

    /// The first `steps` steps of training as one rank reads them.
    ///
    /// # Errors
    /// Rows that cannot be read; more ranks than lanes.
    pub fn batches(&self, steps: usize, rank: usize, world_size: usize) -> anyhow::Result<Vec<StepBatch>> {
        let Experiment { data, global_batch_size, seed, .. } = &self.experiment;
        let stream = TrainStream {
            dataset: Arc::clone(&self.dataset),
            collator: self.assembly.collator(&self.experiment)?,
            order: data.order(self.dataset.as_ref(), *seed)?,
            schedule: data.schedule(*global_batch_size, self.dataset.len())?,
            plan: validate::batch_plan(&self.experiment, self.limit(), rank, world_size)?,
        };
        let options = LoaderOptions {
            threads: 1,
            prefetch_steps: 1,
            read_ahead_steps: 0,
            pool: BatchPool::new(Arc::new(PlainMemory), 0),
        };
        let mut loader = TrainLoader::spawn(stream, 0, options)?;
        let mut batches = Vec::with_capacity(steps);
        while let Some(batch) = (batches.len() < steps).then(|| loader.next()).transpose()?.flatten() {
            batches.push(batch);
        }
        Ok(batches)
    }
}

/// Settings with `own` changes, as far as the user does not make them otherwise.
fn load(
    experiment: &str,
    own: &[String],
    overrides: &[String],
    config_dir: Option<&Path>,
) -> anyhow::Result<Experiment> {
    let key = |setting: &String| setting.split('=').next().map(|key| key.trim().to_owned());
    let theirs: Vec<Option<String>> = overrides.iter().map(key).collect();
    let own = own.iter().filter(|setting| !theirs.contains(&key(setting)));
    let all: Vec<String> = own.chain(overrides).cloned().collect();
    let experiment = config::load(experiment, &all, config_dir)?.experiment;
    validate::settings(&experiment)?;
    Ok(experiment)
}

/// The smallest case of the same data: for a look at whether everything works.
pub fn quick(name: &str) -> anyhow::Result<String> {
    Ok(format!("{}_tiny_2", Name::parse(name)?.data))
}

/// The parts of a case's name.
struct Name<'a> {
    data: &'a str,
    /// File of group `model`.
    model: &'static str,
    examples: usize,
}

impl<'a> Name<'a> {
    fn parse(name: &'a str) -> Result<Self, BenchError> {
        let parts = || {
            let (rest, examples) = name.rsplit_once('_')?;
            let (data, model) = rest.rsplit_once('_')?;
            let model = MODELS.iter().find(|(size, _)| *size == model)?.1;
            DATA.iter().find(|(known, _)| *known == data)?;
            let examples = examples.parse().ok().filter(|&examples| examples > 0)?;
            Some(Self { data, model, examples })
        };
        parts().ok_or_else(|| BenchError::Case { name: name.to_owned() })
    }
}

fn experiment_of(data: &str) -> &'static str {
    DATA.iter().find(|(known, _)| *known == data).map_or("", |(_, experiment)| experiment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_data_model_and_examples() {
        let case = Case::named("star_easy_tiny_4", "fp32", &[]).unwrap();
        assert_eq!((case.experiment.model.d_model, case.experiment.global_batch_size), (64, 4));
        let case = Case::named("lm1b_small_8", "bf16", &["model.num_layers=2".into()]).unwrap();
        assert_eq!((case.experiment.model.d_model, case.experiment.model.num_layers), (256, 2));
        assert_eq!(case.assembly.tokenizer.vocab_size(), BERT);
        for name in ["", "lm1b", "lm1b_small", "lm1b_small_0", "lm1b_huge_8", "bert_small_8", "lm1b_small_x"]
        {
            assert!(Case::named(name, "fp32", &[]).is_err_and(|error| error.is::<BenchError>()), "{name}");
        }
        assert_eq!(quick("star_easy_full_64").unwrap(), "star_easy_tiny_2");
    }

    #[test]
    fn ranks_share_the_examples_of_a_step() {
        let case = Case::named("lm1b_tiny_8", "fp32", &[]).unwrap();
        let rows = |rank, ranks| -> Vec<u64> {
            let batches = case.batches(2, rank, ranks).unwrap();
            assert_eq!(batches.len(), 2);
            let micro_batches = batches.iter().flat_map(|batch| &batch.micro_batches);
            micro_batches.flat_map(|batch| batch.samples().iter().map(|key| key.position)).collect()
        };
        let mut shared = [rows(0, 2), rows(1, 2)].concat();
        shared.sort_unstable();
        assert_eq!(shared, (0..16).collect::<Vec<u64>>());
    }
}
