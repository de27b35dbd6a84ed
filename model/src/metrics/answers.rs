//! How well predictions match their targets, and the reference's kinder numbers beside it.

/// One prediction and what it should have been, all without padding.
#[derive(Debug, Clone, Copy)]
pub struct Scored<'a> {
    /// CLS, prompt, BOS: the row that prediction started from.
    pub prompt: &'a [i64],
    /// The tokens that belong behind it.
    pub target: &'a [i64],
    /// The final row, prompt included.
    pub predicted: &'a [i64],
}

/// Exact match and token accuracy of one prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// The final row is prompt and target, nothing more and nothing less.
    pub exact_match: bool,
    /// Share of target tokens that stand in their place; 1 for an empty target that is matched exactly, else 0.
    pub token_accuracy: f64,
}

/// Scores one prediction against its whole target, lengths included.
pub fn score(row: Scored) -> Score {
    let Scored { prompt, target, predicted } = row;
    let exact_match = predicted.strip_prefix(prompt) == Some(target);
    let suffix = predicted.get(prompt.len()..).unwrap_or(&[]);
    let right = suffix.iter().zip(target).filter(|(a, b)| a == b).count();
    let token_accuracy = match target.len() {
        0 => f64::from(u8::from(exact_match)),
        len => right as f64 / len as f64,
    };
    Score { exact_match, token_accuracy }
}

/// Exact match of two rows that are padded on the right, by what is not padding: the lengths agree, and so do that many ids.
///
/// Lengths are in tokens; a length beyond its row matches nothing.
pub fn exact_match_with_lengths(
    predicted: &[i64],
    predicted_length: usize,
    target: &[i64],
    target_length: usize,
) -> bool {
    match (predicted.get(..predicted_length), target.get(..target_length)) {
        (Some(predicted), Some(target)) => predicted == target,
        _ => false,
    }
}

/// The reference's scores of a batch, for comparison with its published numbers only.
///
/// It pads prompts on the left and targets on the right, to `target_width` tokens, cuts every target row to the width of
/// the widest prediction of the batch, and counts padding as tokens; so a batch that stops early everywhere scores too
/// high, and a row's score depends on its batch. Where a prediction is wider than prompt and target the reference fails;
/// here the surplus is no exact match, and its tokens are not counted.
pub fn reference_scores(rows: &[Scored], target_width: usize, pad: i64) -> Vec<Score> {
    let longest = |len: &dyn Fn(&Scored) -> usize| rows.iter().map(len).max().unwrap_or(0);
    let prompt_width = longest(&|row| row.prompt.len());
    let left = |row: &Scored| prompt_width - row.prompt.len();
    let width = longest(&|row| left(row) + row.predicted.len());
    rows.iter()
        .map(|row| {
            let pads = std::iter::repeat(pad);
            let front = pads.clone().take(left(row));
            let predicted: Vec<i64> =
                front.clone().chain(row.predicted.iter().copied()).chain(pads.clone()).take(width).collect();
            let expected: Vec<i64> =
                front.chain(row.prompt.iter().chain(row.target).copied()).chain(pads).take(width).collect();
            let pairs = predicted.iter().zip(&expected).skip(prompt_width).take(target_width);
            let counted = pairs.len();
            let right = pairs.filter(|(a, b)| a == b).count();
            let token_accuracy = if counted == 0 { 0.0 } else { right as f64 / counted as f64 };
            Score { exact_match: predicted == expected, token_accuracy }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(predicted: &[i64]) -> Score {
        score(Scored { prompt: &[1, 9, 4], target: &[7, 8], predicted })
    }

    #[test]
    fn only_the_whole_target_is_a_match() {
        assert_eq!(scored(&[1, 9, 4, 7, 8]), Score { exact_match: true, token_accuracy: 1.0 });
        assert_eq!(scored(&[1, 9, 4, 7]), Score { exact_match: false, token_accuracy: 0.5 });
        assert_eq!(scored(&[1, 9, 4]), Score { exact_match: false, token_accuracy: 0.0 });
        assert_eq!(scored(&[1, 9, 4, 7, 8, 8]), Score { exact_match: false, token_accuracy: 1.0 });
        assert_eq!(scored(&[1, 9, 3, 4, 7, 8]), Score { exact_match: false, token_accuracy: 0.0 });
    }

    #[test]
    fn lengths_say_what_is_compared() {
        let matches = |predicted_length, target_length| {
            exact_match_with_lengths(&[7, 8, 0], predicted_length, &[7, 8, 9, 9], target_length)
        };
        assert!(matches(2, 2) && matches(0, 0));
        assert!(!matches(3, 3) && !matches(2, 3) && !matches(3, 2) && !matches(4, 4) && !matches(5, 5));
    }

    #[test]
    fn the_reference_rewards_stopping_early() {
        let rows = [Scored { prompt: &[1, 4], target: &[7, 8], predicted: &[1, 4, 7] }];
        assert!(reference_scores(&rows, 2, 0)[0].exact_match);
        assert!(!score(rows[0]).exact_match);
        let rows = [rows[0], Scored { prompt: &[1, 4], target: &[5], predicted: &[1, 4, 5, 5, 5] }];
        let scores = reference_scores(&rows, 2, 0);
        assert!(scores.iter().all(|score| !score.exact_match));
    }

    #[test]
    fn the_reference_counts_padding_as_far_as_the_widest_prediction() {
        fn row(predicted: &[i64]) -> Scored<'_> {
            Scored { prompt: &[1, 4], target: &[10, 11, 12, 13, 14, 15, 16, 17], predicted }
        }
        let accuracies = |rows: [Scored; 2]| {
            let scores = reference_scores(&rows, 14, 0);
            [scores[0].token_accuracy, scores[1].token_accuracy]
        };
        let right = row(&[1, 4, 10, 11, 12, 13, 14, 15, 16, 17]);
        let long = row(&[1, 4, 10, 11, 12, 13, 14, 15, 16, 17, 5, 5]);
        let short = row(&[1, 4, 10]);
        assert_eq!(accuracies([right, long]), [1.0, 0.8]);
        assert_eq!(accuracies([right, short]), [1.0, 0.125]);
        // beside the long row two places of padding are right as well
        assert_eq!(accuracies([long, short]), [0.8, 0.3]);
    }
}
