//! The shipped configuration files, and what a user can do to them from a folder and the command line.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

use std::path::Path;

use data_pipeline::config::{Detokenizer, StarKind, Task};
use ilm_model::config::{Activation, ModelClass, SamplingMethod};
use worker::config::{ConfigError, Experiment, Resolved, Schedule, load, validate};

const EXPERIMENTS: [&str; 6] =
    ["star_easy_ilm", "star_medium_ilm", "star_hard_ilm", "text_ilm", "lm1b_ilm", "owt_ilm"];

fn compose(experiment: &str, overrides: &[&str]) -> Result<Resolved, ConfigError> {
    compose_in(None, experiment, overrides)
}

fn compose_in(dir: Option<&Path>, experiment: &str, overrides: &[&str]) -> Result<Resolved, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    load(experiment, &overrides, dir)
}

fn shipped(experiment: &str) -> Experiment {
    compose(experiment, &[]).unwrap().experiment
}

fn refused(experiment: &str, overrides: &[&str]) -> String {
    let message = compose(experiment, overrides).unwrap_err().to_string();
    assert!(!message.contains('\n'), "more than one line: {message}");
    message
}

fn origin<'a>(resolved: &'a Resolved, key: &str) -> (&'a str, &'a str) {
    let value = resolved.values.iter().find(|value| value.key == key).unwrap();
    (&value.value, &value.origin)
}

/// A folder of configuration files, `GROUP/NAME.toml` with its text.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn every_shipped_file_is_known_to_these_tests() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let names = |group: &str| {
        let mut names: Vec<String> = std::fs::read_dir(configs.join(group))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let mut experiments = EXPERIMENTS.to_vec();
    experiments.push("star_easy_mini_ilm");
    experiments.sort();
    assert_eq!(names("experiment"), experiments);
    assert_eq!(
        names("model"),
        ["gpt2_mini", "gpt2_small", "gpt2_tiny", "rotary_mini", "rotary_small", "rotary_tiny"]
    );
    assert_eq!(names("data"), ["lm1b", "owt", "star_easy", "star_hard", "star_medium", "text"]);
}

#[test]
fn all_experiments_share_the_published_settings() {
    let mut descriptions = Vec::new();
    for name in EXPERIMENTS {
        let e = shipped(name);
        assert_eq!(e.seed, 1, "{name}");
        let m = &e.model;
        assert_eq!((m.d_model, m.num_layers, m.nhead, m.rotated()), (768, 12, 12, 64), "{name}");
        assert_eq!(m.dim_feedforward.unwrap_or(4 * m.d_model), 3072, "{name}");
        assert_eq!((m.dropout, m.activation, m.layer_norm_eps), (0.1, Activation::Relu, 1e-5), "{name}");
        assert_eq!(
            (m.class, m.has_final_norm(), m.identical_layers),
            (ModelClass::RotaryStopping, false, false),
            "{name}"
        );
        assert_eq!(
            (e.optimizer.weight_decay, e.optimizer.betas, e.optimizer.eps),
            (0.01, [0.9, 0.999], 1e-8)
        );
        assert_eq!((e.trainer.gradient_clip_val, e.trainer.ema_decay), (1.0, Some(0.9999)), "{name}");
        assert_eq!(e.trainer.log_every_n_steps, 50, "{name}");
        assert_eq!(
            (e.predictor.stopping_threshold, e.predictor.stopping_temperature),
            (Some(0.9), 1.0),
            "{name}"
        );
        assert_eq!(e.predictor.second_sampling_method, Some(SamplingMethod::SampleTopK), "{name}");
        assert!(!e.predictor.protect_prompt && !e.predictor.force_predict_first_step, "{name}");
        assert!(e.data.shuffle, "{name}");
        descriptions.push(e.description);
    }
    assert!(descriptions.iter().all(|text| !text.is_empty() && !text.contains('\n')));
    descriptions.sort();
    descriptions.dedup();
    assert_eq!(descriptions.len(), EXPERIMENTS.len(), "each experiment describes itself");
}

