//! Output for people and for scripts.

use serde::Serialize;
use shared::stats::Measured;

use crate::api::engine::BillNow;
use crate::error::Result;

/// Prints what was paid.
pub(crate) fn print_bill(bill: &BillNow) {
    println!(
        "calls {} (and {} answers reused), tokens {} ({} cached) + {}, cost ${:.4} ({})",
        bill.calls,
        bill.reused,
        bill.prompt_tokens,
        bill.cached_tokens,
        bill.completion_tokens,
        bill.cost_usd,
        bill.prices
    );
    if let Some(cap) = bill.cap_usd {
        println!(
            "${:.4} paid in all and ${:.4} that may have been, of at most ${cap:.4}",
            bill.account_usd, bill.lost_usd
        );
    }
}

/// Prints a command's result for scripts.
pub(crate) fn print_json<T: Serialize>(result: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(result).map_err(|error| shared::Error::Config(error.to_string()))?;
    println!("{text}");
    Ok(())
}

/// Returns `count` as a share of `total` in percent; 0 of 0 is 0.
pub(crate) fn percent(count: usize, total: usize) -> f64 {
    100.0 * count as f64 / total.max(1) as f64
}

/// Returns a measured share with its interval, a dash where nothing was measured.
pub(crate) fn measured(share: Option<Measured>) -> String {
    match share {
        Some(Measured { value, low, high, .. }) => format!("{value:.1} ({low:.1}–{high:.1})"),
        None => "–".to_owned(),
    }
}
