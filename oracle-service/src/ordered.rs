//! Many items worked on at once, their outcomes handed on in the order of the items.
//!
//! An item that takes long holds back what is handed on, not what is done: outcomes of later ones wait for it in memory, up
//! to a bound that a request can hang through without the others standing still.

use std::collections::BTreeMap;

use futures::stream::{FuturesUnordered, Stream, StreamExt};

/// Outcomes that wait for an earlier one at most; a pair with its verdicts takes a few kilobytes.
const HELD: usize = 16_384;

/// Works on up to `at_once` items; after the first failure no further item is begun.
pub(crate) fn ordered<F, T, E>(items: impl Iterator<Item = F>, at_once: usize) -> impl Stream<Item = Result<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    let order =
        Order { items, running: FuturesUnordered::new(), held: BTreeMap::new(), begun: 0, next: 0, ended: false };
    futures::stream::unfold(order, move |mut order| async move {
        loop {
            if let Some(outcome) = order.held.remove(&order.next) {
                order.next += 1;
                return Some((outcome, order));
            }
            while !order.ended && order.running.len() < at_once.max(1) && order.held.len() < HELD {
                let Some(item) = order.items.next() else {
                    order.ended = true;
                    break;
                };
                let place = order.begun;
                order.begun += 1;
                order.running.push(async move { (place, item.await) });
            }
            let (place, outcome) = order.running.next().await?;
            order.ended |= outcome.is_err();
            order.held.insert(place, outcome);
        }
    })
}

struct Order<I, R, T, E> {
    items: I,
    running: FuturesUnordered<R>,
    /// Outcomes by their items' places.
    held: BTreeMap<usize, Result<T, E>>,
    begun: usize,
    next: usize,
    /// No further item is begun.
    ended: bool,
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::TryStreamExt;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn one_item_that_hangs_holds_up_no_other() {
        let (done, release) = (Cell::new(0), Notify::new());
        let (done, release) = (&done, &release);
        let items = (0..2000).map(|item| async move {
            match item {
                3 => release.notified().await,
                _ => tokio::task::yield_now().await,
            }
            done.set(done.get() + 1);
            if done.get() == 1999 {
                // Everything else is done: only now the one that hangs ends.
                release.notify_one();
            }
            Ok::<_, ()>(item)
        });
        let outcomes: Vec<i32> = ordered(items, 4).try_collect().await.unwrap();
        assert_eq!(outcomes, (0..2000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn so_many_outcomes_wait_at_most() {
        let begun = Cell::new(0);
        let begun = &begun;
        let items = (0..3 * HELD).map(|item| async move {
            begun.set(begun.get() + 1);
            if item == 0 {
                while begun.get() < HELD + 1 {
                    tokio::task::yield_now().await;
                }
                // Far more than it takes to begin the others, if they were begun.
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
                assert!(begun.get() <= HELD + 16, "{} were begun", begun.get());
            }
            Ok::<_, ()>(item)
        });
        assert_eq!(ordered(items, 8).count().await, 3 * HELD);
    }

    #[tokio::test]
    async fn after_a_failure_no_further_item_is_begun_and_what_came_before_is_handed_on() {
        let begun = Cell::new(0);
        let begun = &begun;
        let items = (0..100).map(|item| async move {
            begun.set(begun.get() + 1);
            if item < 5 {
                tokio::task::yield_now().await;
            }
            if item == 7 { Err(item) } else { Ok(item) }
        });
        let mut outcomes = std::pin::pin!(ordered(items, 3));
        for expected in 0..7 {
            assert_eq!(outcomes.next().await, Some(Ok(expected)));
        }
        assert_eq!(outcomes.next().await, Some(Err(7)));
        assert!(begun.get() < 20, "{} were begun", begun.get());
    }
}
