//! Stages of this process: the example world, pairs of the user's rows, splits, the report.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shared::{Error, Result};
use tokio_util::sync::CancellationToken;

use super::{Context, Progress, summary};
use crate::plan::Work;
use crate::run_file::Source;
use crate::{data, report};

const SHOWN_EVERY: Duration = Duration::from_millis(500);

/// Carries a stage out on the blocking pool.
pub(super) async fn carry_out(
    context: &Context,
    stage: usize,
    progress: &(dyn Fn(Progress) + Send + Sync),
    stop: CancellationToken,
) -> Result<()> {
    let rows = Arc::new(AtomicU64::new(0));
    let work = {
        let (context, rows, stop) = (context.clone(), rows.clone(), stop.clone());
        tokio::task::spawn_blocking(move || work(&context, stage, &rows, &stop))
    };
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done.map_err(|error| Error::Config(format!("the stage broke off: {error}")))?,
            () = tokio::time::sleep(SHOWN_EVERY) => {
                let done = rows.load(Ordering::Relaxed);
                progress(Progress { done, note: format!("{done} rows"), ..Progress::default() });
            }
        }
    }
}

fn work(context: &Context, stage: usize, rows: &AtomicU64, stop: &CancellationToken) -> Result<()> {
    let file = &context.file;
    match context.plan.stages[stage].work {
        Work::World => {
            let world = shared::policy_shift::World::new(file.run.seed);
            data::policy_shift::write(&world, &context.at("world")).map(|_| ())
        }
        Work::Prepare => {
            let Source::Input { files, num_samples } = &file.data.source else { return Ok(()) };
            let job = data::prepare::Job {
                input: files.clone(),
                output: context.pairs(),
                num_samples: num_samples.map(|n| n as usize),
                save_unused: false,
            };
            data::prepare::work(&job, &mut |read| {
                rows.store(read as u64, Ordering::Relaxed);
                if stop.is_cancelled() { Err(Error::Config("stopped".into())) } else { Ok(()) }
            })?;
            Ok(())
        }
        Work::Split => {
            let split = file.data.split.as_ref().ok_or_else(|| Error::Config("the run has no split".into()))?;
            data::split::work(&data::split::Job {
                input: context.labelled(),
                output_dir: context.at("splits"),
                train1_size: split.train1_size as usize,
                train2_size: split.train2_size as usize,
                seed: file.run.seed,
                stratified: split.stratified,
                group_by_prompt: split.group_by_prompt,
            })
            .map(|_| ())
        }
        Work::Report => {
            summary::write(context)?;
            report::make(&context.run_dir).map(|_| ())
        }
        other => unreachable!("{other:?} is no work of the coordinator"),
    }
}
