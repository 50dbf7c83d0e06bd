//! The ledger of a service that runs, for commands that would otherwise open it themselves.

use std::path::PathBuf;
use std::time::Duration;

use proto::oracle::ledger_keeper_server::LedgerKeeper;
use proto::oracle::{BatchesReply, BatchesRequest, Reviews, ReviewsStored};
use tonic::{Request, Response, Status};

use crate::api::batch::{BatchArgs, PaceArgs};
use crate::api::engine::{Home, now_ms};
use crate::batches::{self, Cancel};
use crate::error::Error;
use crate::review;

pub(super) struct Keeper {
    pub(super) home: Home,
    pub(super) prices: Option<PathBuf>,
}

#[tonic::async_trait]
impl LedgerKeeper for Keeper {
    async fn import_reviews(&self, request: Request<Reviews>) -> std::result::Result<Response<ReviewsStored>, Status> {
        let Reviews { by, verdicts } = request.into_inner();
        if let Some(wrong) = verdicts.iter().find(|verdict| !review::is_item(&verdict.item)) {
            return Err(Status::invalid_argument(format!("{:?} names no item of a review file", wrong.item)));
        }
        let stored = verdicts.len() as u64;
        self.home.ledger.store().commit(review::changes(&verdicts, &by, now_ms())).await.map_err(Error::from)?;
        tracing::info!(stored, by, "verdicts of people are imported");
        Ok(Response::new(ReviewsStored { stored }))
    }

    async fn batches(&self, request: Request<BatchesRequest>) -> std::result::Result<Response<BatchesReply>, Status> {
        let request = request.into_inner();
        if request.cancel && self.home.has_batches_under_way() {
            return Err(Status::failed_precondition(
                "a job of this service has batches under way; cancel its run first (`coordinator cancel`), its batches stay \
                 where they are, then cancel them",
            ));
        }
        let poll = Duration::try_from_secs_f64(request.poll_s).ok().filter(|poll| !poll.is_zero());
        let pace = PaceArgs { batch_poll: poll.unwrap_or(BatchArgs::default().pace.batch_poll), fault: None };
        let (home, own_prices) = (self.home.clone(), self.prices.clone());
        let runtime = tokio::runtime::Handle::current();
        let listed = tokio::task::spawn_blocking(move || {
            let prices = if request.prices.is_empty() { own_prices } else { Some(PathBuf::from(&request.prices)) };
            let endpoints = (!request.endpoints.is_empty()).then(|| PathBuf::from(&request.endpoints));
            let cancel = Cancel { prices: prices.as_deref(), endpoints: endpoints.as_deref(), pace };
            let cancel = request.cancel.then_some(&cancel);
            runtime.block_on(batches::listed(&home, cancel, &|_| {}))
        });
        let listed = listed.await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(BatchesReply { listed_json: serde_json::to_string(&listed).unwrap_or_default() }))
    }
}
