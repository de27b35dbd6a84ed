//! Buckets begin as soon as their gradients are final, in their order, and all of them in every step.

use std::sync::{Arc, Mutex};

use super::*;

type Asked = Vec<(ExchangeOp, Range<usize>)>;

/// Notes what it is asked for.
struct Notes(Arc<Mutex<Asked>>);

impl Exchange for Notes {
    fn begin(&mut self, _name: &'static str, op: ExchangeOp, range: Range<usize>) -> Result<(), CommError> {
        self.0.lock().unwrap().push((op, range));
        Ok(())
    }

    fn finish(&mut self) -> Result<Duration, CommError> {
        Ok(Duration::from_secs(1))
    }

    fn wait_for(&mut self, _range: Range<usize>) -> Result<Duration, CommError> {
        Ok(Duration::from_secs(5))
    }

    fn describe(&self) -> String {
        "notes".to_owned()
    }
}

const CAPACITY: usize = 3 << 18;

fn reducer(overlaps: bool, sharded: bool) -> (Reducer, impl Fn() -> Asked) {
    let notes = Arc::new(Mutex::new(Asked::new()));
    let reducer = Reducer {
        exchange: Box::new(Notes(Arc::clone(&notes))),
        plan: BucketPlan::new(CAPACITY, &[1 << 18], 1 << 18, 2),
        sharded,
        overlaps,
        final_from: usize::MAX,
        begun: 0,
        rounded_from: 1 << 18,
        gathers: false,
        old: false,
        failed: None,
        waited: Duration::ZERO,
    };
    (reducer, move || std::mem::take(&mut *notes.lock().unwrap()))
}

#[test]
fn a_bucket_begins_when_all_of_it_is_final() {
    let bucket = |index: usize| index << 18..(index + 1) << 18;
    let (mut reducer, begun) = reducer(true, false);
    for _step in 0..2 {
        reducer.is_final(CAPACITY - 100..CAPACITY);
        assert_eq!(begun(), []);
        reducer.is_final((1 << 18) + 5..CAPACITY - 100);
        assert_eq!(begun(), [(ExchangeOp::AllReduce, bucket(2))]);
        reducer.is_final(0..(1 << 18) + 5);
        assert_eq!(begun(), [(ExchangeOp::AllReduce, bucket(1)), (ExchangeOp::AllReduce, bucket(0))]);
        reducer.finish_gradients().unwrap();
        assert_eq!(begun(), [(ExchangeOp::AllReduce, 0..0), (ExchangeOp::AllReduce, 1 << 18..1 << 18)]);
    }
    assert_eq!(reducer.take_waited(), Duration::from_secs(2));
    assert_eq!(reducer.take_waited(), Duration::ZERO);
}

#[test]
fn a_forward_pass_waits_for_parameters_that_are_on_their_way() {
    let (mut reducer, begun) = reducer(true, true);
    let pass = |reducer: &mut Reducer| {
        Passing { reducer: &mut *reducer, is_last: false }.needs(0..100);
        reducer.take_waited()
    };
    assert_eq!(pass(&mut reducer), Duration::ZERO);
    let windows = reducer.windows();
    assert!(windows.is_sorted_by_key(|window| window.start), "as a forward pass needs them: {windows:?}");
    for window in windows {
        reducer.begin_gather(window).unwrap();
    }
    assert_eq!((begun().len(), pass(&mut reducer)), (3, Duration::from_secs(5)));
    reducer.finish_gradients().unwrap();
    assert_eq!((reducer.take_waited(), pass(&mut reducer)), (Duration::from_secs(1), Duration::ZERO));
    reducer.begin_gather(0..1 << 18).unwrap();
    reducer.finish_gather().unwrap();
    reducer.finish_gather().unwrap();
    assert_eq!((reducer.take_waited(), pass(&mut reducer)), (Duration::from_secs(1), Duration::ZERO));
}

#[test]
fn without_overlap_or_micro_batches_all_begin_at_the_end() {
    let (mut reducer, begun) = reducer(false, true);
    reducer.is_final(0..CAPACITY);
    assert_eq!(begun(), []);
    reducer.finish_gradients().unwrap();
    assert_eq!(begun().len(), 5);
    reducer.finish_gradients().unwrap();
    let again = begun();
    assert_eq!(again.len(), 5);
    assert!(again[..3].iter().all(|(op, _)| *op == ExchangeOp::ReduceScatter));
    for window in reducer.windows() {
        reducer.begin_gather(window).unwrap();
    }
    assert_eq!(begun().len(), 3);
}

#[test]
fn ranks_get_rounded_what_products_take_and_the_rest_once_somebody_asks() {
    let (mut reducer, begun) = reducer(true, true);
    for window in reducer.windows() {
        reducer.begin_gather(window).unwrap();
    }
    let [first, second, third] = [0, 1, 2].map(|index: usize| index << 18..(index + 1) << 18);
    let (exact, rounded) = (ExchangeOp::AllGather, ExchangeOp::AllGatherRounded);
    assert_eq!(begun(), [(exact, first.clone()), (rounded, second.clone()), (rounded, third.clone())]);
    reducer.finish_gather().unwrap();
    assert_eq!(begun(), []);
    reducer.complete_parameters().unwrap();
    assert_eq!(begun(), [(exact, second.clone()), (exact, third.clone())]);
    reducer.complete_parameters().unwrap();
    assert_eq!(begun(), []);
    reducer.take_waited();
    reducer.share_parameters().unwrap();
    assert_eq!(begun(), [(exact, first), (exact, second), (exact, third)]);
    assert_eq!(reducer.take_waited(), Duration::ZERO, "what is between two steps is part of none");
}