#[test]
fn star_experiments_equal_the_published_table() {
    // name, input block, block, positions, most insertions
    let table = [
        ("star_easy_ilm", 28, 14, 42, 14),
        ("star_medium_ilm", 36, 16, 52, 16),
        ("star_hard_ilm", 116, 28, 144, 28),
    ];
    for (name, input_block, block, positions, max_steps) in table {
        let e = shipped(name);
        assert_eq!((e.input_block_size, e.block_size), (Some(input_block), block), "{name}");
        assert_eq!((e.max_length(), e.predictor.max_length), (positions, None), "{name}");
        assert_eq!((e.per_device_batch_size, e.global_batch_size), (Some(64), 64), "{name}");
        assert_eq!((e.trainer.max_steps, e.trainer.val_check_interval), (80_000, Some(2 * (50_000 / 64))));
        assert_eq!(e.optimizer.lr, 1e-4, "{name}");
        assert_eq!((e.lr_scheduler.name, e.lr_scheduler.num_warmup_steps), (Schedule::Constant, Some(500)));
        let p = &e.predictor;
        assert_eq!(
            (p.max_steps, p.sampling_method, p.top),
            (max_steps, SamplingMethod::SampleTopK, 1),
            "{name}"
        );
        assert_eq!(p.second_top, 2, "{name}");
        assert_eq!((e.loss.length_loss_weight, e.loss.stopping_class_weight), (1.0, None), "{name}");
        assert_eq!((e.checkpoint.every_n_steps, e.checkpoint.keep_every), (500, Some(50_000)), "{name}");
    }
}

#[test]
fn the_laptop_experiment_is_star_easy_on_a_small_model() {
    let (mini, mut easy) = (shipped("star_easy_mini_ilm"), shipped("star_easy_ilm"));
    assert!(mini.data.star.train_size >= 7_000 * 32, "no graph is seen twice");
    easy.data.star.train_size = mini.data.star.train_size;
    assert_eq!((&mini.data, &mini.loss, &mini.predictor), (&easy.data, &easy.loss, &easy.predictor));
    assert_eq!((mini.global_batch_size, mini.trainer.max_steps), (32, 7_000));
    assert!(mini.model.d_model < easy.model.d_model);
    assert_eq!(validate::training(&mini, 2).unwrap(), [""; 0]);
}

#[test]
fn star_graphs_equal_the_published_table() {
    let easy = shipped("star_easy_ilm").data;
    assert_eq!((easy.task, easy.star.kind), (Task::Star, StarKind::Symmetric));
    assert_eq!((easy.star.degree, easy.star.path_length, easy.star.num_nodes), (3, 5, 20));
    // name, degree, arms from..to, least plan, node ids
    let table = [("star_medium_ilm", 3, 3, 6, 2, 20), ("star_hard_ilm", 5, 6, 12, 5, 56)];
    for (name, degree, shortest, longest, plan, nodes) in table {
        let data = shipped(name).data;
        let star = &data.star;
        assert_eq!((data.task, star.kind, star.degree), (Task::Star, StarKind::Asymmetric, degree), "{name}");
        assert_eq!((star.min_path_length, star.max_path_length), (shortest, longest), "{name}");
        assert_eq!((star.min_plan_length, star.num_nodes), (plan, nodes), "{name}");
    }
    for name in ["star_easy_ilm", "star_medium_ilm", "star_hard_ilm"] {
        let star = shipped(name).data.star;
        assert_eq!((star.train_size, star.validation_size, star.test_size), (50_000, 100, 5_000), "{name}");
    }
}

#[test]
fn text_experiments_equal_the_published_table() {
    // name, per device, block, lr, warm-up, token's p, loss weights, validation, checkpoints
    let table = [
        ("text_ilm", 64, 128, 5e-4, 1000, 0.5, (1.0, None), 6250, (500, 50_000)),
        ("lm1b_ilm", 64, 128, 5e-4, 1000, 0.5, (1.0, None), 6250, (500, 50_000)),
        ("owt_ilm", 32, 1024, 1e-4, 2000, 0.9, (0.001, Some(0.9)), 25_000, (2500, 100_000)),
    ];
    for (name, per_device, block, lr, warm_up, p, weights, validation, (save, keep)) in table {
        let e = shipped(name);
        assert_eq!((e.per_device_batch_size, e.global_batch_size), (Some(per_device), 512), "{name}");
        assert_eq!((e.input_block_size, e.block_size, e.max_length()), (None, block, block as i64), "{name}");
        assert_eq!(
            (e.trainer.max_steps, e.trainer.val_check_interval),
            (1_000_000, Some(validation)),
            "{name}"
        );
        assert_eq!(e.optimizer.lr, lr, "{name}");
        assert_eq!(e.lr_scheduler.name, Schedule::ConstantWithWarmup, "{name}");
        assert_eq!(e.lr_scheduler.num_warmup_steps, Some(warm_up), "{name}");
        assert_eq!((e.predictor.sampling_method, e.predictor.p), (SamplingMethod::SampleTopP, p), "{name}");
        assert_eq!((e.predictor.second_top, e.predictor.max_steps), (1, block), "{name}");
        assert_eq!((e.loss.length_loss_weight, e.loss.stopping_class_weight), weights, "{name}");
        assert_eq!((e.checkpoint.every_n_steps, e.checkpoint.keep_every), (save, Some(keep)), "{name}");
        assert_eq!((e.data.task, e.data.train, e.data.tokenizer), (Task::Text, None, None), "{name}");
    }
}

