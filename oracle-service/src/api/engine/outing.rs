//! Requests that are out, of all jobs of a process: of two that are equal only one is out at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// By key, with a channel that ends when the request is back.
#[derive(Debug, Clone, Default)]
pub(super) struct Out(Arc<Mutex<HashMap<String, watch::Receiver<()>>>>);

/// A request that is out, until dropped.
#[derive(Debug)]
pub(super) struct Outing {
    out: Out,
    key: String,
    _back: watch::Sender<()>,
}

/// Another job's request that is out.
#[derive(Debug)]
pub(super) struct Other(watch::Receiver<()>);

impl Out {
    /// Notes that a request goes out, unless an equal one is.
    pub(super) fn begin(&self, key: &str) -> Result<Outing, Other> {
        let mut out = self.lock();
        if let Some(other) = out.get(key) {
            return Err(Other(other.clone()));
        }
        let (back, receiver) = watch::channel(());
        out.insert(key.to_owned(), receiver);
        Ok(Outing { out: self.clone(), key: key.to_owned(), _back: back })
    }

    /// As [`Out::begin`], after the one that is out, where there is one.
    pub(super) async fn begin_after_others(&self, key: &str) -> Outing {
        loop {
            match self.begin(key) {
                Ok(outing) => return outing,
                Err(other) => other.back().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Other {
    /// Waits until it is back.
    pub(super) async fn back(mut self) {
        // Nothing is ever sent: the channel ends.
        while self.0.changed().await.is_ok() {}
    }
}

impl Drop for Outing {
    fn drop(&mut self) {
        self.out.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_equal_requests_one_is_out_and_the_next_when_it_is_back() {
        let out = Out::default();
        let first = out.begin("a").unwrap();
        let _unlike = out.begin("b").unwrap();
        let other = out.begin("a").unwrap_err();
        let next = out.begin_after_others("a");
        tokio::pin!(next);
        assert!(futures::poll!(&mut next).is_pending());
        drop(first);
        other.back().await;
        drop(next.await);
        out.begin("a").unwrap();
    }
}
