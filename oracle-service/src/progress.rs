//! How far a job is: a bar on a terminal, a line now and then elsewhere, events over the wire in the service.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::api::engine::BillNow;

/// Where nobody watches a terminal, a line at most so often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How far a job is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub(crate) done: u64,
    pub(crate) total: u64,
    pub(crate) bill: Option<BillNow>,
    /// What it waits for.
    pub(crate) waiting: Option<String>,
}

/// Takes note of progress.
pub(crate) type Sink<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Shows progress to people.
pub(crate) struct Shown {
    what: &'static str,
    bar: ProgressBar,
    last_line: Mutex<Option<Instant>>,
}

impl Shown {
    pub(crate) fn new(what: &'static str) -> Shown {
        let bar = ProgressBar::new(0);
        let template = "{prefix} {wide_bar} {human_pos}/{human_len} {eta} {msg}";
        let bar = match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        Shown { what, bar: bar.with_prefix(what), last_line: Mutex::new(None) }
    }

    pub(crate) fn show(&self, progress: Progress) {
        let cost = progress.bill.as_ref().map(|bill| cost(bill, progress.done, progress.total)).unwrap_or_default();
        if std::io::stderr().is_terminal() {
            self.bar.set_length(progress.total);
            self.bar.set_position(progress.done);
            self.bar.set_message(match &progress.waiting {
                Some(waiting) => format!("{cost} {waiting}"),
                None => cost,
            });
            return;
        }
        let Ok(mut last) = self.last_line.lock() else { return };
        let now = Instant::now();
        // The first call only starts the clock: short jobs need no line.
        if now.duration_since(*last.get_or_insert(now)) >= LINE_EVERY {
            *last = Some(now);
            let waiting = progress.waiting.map(|waiting| format!(" ({waiting})")).unwrap_or_default();
            tracing::info!("{}: {} of {} {cost}{waiting}", self.what, progress.done, progress.total);
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Returns what was paid and what it comes to at the end.
fn cost(bill: &BillNow, done: u64, total: u64) -> String {
    match bill.projected_usd(done, total) {
        Some(projected) => format!("${:.4} of about ${projected:.4}", bill.cost_usd),
        None => format!("${:.4}", bill.cost_usd),
    }
}