#[test]
fn text_data_knows_its_tokenizers_special_strings() {
    let lm1b = shipped("lm1b_ilm").data;
    assert_eq!((lm1b.detokenizer, lm1b.max_tokens), (Detokenizer::Lm1b, Some(128)));
    let s = &lm1b.special_tokens;
    assert_eq!([&s.pad, &s.cls, &s.mask, &s.sep, &s.unk], ["[PAD]", "[CLS]", "[MASK]", "[SEP]", "[UNK]"]);
    assert_eq!([&s.bos, &s.eos], ["[BOS]", "[EOS]"]);
    let owt = shipped("owt_ilm").data;
    assert_eq!((owt.detokenizer, owt.max_tokens), (Detokenizer::None, None));
    let s = &owt.special_tokens;
    assert_eq!([&s.eos, &s.cls, &s.bos], ["<|endoftext|>", "<|cls|>", "<|bos|>"]);
    assert_eq!([&s.pad, &s.unk, &s.mask, &s.sep], ["<|pad|>", "<|unk|>", "<|mask|>", "<|sep|>"]);
}

#[test]
fn every_model_file_fits_every_experiment() {
    for name in EXPERIMENTS {
        for (model, dims) in [
            ("rotary_small", (768, 12, 12, 64)),
            ("rotary_mini", (256, 4, 4, 64)),
            ("rotary_tiny", (64, 2, 2, 32)),
            ("gpt2_small", (768, 12, 12, 64)),
            ("gpt2_mini", (256, 4, 4, 64)),
            ("gpt2_tiny", (64, 2, 2, 64)),
        ] {
            let resolved = compose(name, &[&format!("model={model}")]).unwrap();
            let m = &resolved.experiment.model;
            assert_eq!((m.d_model, m.num_layers, m.nhead, m.rotated()), dims, "{name} {model}");
            assert_eq!(origin(&resolved, "model.d_model").1, format!("configs/model/{model}.toml"));
            validate::settings(&resolved.experiment).unwrap();
        }
    }
}

#[test]
fn shipped_experiments_can_be_trained_once_the_data_are_named() {
    let data = ["data.train=a.parquet", "data.validation=b.parquet", "data.tokenizer=t.json"];
    for name in EXPERIMENTS {
        let star = name.starts_with("star");
        let e = compose(name, if star { &[] } else { &data }).unwrap().experiment;
        let warnings = validate::training(&e, 1).unwrap();
        if star {
            assert_eq!(warnings.len(), 1, "{name}: {warnings:?}");
            assert!(warnings[0].contains("num_warmup_steps = 500 has no effect"), "{name}: {warnings:?}");
        } else {
            assert_eq!(warnings, [""; 0], "{name}");
        }
        if star {
            continue;
        }
        let missing = validate::training(&shipped(name), 1).unwrap_err().to_string();
        assert_eq!(
            missing,
            "data.train and data.tokenizer are not set: this experiment names no data of its own, so add to the command \
             line: data.train=PATH data.tokenizer=PATH"
        );
        let without = [data[0], data[2]];
        let warnings = validate::training(&compose(name, &without).unwrap().experiment, 1).unwrap();
        assert!(warnings[0].contains("data.validation is not set"), "{warnings:?}");
    }
}

