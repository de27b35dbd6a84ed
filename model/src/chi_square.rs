//! Pearson's test of drawn choices against the probabilities they should have; tests use it at fixed seeds.

/// Draws of one test.
const DRAWS: usize = 500_000;

/// What the statistic exceeds with probability 1e-4 if the draws are right, for 1, 2, .. degrees of freedom.
const CRITICAL: [f64; 16] = [
    15.14, 18.42, 21.11, 23.51, 25.74, 27.86, 29.88, 31.83, 33.72, 35.56, 37.37, 39.13, 40.87, 42.58, 44.26,
    45.92,
];

/// The statistic as a multiple of its critical value: above 1 the draws do not follow the probabilities.
///
/// A choice of probability 0 that is drawn all the same gives infinity.
pub(crate) fn excess(probabilities: &[f64], mut draw: impl FnMut() -> usize) -> f64 {
    let mut counts = vec![0usize; probabilities.len()];
    for _ in 0..DRAWS {
        counts[draw()] += 1;
    }
    let (mut statistic, mut cells) = (0.0, 0);
    for (&count, probability) in counts.iter().zip(probabilities) {
        let expected = probability * DRAWS as f64;
        match (expected > 0.0, count) {
            (true, _) => {
                assert!(expected >= 5.0, "the statistic is not chi-square with {expected} expected draws");
                statistic += (count as f64 - expected).powi(2) / expected;
                cells += 1;
            }
            (false, 0) => {}
            (false, _) => return f64::INFINITY,
        }
    }
    statistic / CRITICAL[cells - 2]
}

/// `weights` as probabilities.
pub(crate) fn normalized(weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}
