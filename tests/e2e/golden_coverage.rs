//! Every tensor and file of the reference's vectors has a test: a list that is checked against the manifest and the sources.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// A test, the source it is in, and what it compares: files of the manifest, or tensors of a file whose names begin so.
struct Coverage(&'static str, &'static str, &'static [&'static str]);

const TESTS: &[Coverage] = &[
    Coverage(
        "checkpoints/src/retention.rs",
        "golden_thinning_keeps_what_the_reference_keeps",
        &["checkpoint_thinning.json"],
    ),
    Coverage(
        "data-pipeline/tests/golden_collators.rs",
        "golden_collators",
        &["collators.safetensors default.", "collators.safetensors seq2seq."],
    ),
    Coverage("data-pipeline/tests/golden_collators.rs", "golden_drop_function", &["collators.json"]),
    Coverage(
        "data-pipeline/tests/golden_collators.rs",
        "golden_prompts",
        &["collators.safetensors seq2seq_pred."],
    ),
    Coverage("data-pipeline/tests/golden_rules.rs", "golden_grad_accum", &["grad_accum.json"]),
    Coverage("data-pipeline/tests/golden_rules.rs", "golden_lm1b_detokenizer", &["lm1b_detokenizer.json"]),
    Coverage("data-pipeline/tests/golden_rules.rs", "golden_pad_truncate", &["pad_truncate.json"]),
    Coverage(
        "data-pipeline/tests/golden_rules.rs",
        "golden_simple_space_tokenizer",
        &["simple_space_tokenizer.json"],
    ),
    Coverage("data-pipeline/tests/golden_rules.rs", "golden_star_graphs", &["star_graphs.json"]),
    Coverage("model/src/backbone/rotary.rs", "golden_rotary_embedding", &["rotary_embedding.safetensors"]),
    Coverage("model/tests/golden_forward.rs", "golden_initial_moments", &["init_stats.json"]),
    Coverage(
        "model/tests/golden_forward.rs",
        "golden_outputs_of_every_class_at_every_place",
        &[
            "model_inputs.safetensors",
            "model_rotary_base_nonorm_relu.safetensors",
            "model_rotary_base_norm_gelu_smallrot.safetensors",
            "model_rotary_it.safetensors",
            "model_rotary_ilm.safetensors",
            "model_rotary_classification.safetensors",
            "model_rotary_stopping.safetensors",
            "model_rotary_length.safetensors",
            "model_rotary_length_classes7.safetensors",
            "model_gpt2_base_nonorm.safetensors",
            "model_gpt2_ilm_norm_relu.safetensors",
            "model_gpt2_classification.safetensors",
            "model_gpt2_stopping.safetensors",
            "model_gpt2_length.safetensors",
        ],
    ),
    Coverage("model/tests/golden_loss.rs", "golden_grad_accumulation", &["grad_accumulation.safetensors"]),
    Coverage("model/tests/golden_loss.rs", "golden_loss_ce_plain", &["loss_ce_plain.safetensors"]),
    Coverage(
        "model/tests/golden_loss.rs",
        "golden_loss_ce_weighted_seq2seq",
        &["loss_ce_weighted_seq2seq.safetensors"],
    ),
    Coverage("model/tests/golden_loss.rs", "golden_loss_gpt2", &["loss_gpt2_binary_adapter.safetensors"]),
    Coverage(
        "model/tests/golden_loss.rs",
        "golden_loss_owt_weights",
        &["loss_binary_owt_weights.safetensors"],
    ),
    Coverage("model/tests/golden_loss.rs", "golden_loss_plain", &["loss_binary_plain.safetensors"]),
    Coverage(
        "model/tests/golden_loss.rs",
        "golden_loss_weighted_seq2seq",
        &["loss_binary_weighted_seq2seq.safetensors"],
    ),
    Coverage(
        "model/tests/golden_loss.rs",
        "golden_loss_zero_drops_only",
        &["loss_binary_zero_drops_only.safetensors"],
    ),
    Coverage(
        "model/tests/golden_metrics.rs",
        "golden_generative_perplexity",
        &["generative_perplexity.json"],
    ),
    Coverage(
        "model/tests/golden_metrics.rs",
        "golden_metrics_beside_the_corrected_ones",
        &["metrics.safetensors"],
    ),
    Coverage(
        "model/tests/golden_metrics.rs",
        "golden_metrics_of_losses",
        &["metrics.safetensors accumulated_loss.", "metrics.safetensors token_ce."],
    ),
    Coverage(
        "model/tests/golden_metrics.rs",
        "golden_metrics_with_lengths",
        &["metrics.safetensors with_lengths."],
    ),
    Coverage("model/tests/golden_nn.rs", "golden_nn_log_softmax", &["nn.safetensors log_softmax."]),
    Coverage("model/tests/golden_nn.rs", "golden_nn_masked_ce", &["nn.safetensors masked_ce."]),
    Coverage("model/tests/golden_nn.rs", "golden_nn_max", &["nn.safetensors max."]),
    Coverage("model/tests/golden_nn.rs", "golden_nn_remove_tokens", &["nn.safetensors remove_tokens."]),
    Coverage("model/tests/golden_nn.rs", "golden_nn_sample", &["nn.safetensors sample2d."]),
    Coverage("model/tests/golden_nn.rs", "golden_nn_top_k", &["nn.safetensors topk."]),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_given_constraint",
        &["predict_stopping_given_constraint.safetensors"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_length_infill",
        &["predict_length_infill.safetensors"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_lists_no_case_without_a_test",
        &["predict.json"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_options",
        &["predict_stopping_options.safetensors"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_plain_infill",
        &["predict_plain_infill.safetensors"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_plain_joint",
        &["predict_plain_joint.safetensors"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_plain_max_length_quirk_13",
        &["predict_plain_max_length_QUIRK.safetensors"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_right_padded",
        &["predict_stopping_right_padded.safetensors"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_seq2seq",
        &["predict_stopping_seq2seq.safetensors"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_seq2seq_joint",
        &["predict_stopping_seq2seq_joint.safetensors"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_predict_unconditional",
        &["predict_stopping_unconditional.safetensors"],
    ),
    Coverage(
        "model/tests/golden_predict.rs",
        "golden_prompts_on_either_side_of_bos",
        &["collators.safetensors prefix."],
    ),
    Coverage("model/tests/golden_sample.rs", "golden_sample_one_dimension", &["nn.safetensors sample1d."]),
    Coverage("worker/src/optim/ema.rs", "golden_ema_ramp", &["ema_ramp.json"]),
    Coverage("worker/src/optim/schedule.rs", "golden_lr_schedules", &["lr_schedules.json"]),
    Coverage("worker/tests/golden_training.rs", "golden_three_steps", &["optim_reference.safetensors"]),
    Coverage(
        "worker/tests/golden_training.rs",
        "golden_three_steps_under_stress",
        &["optim_stress.safetensors"],
    ),
];

fn manifest() -> Value {
    let path = test_support::golden_dir().join("manifest.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the manifest is there")).expect("it is JSON")
}

/// Tensors of a file of the manifest; a JSON file counts as one without a name.
fn tensors(file: &Value) -> Vec<String> {
    match file["tensors"].as_object() {
        Some(tensors) => tensors.keys().cloned().collect(),
        None => vec![String::new()],
    }
}

/// Whether an entry of the list, `FILE` or `FILE PREFIX`, is about a tensor.
fn covers(entry: &str, file: &str, tensor: &str) -> bool {
    let (of_file, prefix) = entry.split_once(' ').unwrap_or((entry, ""));
    of_file == file && tensor.starts_with(prefix)
}

#[test]
fn no_entry_of_the_manifest_is_without_a_test() {
    let manifest = manifest();
    let files = manifest["files"].as_object().expect("files by name");
    let entries: Vec<&str> = TESTS.iter().flat_map(|Coverage(_, _, entries)| *entries).copied().collect();
    let mut without = Vec::new();
    for (file, entry) in files {
        let is_without = |tensor: &String| !entries.iter().any(|entry| covers(entry, file, tensor));
        without
            .extend(tensors(entry).into_iter().filter(is_without).map(|tensor| format!("{file} {tensor}")));
    }
    assert_eq!(without, Vec::<String>::new());
    let exists = |entry: &str| {
        let tensors_of = |(file, value): (&String, &Value)| (file.clone(), tensors(value));
        files
            .iter()
            .map(tensors_of)
            .any(|(file, tensors)| tensors.iter().any(|name| covers(entry, &file, name)))
    };
    assert_eq!(
        entries.into_iter().find(|entry| !exists(entry)),
        None,
        "the manifest has nothing of the kind"
    );
}

#[test]
fn every_listed_test_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
    for Coverage(source, test, _) in TESTS {
        let text = fs::read_to_string(root.join(source)).unwrap_or_else(|error| panic!("{source}: {error}"));
        let is_there =
            ["", "    "].iter().any(|indent| text.contains(&format!("#[test]\n{indent}fn {test}()")));
        assert!(is_there, "{test} is not in {source}");
    }
}