#[test]
fn unknown_keys_name_the_nearest_one() {
    assert_eq!(
        refused("star_easy_ilm", &["optimiser.lr=1"]),
        "unknown key 'optimiser.lr' (did you mean 'optimizer.lr'?), from command line"
    );
    assert!(refused("star_easy_ilm", &["sed=1"]).contains("did you mean 'seed'?"));
    assert!(refused("star_easy_ilm", &["data.star.degre=1"]).contains("did you mean 'data.star.degree'?"));
    assert!(refused("star_easy_ilm", &["optimizer={lrr=1}"]).contains("did you mean 'optimizer.lr'?"));
    let dir = folder(&[
        ("experiment/nested.toml", "[trainer]\nmax_step = 3"),
        ("experiment/section.toml", "[optimiser]"),
        ("model/bad.toml", "dmodel = 3"),
    ]);
    let refused = |name: &str, overrides: &[&str]| {
        compose_in(Some(dir.path()), name, overrides).unwrap_err().to_string()
    };
    let nested = refused("nested", &[]);
    assert!(nested.starts_with("unknown key 'trainer.max_step' (did you mean 'trainer.max_steps'?), from "));
    assert!(nested.ends_with("experiment/nested.toml"), "{nested}");
    assert!(refused("section", &[]).contains("'optimiser' (did you mean 'optimizer'?)"));
    assert!(
        refused("star_easy_ilm", &["model=bad"]).contains("'model.dmodel' (did you mean 'model.d_model'?)")
    );
}

#[test]
fn unknown_names_list_the_ones_there_are() {
    let message = refused("star_esy_ilm", &[]);
    assert!(
        message
            .starts_with("there is no experiment 'star_esy_ilm' (did you mean 'star_easy_ilm'?); there are ")
    );
    assert!(message.contains("lm1b_ilm, owt_ilm"), "{message}");
    assert!(
        refused("owt_ilm", &["model=../experiment/owt_ilm"])
            .contains("gpt2_mini, gpt2_small, gpt2_tiny, rotary_mini, rotary_small, rotary_tiny")
    );
}

#[test]
fn a_value_of_the_wrong_type_names_key_value_and_origin() {
    assert_eq!(
        refused("owt_ilm", &["optimizer.lr=fast"]),
        "cannot set optimizer.lr to \"fast\" (invalid type: string \"fast\", expected a number), from command line"
    );
    assert!(refused("owt_ilm", &["seed=1.5"]).contains("cannot set seed to 1.5 "));
    assert!(refused("owt_ilm", &["optimizer.betas=[0.9]"]).contains("cannot set optimizer.betas to [0.9] "));
    assert!(refused("owt_ilm", &["lr_scheduler.name=linaer"]).contains("expected one of `constant`"));
    assert!(refused("owt_ilm", &["optimizer.lr=nan"]).contains("cannot set optimizer.lr to NaN "));
    assert!(refused("owt_ilm", &["optimizer=3"]).contains("set its keys: betas, eps, lr, weight_decay"));
    assert!(refused("owt_ilm", &["data={train=[1]}"]).contains("cannot set data.train to [1] "));
    let dir = folder(&[
        ("experiment/typed.toml", "seed = \"1\""),
        ("experiment/group.toml", "model = \"rotary_mini\""),
        ("experiment/broken.toml", "seed = 1\nblock_size = = 2\n"),
        ("experiment/defaults.toml", "[defaults]\nmodle = \"rotary_mini\""),
    ]);
    let refused = |name: &str| compose_in(Some(dir.path()), name, &[]).unwrap_err().to_string();
    assert!(refused("typed").starts_with("cannot set seed to \"1\" "));
    assert!(refused("typed").ends_with("experiment/typed.toml"));
    assert!(refused("group").contains("choose a model file in [defaults]"));
    assert!(refused("broken").contains("broken.toml, line 2: "), "{}", refused("broken"));
    assert!(refused("defaults").contains("there is no group 'modle'"));
}

#[test]
fn a_group_chosen_on_the_command_line_replaces_the_experiments_choice() {
    let resolved = compose("star_hard_ilm", &["data=star_easy", "model=rotary_tiny"]).unwrap();
    assert_eq!(resolved.experiment.data, shipped("star_easy_ilm").data);
    // Nothing of the replaced file stays behind.
    assert_eq!(origin(&resolved, "data.star.max_path_length"), ("6", "default"));
    assert_eq!(
        refused("owt_ilm", &["model=rotary_mini", "model=rotary_tiny"]).split(" on ").next().unwrap(),
        "'model' is given twice"
    );
}

