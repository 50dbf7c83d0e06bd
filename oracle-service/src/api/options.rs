//! Options of every command that asks an API: where, how fast, for how much.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::batch::parse_duration;
use super::endpoint::Endpoints;
use super::pacer::PerMinute;
use crate::error::Result;
use crate::oracle;

/// How an API is asked.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ApiArgs {
    /// Endpoints to ask (TOML: [[endpoint]] with name, base_url, key_env or key_file, headers, query, weight, rpm, tpm,
    /// concurrency, model) instead of one --base-url
    #[arg(long, value_name = "FILE", conflicts_with_all = ["base_url", "rules", "rpm", "tpm"])]
    pub(crate) endpoints: Option<PathBuf>,
    /// Stop before more than this may be paid, in USD: a hard limit on all that the state folder's commands have paid,
    /// earlier runs included. Exit code 4; raised, the same command goes on
    #[arg(long, value_name = "USD", value_parser = amount)]
    pub(crate) max_cost_usd: Option<f64>,
    /// Requests a minute at most, below what the API allows
    #[arg(long, value_name = "N", value_parser = amount)]
    pub(crate) rpm: Option<f64>,
    /// Tokens a minute at most, below what the API allows
    #[arg(long, value_name = "N", value_parser = amount)]
    pub(crate) tpm: Option<f64>,
    /// Longest time from sending a request to the last byte of its answer
    #[arg(long, value_name = "SECONDS", default_value_t = DEADLINE_S, value_parser = clap::value_parser!(u64).range(1..=3600))]
    request_timeout_s: u64,
    /// Longest outage that is waited through (90m, 6h, 3d); after it the items that are left at an endpoint that only fails
    /// are listed as dead letters
    #[arg(long, value_name = "TIME", default_value = "6h", value_parser = parse_duration)]
    pub(crate) longest_outage: Duration,
}

const DEADLINE_S: u64 = 120;

/// How long an answer may take where nobody says.
pub(crate) const DEADLINE: Duration = Duration::from_secs(DEADLINE_S);

impl ApiArgs {
    /// Returns the endpoints to ask; `key` is called where a single address is asked.
    ///
    /// # Errors
    /// The file of endpoints, the address or the key cannot be used.
    pub(crate) fn endpoints(&self, base_url: &str, key: impl FnOnce() -> Result<SecretString>) -> Result<Endpoints> {
        if let Some(file) = &self.endpoints {
            return Ok(Endpoints::load(file, |name| std::env::var(name).ok())?);
        }
        oracle::check_url(base_url)?;
        Ok(Endpoints::single(base_url, key()?, PerMinute { requests: self.rpm, tokens: self.tpm }))
    }

    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_secs(self.request_timeout_s)
    }
}

/// Reads a number above 0.
pub(crate) fn amount(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(amount) if amount.is_finite() && amount > 0.0 => Ok(amount),
        _ => Err("expected a number above 0".to_owned()),
    }
}
