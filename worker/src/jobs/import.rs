//! `ilm-worker import`: a run directory whose first checkpoint holds weights in the reference's form.

use anyhow::bail;
use checkpoints::Store;
use checkpoints::weights::{Architecture, ReferenceConfig, WeightsFile};
use ilm_model::{Model, ModelClass};
use tch::Device;

use super::prepare::refuse_ranks;
use crate::assembly::Assembly;
use crate::cli::ImportArgs;
use crate::comm::Solo;
use crate::config::{self, Resolved};
use crate::run_dir::{RunDir, replace_file};
use crate::say;
use crate::train::{RunFacts, TrainState, checkpoint_layout, division, save};
use crate::{exit, reference};

/// Runs the job; the result is the exit code.
///
/// # Errors
/// Several ranks; files that are no weights of the reference; settings that do not fit them; a run directory that is in
/// use.
pub fn import(args: &ImportArgs) -> anyhow::Result<i32> {
    refuse_ranks("import")?;
    let named = &args.experiment;
    let file = WeightsFile::open(&args.from)?;
    let architecture = architecture(&file, &named.overrides)?;
    let resolved = resolve(args, &architecture)?;
    let config = &resolved.experiment;
    let assembly = Assembly::open(config)?;
    check_tokenizer(&assembly, &architecture)?;
    config::validate::settings(config)?;

    let mut model = assembly.build_model(config, Device::Cpu)?;
    if let Some(dim) = architecture.rotary_emb_dim {
        file.check_frequencies(dim)?;
    }
    let wanted = checkpoint_layout(&model).tensors;
    file.read_into(&wanted, model.arena_mut().params_mut())?;
    for key in file.dropped() {
        say!("left out '{key}', which the model does not need");
    }
    let run_dir = args.run_dir.clone().unwrap_or_else(|| format!("runs/{}", named.experiment).into());
    write(RunDir::new(run_dir), &resolved, model, &assembly)?;
    Ok(exit::OK)
}

/// What the file is, by its tensors, its config.json and what the user says beyond them.
fn architecture(file: &WeightsFile, overrides: &[String]) -> anyhow::Result<Architecture> {
    let mut given: ReferenceConfig = file.config()?.unwrap_or_default();
    let value = |key: &str| overrides.iter().find_map(|text| text.strip_prefix(key)?.strip_prefix('='));
    let key = value("model.class").map(|key| key.trim_matches('"'));
    if let Some(class) = ModelClass::ALL.into_iter().find(|class| Some(class.key()) == key) {
        given.target = Some(reference::reference_class(class).target());
    }
    if let Some(nhead) = value("model.nhead").and_then(|text| text.parse().ok()) {
        given.nhead.get_or_insert(nhead);
    }
    Ok(file.architecture(&given)?)
}

/// The experiment with the model of the weights; what the user sets wins.
fn resolve(args: &ImportArgs, architecture: &Architecture) -> anyhow::Result<Resolved> {
    let named = &args.experiment;
    let key = |text: &str| text.split_once('=').map(|(key, _)| key.trim().to_owned());
    let set: Vec<String> = named.overrides.iter().filter_map(|text| key(text)).collect();
    let of_weights = reference::settings(architecture);
    let kept = of_weights.into_iter().filter(|text| key(text).is_none_or(|key| !set.contains(&key)));
    let overrides: Vec<String> = kept.chain(named.overrides.iter().cloned()).collect();
    Ok(config::load(&named.experiment, &overrides, named.config_dir.config_dir.as_deref())?)
}

fn check_tokenizer(assembly: &Assembly, architecture: &Architecture) -> anyhow::Result<()> {
    let vocabulary = assembly.tokenizer.vocab_size() as u64;
    let pad = u64::from(assembly.tokenizer.special().pad);
    let Architecture { num_embeddings, padding_idx, .. } = architecture;
    if vocabulary != *num_embeddings {
        bail!(
            "the weights are for {num_embeddings} tokens, but the tokenizer has {vocabulary}: set data.tokenizer and \
             data.special_tokens to those that the weights were trained with"
        );
    }
    if pad != *padding_idx {
        bail!("the weights have the padding token {padding_idx}, but the tokenizer's is {pad}");
    }
    Ok(())
}

fn write(run_dir: RunDir, resolved: &Resolved, model: Model, assembly: &Assembly) -> anyhow::Result<()> {
    let config = &resolved.experiment;
    run_dir.create()?;
    let mut store = Store::open(run_dir.path())?;
    // Also refuses a run directory in which a run is going on.
    store.remove_stale()?;
    if !store.list()?.is_empty() {
        bail!("{} holds checkpoints already; choose another --run-dir", run_dir.path().display());
    }
    let facts = RunFacts {
        seed: config.seed,
        num_embeddings: assembly.tokenizer.vocab_size() as u64,
        tokenizer: assembly.tokenizer.fingerprint(),
        config_hash: resolved.hash(),
        dataset_fingerprint: RunFacts::NO_DATA_YET.to_owned(),
        order: Default::default(),
        micro_batch_tokens: None,
    };
    let division = division(&config.trainer, model.arena(), 0, 1);
    let state = TrainState::new(model, config, division)?;
    replace_file(&run_dir.config(), &resolved.render())?;
    save(&mut store, &mut Solo, config, &facts, &state)?;
    say!(
        "imported {} parameters into {}",
        state.model.arena().layout().parameters(),
        run_dir.path().display()
    );
    Ok(())
}
