//! Bounds, sharing and reading ahead of the cache, with groups that are their own size.

use std::sync::{
    Barrier,
    atomic::{AtomicUsize, Ordering},
};

use super::*;
use crate::error::Error;

/// Groups are their own size in bytes.
fn cache(max_bytes: usize) -> GroupCache<usize> {
    GroupCache::new(max_bytes, |group| *group)
}

/// Asks for a group; true if it had to be decoded.
fn decodes(cache: &GroupCache<usize>, index: usize, bytes: usize) -> bool {
    let mut decoded = false;
    cache
        .get(index, || {
            decoded = true;
            Ok(bytes)
        })
        .unwrap();
    decoded
}

#[test]
fn keeps_the_most_recently_used_groups() {
    let cache = cache(2);
    assert!(decodes(&cache, 0, 1) && decodes(&cache, 1, 1));
    assert!(!decodes(&cache, 0, 1));
    assert!(decodes(&cache, 2, 1), "puts out 1, the least recently used");
    assert!(!decodes(&cache, 0, 1) && !decodes(&cache, 2, 1));
    assert!(decodes(&cache, 1, 1));
}

#[test]
fn keeps_no_more_bytes_than_allowed_but_always_the_newest_group() {
    let cache = cache(10);
    for index in 0..20 {
        assert!(decodes(&cache, index, 4));
        let state = cache.lock();
        assert!(state.bytes <= 10 && state.slots.len() <= 2);
    }
    assert!(decodes(&cache, 50, 10_000));
    assert_eq!(cache.lock().slots.len(), 1);
    assert!(!decodes(&cache, 50, 10_000));
}

#[test]
fn an_error_is_not_kept() {
    let cache = cache(10);
    assert!(cache.get(3, || Err(Error::LoaderStopped)).is_err());
    assert!(cache.lock().slots.is_empty());
    assert!(decodes(&cache, 3, 1));
}

#[test]
fn threads_that_ask_for_a_group_share_one_decoding() {
    let cache = cache(100);
    let (decoded, start) = (AtomicUsize::new(0), Barrier::new(8));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                for index in 0..4 {
                    let decode = || {
                        decoded.fetch_add(1, Ordering::SeqCst);
                        Ok(1)
                    };
                    cache.get(index, decode).unwrap();
                }
            });
        }
    });
    assert_eq!(decoded.into_inner(), 4);
}

/// Decodes ahead on a thread of its own until `body` returns.
fn with_ahead(
    cache: &GroupCache<usize>,
    decode: impl Fn(usize) -> Result<usize> + Sync,
    body: impl FnOnce(),
) {
    std::thread::scope(|scope| {
        scope.spawn(|| cache.decode_ahead(&decode));
        body();
        cache.close();
    });
}

fn wait_for(done: impl Fn() -> bool) {
    while !done() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn announced_groups_are_there_before_they_are_asked_for() {
    let cache = cache(100);
    with_ahead(
        &cache,
        |_| Ok(5),
        || {
            cache.announce((0..4).map(|index| (index, 5)));
            wait_for(|| cache.lock().bytes == 20);
            assert_eq!(cache.lock().ahead, 20);
            assert!((0..4).all(|index| !decodes(&cache, index, 5)));
            assert_eq!(cache.lock().ahead, 0);
        },
    );
}

#[test]
fn what_is_not_asked_for_takes_half_of_the_memory_and_groups_in_use_stay() {
    let cache = cache(100);
    assert!(decodes(&cache, 90, 40));
    with_ahead(
        &cache,
        |_| Ok(20),
        || {
            cache.announce((0..10).map(|index| (index, 20)));
            for index in 0..8 {
                wait_for(|| cache.lock().slots.contains_key(&index));
                assert!(cache.lock().ahead <= 50);
                assert!(!decodes(&cache, 90, 40), "in use all the time");
                assert!(!decodes(&cache, index, 20));
            }
        },
    );
}

#[test]
fn groups_that_wait_to_be_asked_for_are_not_put_out() {
    let cache = cache(10);
    with_ahead(
        &cache,
        |_| Ok(2),
        || {
            cache.announce([(0, 2), (1, 2)].into_iter());
            wait_for(|| cache.lock().bytes == 4);
            assert!((10..20).all(|index| decodes(&cache, index, 3)));
            assert!(!decodes(&cache, 0, 2) && cache.lock().bytes <= 10);
            // Who has waited too long is forgotten.
            cache.lock().clock += LONGEST_WAIT;
            assert!((20..23).all(|index| decodes(&cache, index, 3)) && decodes(&cache, 1, 2));
        },
    );
}

#[test]
fn one_who_asks_waits_for_a_group_in_flight_and_tries_again_after_an_error() {
    let cache = cache(100);
    let begun = Barrier::new(2);
    let failing = |_| {
        begun.wait();
        begun.wait();
        Err(Error::LoaderStopped)
    };
    with_ahead(&cache, failing, || {
        cache.announce([(7, 5)].into_iter());
        begun.wait();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| decodes(&cache, 7, 5));
            wait_for(|| cache.lock().ahead == 0);
            begun.wait();
            assert!(asked.join().unwrap(), "the error in the background is not the one who asks's");
        });
        let state = cache.lock();
        assert_eq!((state.ahead, state.bytes, state.announced.len()), (0, 5, 0));
    });
}

#[test]
fn what_is_forgotten_takes_no_memory() {
    let cache = cache(100);
    assert!((0..4).all(|index| decodes(&cache, index, 5)));
    cache.announce((4..8).map(|index| (index, 5)));
    cache.forget(1..6);
    let state = cache.lock();
    assert_eq!((state.bytes, state.slots.len(), state.announced.len()), (5, 1, 2));
}

#[test]
fn a_group_that_is_asked_for_first_is_not_decoded_ahead() {
    let cache = cache(100);
    cache.announce([(1, 5), (2, 5)].into_iter());
    assert!(decodes(&cache, 1, 5));
    assert_eq!(cache.lock().announced, [(2, 5)]);
    cache.announce((100..10_000).map(|index| (index, 5)));
    assert_eq!(cache.lock().announced.len(), MOST_ANNOUNCED);
}
