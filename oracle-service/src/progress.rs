//! Progress on standard error; hidden where that is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// Returns a bar over `length` of `what`.
pub(crate) fn bar(what: &'static str, length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64).with_message(what);
    match ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
