//! Star graphs: arms that share one centre, of which the path from source to goal is one.

use rand_chacha::rand_core::Rng;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    config::{StarConfig, StarKind},
    dataset::Example,
    error::{Error, Result},
    random::{shuffle, uniform_below},
    tokenizer::FIRST_NUMBER,
};

/// A directed graph with one path to find. Nodes are numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StarGraph {
    /// Edges in random order, as (from, to).
    pub edges: Vec<(u32, u32)>,
    /// Where the path starts.
    pub source: u32,
    /// Where it ends.
    pub goal: u32,
    /// Its nodes, source and goal included.
    pub path: Vec<u32>,
}

impl StarConfig {
    /// Checks that every graph can be drawn.
    ///
    /// # Errors
    /// [`Error::Setting`] names the setting.
    pub fn validate(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Setting(format!("data.star.{reason}")));
        if self.degree == 0 {
            return refuse("degree = 0 leaves no arm to walk; use at least 1".into());
        }
        let longest = match self.kind {
            StarKind::Symmetric if self.path_length < 2 => {
                return refuse(format!(
                    "path_length = {} is no path; use at least 2 nodes",
                    self.path_length
                ));
            }
            StarKind::Symmetric => self.path_length,
            StarKind::Asymmetric => {
                let (min, max, plan) = (self.min_path_length, self.max_path_length, self.min_plan_length);
                if min > max {
                    return refuse(format!("min_path_length = {min} is above max_path_length = {max}"));
                }
                if plan == 0 || plan >= min {
                    return refuse(format!(
                        "min_plan_length = {plan} must be at least 1 and below min_path_length = {min}"
                    ));
                }
                max
            }
        };
        let needed = (longest - 1)
            .checked_mul(self.degree)
            .and_then(|nodes| nodes.checked_add(1))
            .unwrap_or(usize::MAX);
        if self.num_nodes < needed {
            return refuse(format!(
                "num_nodes = {} is too few: {} arms of up to {longest} nodes need {needed}",
                self.num_nodes, self.degree
            ));
        }
        const MOST_NODES: usize = 1 << 24;
        if self.num_nodes > MOST_NODES {
            return refuse(format!("num_nodes = {} is too many; use at most {MOST_NODES}", self.num_nodes));
        }
        for (name, size) in [
            ("train_size", self.train_size),
            ("validation_size", self.validation_size),
            ("test_size", self.test_size),
        ] {
            if size == 0 {
                return refuse(format!("{name} = 0 leaves a split without rows; use at least 1"));
            }
        }
        Ok(())
    }

    /// Draws a graph; the settings must be valid.
    pub(super) fn draw(&self, rng: &mut impl Rng) -> StarGraph {
        let lengths: Vec<usize> = match self.kind {
            StarKind::Symmetric => vec![self.path_length; self.degree],
            StarKind::Asymmetric => {
                (0..self.degree).map(|_| between(rng, self.min_path_length, self.max_path_length)).collect()
            }
        };
        let mut fresh =
            distinct(rng, self.num_nodes, lengths.iter().map(|length| length - 1).sum::<usize>() + 1);
        let centre = fresh.next();
        let mut arms = lengths.iter().map(|&length| {
            let junction = match self.kind {
                StarKind::Symmetric => 0,
                StarKind::Asymmetric => between(rng, 0, length - self.min_plan_length - 1),
            };
            let node = |at| if at == junction { centre } else { fresh.next() };
            (0..length).map_while(node).collect::<Vec<u32>>()
        });
        let path = arms.next().unwrap_or_default();
        let others: Vec<Vec<u32>> = arms.collect();
        let mut edges: Vec<(u32, u32)> = std::iter::once(&path)
            .chain(&others)
            .flat_map(|arm| arm.windows(2).map(|pair| (pair[0], pair[1])))
            .collect();
        shuffle(rng, &mut edges);
        let (source, goal) = (path.first().copied().unwrap_or(0), path.last().copied().unwrap_or(0));
        StarGraph { edges, source, goal, path }
    }
}

/// A uniform integer in `low..=high`.
fn between(rng: &mut impl Rng, low: usize, high: usize) -> usize {
    low + uniform_below(rng, (high - low) as u64 + 1) as usize
}

/// `count` different numbers below `bound` in random order: the start of a Fisher-Yates shuffle.
fn distinct(rng: &mut impl Rng, bound: usize, count: usize) -> std::vec::IntoIter<u32> {
    let mut numbers: Vec<u32> = (0..bound as u32).collect();
    for place in 0..count.min(bound) {
        let other = between(rng, place, bound - 1);
        numbers.swap(place, other);
    }
    numbers.truncate(count);
    numbers.into_iter()
}

impl StarGraph {
    /// As ids: the prompt is all edges, source and goal; the tokens are the path as consecutive edges.
    pub fn example(&self) -> Example {
        let id = |node: &u32| FIRST_NUMBER + node;
        let ends = |&(from, to): &(u32, u32)| [from, to];
        Example {
            prompt: self
                .edges
                .iter()
                .flat_map(ends)
                .chain([self.source, self.goal])
                .map(|node| id(&node))
                .collect(),
            tokens: self.path.windows(2).flatten().map(id).collect(),
        }
    }

    /// The same for all orders of the edges, so that a graph cannot be in two splits.
    pub(super) fn canonical_hash(&self) -> u64 {
        let mut edges = self.edges.clone();
        edges.sort_unstable();
        let nodes = edges.iter().flat_map(|&(from, to)| [from, to]).chain([self.source, self.goal]);
        xxh3_64(&nodes.flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
    }
}
