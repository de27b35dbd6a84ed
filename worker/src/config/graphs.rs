//! How many tokens the largest star graph that is generated takes, and which settings are too small for it.

use data_pipeline::config::{DataConfig, StarConfig, StarKind};

use super::tree::Experiment;

/// Whether training or its validations generate graphs; files may hold others than `data.star` describes.
pub(super) fn are_generated(data: &DataConfig) -> bool {
    let trains_on_files = data.train.is_some() || !data.mixture.is_empty();
    !trains_on_files || data.validation.is_none()
}

/// Tokens of the largest graph's row with its whole answer, both as the blocks cut them.
pub(super) fn longest_row(experiment: &Experiment) -> usize {
    let [prompt, answer] = largest(&experiment.data.star);
    let prompt = experiment.input_block_size.map_or(prompt, |size| size.min(prompt));
    prompt.saturating_add(answer.min(experiment.block_size))
}

/// Warns of blocks that cut the largest graph, and of bounds that end its answer before it can be right.
pub(super) fn warnings(experiment: &Experiment) -> Vec<String> {
    let [prompt, answer] = largest(&experiment.data.star);
    let (block, predictor) = (experiment.block_size, &experiment.predictor);
    let cuts = "cuts the largest star graphs, which need";
    let needs = [
        ("input_block_size", experiment.input_block_size, cuts, prompt),
        ("block_size", Some(block), cuts, answer.saturating_add(1)),
        (
            "predictor.max_steps",
            Some(predictor.max_steps),
            "ends the longest star-graph answers before they can be right: they need",
            answer.min(block),
        ),
        (
            "predictor.max_length",
            predictor.max_length,
            "ends the longest star-graph answers before they can be right: with their prompts they need",
            longest_row(experiment),
        ),
    ];
    let short = needs.into_iter().filter_map(|(key, size, effect, need)| {
        let size = size.filter(|size| *size < need)?;
        Some(format!("{key} = {size} {effect} {need} tokens"))
    });
    short.collect()
}

/// Tokens of the largest graph: of its prompt with CLS in front and BOS behind, and of its answer.
fn largest(star: &StarConfig) -> [usize; 2] {
    let arm = match star.kind {
        StarKind::Symmetric => star.path_length,
        StarKind::Asymmetric => star.max_path_length,
    };
    let answer = arm.saturating_sub(1).saturating_mul(2);
    // Two tokens per edge, the source, the goal, CLS and BOS; in prediction they share input_block_size.
    let prompt = answer.saturating_mul(star.degree).saturating_add(4);
    [prompt, answer]
}

#[cfg(test)]
mod tests {
    use crate::config::{Experiment, load, validate};

    fn star_hard(settings: &[&str]) -> Experiment {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        load("star_hard_ilm", &settings, None).unwrap().experiment
    }

    fn warned(setting: &str) -> Vec<String> {
        validate::settings(&star_hard(&[setting, "lr_scheduler.num_warmup_steps=0"])).unwrap()
    }

    #[test]
    fn settings_below_the_needs_of_the_largest_graph_are_warned_of() {
        // 55 edges, of which 11 are the answer
        let needs = [
            ("input_block_size", 114),
            ("block_size", 23),
            ("predictor.max_steps", 22),
            ("predictor.max_length", 136),
        ];
        for (key, need) in needs {
            assert_eq!(warned(&format!("{key}={need}")), [""; 0], "{key}");
            let less = need - 1;
            let warnings = warned(&format!("{key}={less}"));
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].starts_with(&format!("{key} = {less} ")), "{warnings:?}");
            assert!(warnings[0].ends_with(&format!(" need {need} tokens")), "{warnings:?}");
        }
    }

    #[test]
    fn graphs_that_outgrow_their_blocks_are_warned_of() {
        let warnings = warned("data.star.max_path_length=16");
        // Answers are cut to the block, so the predictor's bounds suffice for what is left of them.
        assert_eq!(
            warnings,
            [
                "input_block_size = 116 cuts the largest star graphs, which need 154 tokens",
                "block_size = 28 cuts the largest star graphs, which need 31 tokens",
            ]
        );
    }

    #[test]
    fn uncut_prompts_of_generated_graphs_must_fit_the_model() {
        let refused = |positions: usize, files: &[&str]| {
            let positions = format!("model.max_length={positions}");
            let settings = [&["input_block_size=", positions.as_str()][..], files].concat();
            validate::settings(&star_hard(&settings)).err().map(|error| error.to_string())
        };
        assert_eq!(refused(136, &[]), None);
        assert_eq!(
            refused(135, &[]).unwrap(),
            "model.max_length = 135 is below the longest row of generated star graphs, 136 tokens: without \
             input_block_size no prompt is cut; raise it or set input_block_size"
        );
        assert!(refused(135, &["data.train=graphs"]).is_some(), "its validations generate graphs");
        assert_eq!(refused(135, &["data.train=graphs", "data.validation=graphs"]), None);
    }
}