#[test]
fn the_order_of_overrides_does_not_matter() {
    let arguments = ["model.d_model=512", "model=rotary_mini", "optimizer={eps=1e-6}", "optimizer.lr=1"];
    let expected = compose("owt_ilm", &arguments).unwrap();
    assert_eq!(expected.experiment.model.d_model, 512);
    assert_eq!(expected.experiment.model.num_layers, 4);
    for first in 0..arguments.len() {
        let mut turned = arguments;
        turned.rotate_left(first);
        assert_eq!(compose("owt_ilm", &turned).unwrap().values, expected.values);
        turned.reverse();
        assert_eq!(compose("owt_ilm", &turned).unwrap().values, expected.values);
    }
    assert!(refused("owt_ilm", &["seed=1", "seed=2"]).contains("'seed' is given twice"));
}

#[test]
fn each_layer_wins_over_the_one_below_and_leaves_its_name() {
    let resolved = compose("owt_ilm", &["optimizer.lr=2e-4", "seed=7"]).unwrap();
    assert_eq!(origin(&resolved, "optimizer.eps"), ("1e-8", "default"));
    assert_eq!(origin(&resolved, "model.d_model"), ("768", "configs/model/rotary_small.toml"));
    assert_eq!(origin(&resolved, "global_batch_size"), ("512", "configs/experiment/text_ilm.toml"));
    assert_eq!(origin(&resolved, "block_size"), ("1024", "configs/experiment/owt_ilm.toml"));
    assert_eq!(origin(&resolved, "data.special_tokens.eos"), ("\"<|endoftext|>\"", "configs/data/owt.toml"));
    assert_eq!(origin(&resolved, "optimizer.lr"), ("0.0002", "command line"));
    assert_eq!(origin(&resolved, "seed"), ("7", "command line"));
}

#[test]
fn a_folder_of_the_users_replaces_and_adds_files() {
    let dir = folder(&[
        ("model/rotary_mini.toml", "d_model = 128\nnhead = 2"),
        (
            "experiment/mine.toml",
            "block_size = 64\n[defaults]\nexperiment = \"owt_ilm\"\nmodel = \"rotary_mini\"\n[model]\nnhead = 4",
        ),
        ("notes.txt", "not a group"),
    ]);
    let dir = Some(dir.path());
    let mine = compose_in(dir, "mine", &[]).unwrap();
    assert_eq!((mine.experiment.model.d_model, mine.experiment.model.nhead), (128, 4));
    // The embedded file of that name is replaced as a whole, and so is the base's choice.
    assert_eq!(origin(&mine, "model.num_layers"), ("12", "default"));
    assert!(origin(&mine, "model.d_model").1.ends_with("model/rotary_mini.toml"));
    assert_eq!((mine.experiment.block_size, mine.experiment.predictor.max_steps), (64, 1024));
    assert_eq!(compose_in(dir, "star_easy_ilm", &[]).unwrap().experiment, shipped("star_easy_ilm"));
    let nowhere = compose_in(Some(Path::new("no/such/folder")), "mine", &[]).unwrap_err().to_string();
    assert!(nowhere.starts_with("cannot read no/such/folder: "), "{nowhere}");
}

#[test]
fn experiments_that_build_on_each_other_are_refused() {
    let dir = folder(&[
        ("experiment/a.toml", "[defaults]\nexperiment = \"b\""),
        ("experiment/b.toml", "[defaults]\nexperiment = \"a\""),
        ("experiment/owt_ilm.toml", "[defaults]\nexperiment = \"owt_ilm\""),
    ]);
    let refused = |name: &str| compose_in(Some(dir.path()), name, &[]).unwrap_err().to_string();
    assert!(refused("a").contains("in a circle: a -> b -> a;"));
    assert!(refused("owt_ilm").contains("in a circle: owt_ilm -> owt_ilm;"));
}

#[test]
fn overrides_are_read_as_their_key_has_it() {
    let e = compose(
        "owt_ilm",
        &[
            "data.train=2024",
            "data.test=/data/a=b/test-*.parquet",
            "data.tokenizer=true",
            "data.special_tokens.pad=0",
            "optimizer.betas=[0.9,0.95]",
            "optimizer.lr=1",
            "model.dim_feedforward=1_024",
            "loss.stopping_class_weight=",
            "trainer.ema_decay=\"\"",
            "description=",
            "lr_scheduler.name=cosine",
        ],
    )
    .unwrap()
    .experiment;
    assert_eq!(e.data.train, Some("2024".into()));
    assert_eq!(e.data.test, Some("/data/a=b/test-*.parquet".into()));
    assert_eq!(e.data.tokenizer.as_deref(), Some(Path::new("true")));
    assert_eq!(e.data.special_tokens.pad, "0");
    assert_eq!((e.optimizer.betas, e.optimizer.lr), ([0.9, 0.95], 1.0));
    assert_eq!((e.model.dim_feedforward, e.loss.stopping_class_weight), (Some(1024), None));
    assert_eq!((e.trainer.ema_decay, e.description.as_str()), (None, ""));
    assert_eq!(e.lr_scheduler.name, Schedule::Cosine);
    assert!(refused("owt_ilm", &["optimizer.lr="]).starts_with("cannot set optimizer.lr to \"\" "));
    assert!(refused("owt_ilm", &["model="]).starts_with("there is no model ''"));
    assert!(refused("owt_ilm", &["seed"]).starts_with("'seed' is not an override; write key.path=value"));
}

