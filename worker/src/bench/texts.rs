//! Rows of random tokens whose lengths are those of a real set of texts: a pure function of the row number.

use data_pipeline::{Dataset, Error, Example, Purpose, Tokenizer, keyed_rng, uniform_below};

/// Rows that exist; more than any measurement takes.
const ROWS: u64 = 1 << 20;
const SEED: u64 = 1;

/// Lengths of a set in tokens: lognormal, clipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lengths {
    /// Half of the rows are shorter.
    pub median: f64,
    /// Standard deviation of the logarithm.
    pub sigma: f64,
    /// Shortest row.
    pub least: f64,
    /// Longest row.
    pub most: f64,
}

/// Random ids in rows of random lengths.
#[derive(Debug)]
pub struct Texts {
    lengths: Lengths,
    special: u32,
    vocabulary: u32,
}

impl Texts {
    /// Rows of the tokens of `tokenizer` that mark nothing, which are all but the first few.
    pub fn new(lengths: Lengths, tokenizer: &Tokenizer) -> Self {
        let special = tokenizer.special();
        let marks =
            [special.pad, special.cls, special.mask, special.eos, special.bos, special.sep, special.unk];
        let special = marks.into_iter().max().map_or(0, |last| last + 1);
        Self { lengths, special, vocabulary: tokenizer.vocab_size() as u32 }
    }
}

impl Dataset for Texts {
    fn len(&self) -> u64 {
        ROWS
    }

    fn groups(&self) -> &[u64] {
        &[ROWS]
    }

    fn example(&self, row: u64) -> Result<Option<Example>, Error> {
        let mut rng = keyed_rng(SEED, Purpose::Star, 0, row);
        let mut unit = || (uniform_below(&mut rng, 1 << 53) + 1) as f64 / (1u64 << 53) as f64;
        // A normal number by Box and Muller's method.
        let normal = (-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos();
        let Lengths { median, sigma, least, most } = self.lengths;
        let length = (median * (sigma * normal).exp()).clamp(least, most) as usize;
        let ordinary = u64::from(self.vocabulary.saturating_sub(self.special).max(1));
        let tokens = (0..length).map(|_| self.special + uniform_below(&mut rng, ordinary) as u32).collect();
        Ok(Some(Example { prompt: Vec::new(), tokens }))
    }

    fn fingerprint(&self) -> &str {
        "random tokens 1"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_lengths_and_ids_of_the_set() {
        let lengths = Lengths { median: 26.0, sigma: 0.55, least: 3.0, most: 126.0 };
        let tokenizer = Tokenizer::numbers(100);
        let texts = Texts::new(lengths, &tokenizer);
        let rows: Vec<Example> = (0..2001).map(|row| texts.example(row).unwrap().unwrap()).collect();
        let mut sizes: Vec<usize> = rows.iter().map(|row| row.tokens.len()).collect();
        sizes.sort_unstable();
        assert!((24..=28).contains(&sizes[1000]), "median {}", sizes[1000]);
        assert!(sizes[0] >= 3 && sizes[2000] <= 126);
        let ids = rows.iter().flat_map(|row| &row.tokens);
        assert!(ids.clone().all(|&id| (7..107).contains(&id)));
        assert!(ids.clone().any(|&id| id == 7) && ids.clone().any(|&id| id == 106));
        assert_eq!(rows[5], texts.example(5).unwrap().unwrap());
    }
}
