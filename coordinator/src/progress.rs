//! Progress on standard error; hidden where that is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// Returns a running count of `what`, for work whose length is not known before.
pub(crate) fn counter(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(what);
    match ProgressStyle::with_template("{spinner} {msg} {human_pos} ({per_sec})") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
