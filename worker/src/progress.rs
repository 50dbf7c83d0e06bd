//! Progress bars on standard error; silent when it is not a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Returns a bar with rate and time left.
pub fn bar(name: &'static str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>20} [{bar:32}] {pos}/{len} {per_sec} eta {eta} {msg}")
        .expect("the template is a constant")
        .progress_chars("=> ");
    ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr()).with_style(style).with_prefix(name)
}