#[test]
fn what_is_shown_is_aligned_and_can_be_saved_as_an_experiment() {
    let resolved = compose("owt_ilm", &["trainer.ema_decay=", "data.train=a \"b\"\\c"]).unwrap();
    let text = resolved.render();
    assert_eq!(text.lines().count(), resolved.values.len());
    for mark in [" = ", "   # "] {
        let columns: Vec<usize> = text.lines().map(|line| line.find(mark).unwrap()).collect();
        assert!(mark == " = " || columns.iter().all(|column| *column == columns[0]), "{text}");
    }
    assert!(
        text.lines().any(|line| line.starts_with("trainer.ema_decay ") && line.ends_with("# command line"))
    );
    let dir = folder(&[("experiment/saved.toml", &text)]);
    assert_eq!(compose_in(Some(dir.path()), "saved", &[]).unwrap().experiment, resolved.experiment);
}

#[test]
fn contradictions_and_ranges_are_one_sentence_each() {
    let cases = [
        ("model.rotary_emb_dim=66", "model.rotary_emb_dim = 66 is above the head width 64"),
        ("model.rotary_emb_dim=31", "model.rotary_emb_dim = 31 must be even"),
        ("model.nhead=7", "model.d_model = 768 must be a multiple of model.nhead = 7"),
        ("model.dropout=1", "model.dropout = 1 must be at least 0 and below 1"),
        ("model.max_length=143", "model.max_length = 143 is below the longest row, 144 tokens"),
        ("predictor.max_length=145", "predictor.max_length = 145 is above the 144 tokens"),
        ("predictor.stopping_threshold=1.1", "predictor.stopping_threshold = 1.1 must lie in [0, 1]"),
        ("predictor.p=0", "predictor.p = 0 must be above 0"),
        ("optimizer.lr=-1", "optimizer.lr = -1 is out of range: it must be at least 0"),
        ("optimizer.betas=[0.9,1]", "optimizer.betas = 1 is out of range"),
        ("loss.stopping_class_weight=2", "loss.stopping_class_weight = 2 must lie in [0, 1]"),
        ("checkpoint.keep_last=1", "checkpoint.keep_last = 1 is too small; use at least 2"),
        ("checkpoint.monitor=", "checkpoint.keep_best = 1 needs checkpoint.monitor"),
        (
            "checkpoint.monitor=lose",
            "checkpoint.monitor = \"lose\" is no figure of the validation; choose one of loss",
        ),
        ("trainer.val_check_interval=0", "trainer.val_check_interval = 0 is out of range"),
        ("input_block_size=", "the longest star-graph prompt is unknown"),
        ("data.canonical_lanes=0", "data.canonical_lanes = 0 is out of range"),
    ];
    for (argument, message) in cases {
        let e = compose("star_hard_ilm", &[argument]).unwrap().experiment;
        let error = validate::training(&e, 1).unwrap_err().to_string();
        assert!(error.starts_with(message) && !error.contains('\n'), "{argument}: {error}");
    }
}

#[test]
fn any_number_of_ranks_up_to_the_lanes_trains() {
    let ready = ["data.train=a", "data.tokenizer=b"];
    let e = compose("owt_ilm", &ready).unwrap().experiment;
    for (world_size, uneven) in [(1, 0), (2, 0), (3, 1), (16, 0), (63, 1), (64, 0)] {
        let warnings = validate::training(&e, world_size).unwrap();
        let of_ranks = warnings.iter().filter(|warning| warning.contains("does not divide by"));
        assert_eq!(of_ranks.count(), uneven, "{world_size} ranks");
    }
    assert!(validate::training(&e, 0).is_err());
    let error = validate::training(&e, 65).unwrap_err().to_string();
    assert!(error.starts_with("65 ranks are more than data.canonical_lanes = 64"), "{error}");
}
