//! Options of a gang without a coordinator, and where a gang's time goes.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tch::Device;

use crate::collective::ring::{self, Membership, Ring};
use crate::collective::transport::{ExchangeArgs, Met};
use crate::collective::{Alone, Collective};
use crate::error::{Error, Result};

/// A gang without a coordinator: the same command on every member, each with its rank. Checkpoints and outputs must lie
/// where all members see them.
#[derive(Debug, Clone, Args)]
pub struct GangArgs {
    /// This member's number in --peers, from 0.
    #[arg(long, default_value_t = 0, requires = "peers")]
    pub rank: usize,
    /// Where the members listen, in rank order, separated by commas: host:port. The secret they share is read from
    /// TRACE_GANG_SECRET.
    #[arg(long, value_delimiter = ',', value_name = "ADDRS")]
    pub peers: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub exchange: ExchangeArgs,
}

impl GangArgs {
    /// Joins the gang the options name; a world of one where they name none.
    ///
    /// # Errors
    /// The rank is none of the peers, the secret is missing, the address cannot be listened at, or a member does not come.
    pub fn join(&self, device: impl FnOnce() -> Result<Device>) -> Result<Box<dyn Collective>> {
        if self.peers.is_empty() {
            return Ok(Box::new(Alone));
        }
        let Some(own) = self.peers.get(self.rank).filter(|_| self.peers.len() > 1) else {
            let peers = self.peers.len();
            return Err(Error::Config(format!(
                "--rank {} and {peers} --peers do not fit: 2 or more members",
                self.rank
            )));
        };
        let secret = std::env::var("TRACE_GANG_SECRET").unwrap_or_default();
        if secret.is_empty() {
            return Err(Error::Config("TRACE_GANG_SECRET is not set; a gang's members share a secret".into()));
        }
        let listener = TcpListener::bind(own).map_err(|e| Error::Config(format!("--peers: {own}: {e}")))?;
        let membership = Membership {
            rank: self.rank,
            peers: self.peers.clone(),
            secret: *blake3::hash(secret.as_bytes()).as_bytes(),
            label: "train".into(),
            lanes: ring::LANES,
            form_deadline: Duration::from_secs(60),
            call_deadline: self.exchange.call_deadline(),
            given_up: Arc::default(),
        };
        Met::new(Ring::form(&listener, &membership)?).travel(self.exchange, device()?, None)
    }
}

/// Where the time of a rank's steps went.
#[derive(Debug, Default)]
pub struct GangTimes {
    /// All of it.
    pub steps: Duration,
    /// For the slowest rank of each step.
    pub waited: Duration,
    /// In calls that were not made beside the computation.
    pub calls: Duration,
}

impl GangTimes {
    /// Exchanges once all ranks have come, so that waiting for them and the exchange are told apart.
    ///
    /// # Errors
    /// A member of the gang is gone.
    pub fn exchange<T>(
        &mut self,
        gang: &mut dyn Collective,
        work: impl FnOnce(&mut dyn Collective) -> Result<T>,
    ) -> Result<T> {
        let come = Instant::now();
        if gang.world_size() > 1 {
            gang.barrier()?;
        }
        let all_come = Instant::now();
        self.waited += all_come - come;
        let done = work(gang);
        self.calls += all_come.elapsed();
        done
    }

    /// Returns them as figures of the run's summary.
    pub fn told(&self) -> Value {
        let share = |part: Duration| part.as_secs_f64() / self.steps.as_secs_f64().max(f64::MIN_POSITIVE);
        json!({
            "waited_seconds": self.waited.as_secs_f64(), "call_seconds": self.calls.as_secs_f64(),
            "waited_share": share(self.waited), "call_share": share(self.calls),
        })
    }
}
