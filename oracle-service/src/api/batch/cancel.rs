//! Taking batches back: they are cancelled at the API, what they have answered is kept, and the rest is nobody's again.

use super::board::Board;
use super::drive::Driver;
use super::options::PaceArgs;
use super::part::Part;
use crate::api::engine::Engine;
use crate::error::Result;
use crate::progress::{Progress, Sink};

/// Cancels all open batches at an engine's API and waits until they have ended.
///
/// # Errors
/// The API cannot be used until someone acts; the cancellation goes on when it is asked for again.
pub(crate) async fn cancel(engine: &Engine, pace: &PaceArgs, sink: Sink<'_>) -> Result<()> {
    let _turn = engine.batch_turn().lock().await;
    let known = engine.parts().all()?;
    let next_number = known.iter().map(|part| part.number).max().unwrap_or(0) + 1;
    let open =
        known.into_iter().filter(|part| part.is_open() && part.base_url == engine.base_url()).collect::<Vec<Part>>();
    let begun = std::time::Instant::now();
    let report = |board: &mut Board| {
        let (done, total) = board.done();
        let waiting = Some(board.line(begun.elapsed()));
        sink(Progress { done, total, bill: Some(engine.bill()), waiting });
    };
    let driver = Driver::new(engine, pace, next_number, &report);
    driver.take_back();
    driver.drive(open, None).await.map(drop)
}
