//! The order of one source: its rows are cut into lanes, and consecutive samples come from consecutive lanes.

use std::sync::{Arc, Mutex, PoisonError};

use super::epoch::EpochOrder;

/// Epochs whose order is kept: threads read ahead over the end of an epoch, and a global batch may hold several short
/// epochs.
const KEPT_EPOCHS: usize = 4;

/// Maps the samples 0, 1, 2, ... of a source to rows.
///
/// Sample i is place `q = i % rows` of epoch `i / rows`, and `q` lies in lane `q % lanes` at index `q / lanes`. Lanes are
/// contiguous parts of the epoch's order, so who serves few lanes reads few row groups.
#[derive(Debug)]
pub(super) struct SourceOrder {
    /// First row of every group, and the row after the last one.
    starts: Vec<u64>,
    lanes: u64,
    shuffle: Option<Shuffle>,
}

#[derive(Debug)]
pub(super) struct Shuffle {
    pub seed: u64,
    pub source: u64,
    pub window_groups: usize,
    /// The last epochs asked for.
    epochs: Mutex<Vec<Arc<EpochOrder>>>,
}

impl SourceOrder {
    /// `starts` ascend and hold at least one row, `lanes` is not zero.
    pub fn new(starts: Vec<u64>, lanes: u64, shuffle: Option<Shuffle>) -> Self {
        Self { starts, lanes, shuffle }
    }

    /// Rows of an epoch.
    pub fn len(&self) -> u64 {
        self.end() - self.first()
    }

    /// The lane of a sample.
    pub fn lane(&self, sample: u64) -> u64 {
        sample % self.len() % self.lanes
    }

    /// The epoch and the row of a sample.
    pub fn row(&self, sample: u64) -> (u64, u64) {
        let (epoch, q) = (sample / self.len(), sample % self.len());
        let row = match &self.shuffle {
            None => self.first() + q,
            Some(shuffle) => shuffle.epoch_order(epoch, &self.starts).row(self.place(q), &self.starts),
        };
        (epoch, row)
    }

    /// Where in the order of the epoch its `q`-th sample lies. The first lanes are a row longer where the rows do not
    /// divide, just as they are asked for once more.
    fn place(&self, q: u64) -> u64 {
        let (lane, index) = (q % self.lanes, q / self.lanes);
        let (short, longer) = (self.len() / self.lanes, self.len() % self.lanes);
        lane * short + lane.min(longer) + index
    }

    fn first(&self) -> u64 {
        self.starts.first().copied().unwrap_or(0)
    }

    fn end(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
}

impl Shuffle {
    pub fn new(seed: u64, source: u64, window_groups: usize) -> Self {
        Self { seed, source, window_groups, epochs: Mutex::new(Vec::new()) }
    }

    fn epoch_order(&self, epoch: u64, starts: &[u64]) -> Arc<EpochOrder> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(order) = epochs.iter().find(|order| order.epoch == epoch) {
            return order.clone();
        }
        let order = Arc::new(EpochOrder::new(epoch, self.seed, self.source, self.window_groups, starts));
        if epochs.len() == KEPT_EPOCHS {
            epochs.remove(0);
        }
        epochs.push(order.clone());
        order
    }
}
