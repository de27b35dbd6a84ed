//! Means over examples.

/// A weighted mean that is still being collected: of losses, token cross entropies or scores of examples.
///
/// An example has weight 1, so a short last batch counts for as much as it holds. Sum and weight are what ranks add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    /// Sum of weight x value.
    pub sum: f64,
    /// Sum of the weights.
    pub weight: f64,
}

impl Mean {
    /// The mean of values that weigh 1 each.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut mean = Self::default();
        for value in values {
            mean.add(value, 1.0);
        }
        mean
    }

    /// Takes in one value.
    pub fn add(&mut self, value: f64, weight: f64) {
        self.sum += weight * value;
        self.weight += weight;
    }

    /// Takes in what was collected elsewhere.
    pub fn merge(&mut self, other: Self) {
        self.sum += other.sum;
        self.weight += other.weight;
    }

    /// The mean so far; none as long as nothing of any weight was added.
    pub fn mean(&self) -> Option<f64> {
        (self.weight != 0.0).then(|| self.sum / self.weight)
    }
}

/// The reference's accumulated loss, for comparison with its numbers only: the plain mean of the batches' means.
///
/// The examples of a short batch count for more than others. Batches without examples are skipped; none if there is no other.
pub fn mean_of_batch_means<'a>(batches: impl IntoIterator<Item = &'a [f64]>) -> Option<f64> {
    let means = batches.into_iter().filter_map(|batch| Mean::of(batch.iter().copied()).mean());
    Mean::of(means).mean()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_parts_are_the_whole() {
        let values = [0.5, 2.0, -1.0, 4.5];
        let mut parts = Mean::of(values[..3].iter().copied());
        parts.merge(Mean::of(values[3..].iter().copied()));
        assert_eq!(parts, Mean::of(values));
        assert_eq!(parts.mean(), Some(1.5));
        parts.add(9.0, 0.0);
        parts.add(4.0, 4.0);
        assert_eq!(parts.mean(), Some(2.75));
    }

    #[test]
    fn there_is_no_mean_of_nothing() {
        assert_eq!(Mean::default().mean(), None);
        assert_eq!(mean_of_batch_means([]), None);
        assert_eq!(mean_of_batch_means([&[][..]]), None);
    }

    #[test]
    fn the_reference_lets_a_short_batch_count_in_full() {
        assert_eq!(mean_of_batch_means([&[1.0, 1.0, 1.0][..], &[], &[5.0]]), Some(3.0));
        assert_eq!(Mean::of([1.0, 1.0, 1.0, 5.0]).mean(), Some(2.0));
    }
}
