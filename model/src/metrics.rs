//! What is reported about losses, predictions and generated text; the reference's own numbers stand beside those that differ.
//!
//! Means over examples are sums and weights until they are read, so that parts of a data set, and ranks, can be merged.

mod answers;
mod mean;
mod perplexity;
mod text;

pub use answers::{Score, Scored, exact_match_with_lengths, reference_scores, score};
pub use mean::{Mean, mean_of_batch_means};
pub use perplexity::{GenerativePerplexity, JudgeScore};
pub use text::{TextScore, unigram_entropy};
