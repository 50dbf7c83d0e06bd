//! Reads `[oracle]`: who labels, corrects and judges, how fast and for how much.

use super::document::Value;
use super::judging;
use super::problems::Table;
use super::values::{Expected, Reader};
use super::{Mock, Oracle};

const ORACLE: [&str; 18] = [
    "model",
    "base_url",
    "policy",
    "mock",
    "concurrency",
    "ckpt_every",
    "both",
    "corrections",
    "max_tokens",
    "max_unlabelled_pct",
    "prices",
    "mode",
    "deadline_h",
    "online_rpm",
    "max_cost_usd",
    "requests_per_minute",
    "tokens_per_minute",
    "endpoints",
];
const DEFAULT_URL: &str = "https://api.openai.com/v1";
const DEFAULT_MODEL: &str = "gpt-4o";
const MOCK_MODEL: &str = "mock-oracle";
const MODES: [&str; 3] = ["online", "batch", "auto"];

impl Reader<'_, '_> {
    pub(super) fn oracle(&mut self, table: &Table<'_>, in_world: Option<bool>) -> Option<Oracle> {
        self.problems.unknown_keys(table, &[&ORACLE[..], &judging::KEYS].concat());
        let (mock, has_sense) = self.mock(table, in_world).map_or((None, false), |mock| (mock, true));
        let policy = self.outside_file(table, "policy", Expected::Text);
        if has_sense && policy.is_none() && mock.is_none() && table.get("policy").is_none() {
            self.missing::<()>(table, "policy", "a file with the policy's text (or set mock)");
        }
        let base_url = self.problems.string(table, "base_url");
        if let Some(url) = &base_url
            && !url
                .split_once("://")
                .is_some_and(|(scheme, rest)| ["http", "https"].contains(&scheme) && !rest.is_empty())
        {
            let problem = format!("is {url:?}; expected http(s)://HOST[:PORT]/v1");
            self.problems.wrong::<()>(table, "base_url", problem);
        }
        let default_url = mock.is_none().then(|| DEFAULT_URL.to_owned());
        let default_model = if mock.is_some() { MOCK_MODEL } else { DEFAULT_MODEL };
        let percent = |value: f64| (0.0..=100.0).contains(&value);
        let concurrency = self.problems.count(table, "concurrency", 1).unwrap_or(8);
        if concurrency > 4096 {
            self.problems.wrong::<()>(table, "concurrency", format!("is {concurrency}; expected at most 4096"));
        }
        let mut amount = |key| self.problems.number(table, key, |value| value > 0.0, "a number above 0");
        let (max_cost_usd, requests_per_minute, tokens_per_minute) =
            (amount("max_cost_usd"), amount("requests_per_minute"), amount("tokens_per_minute"));
        if table.get("endpoints").is_some() {
            for key in ["base_url", "requests_per_minute", "tokens_per_minute"] {
                if table.get(key).is_some() {
                    self.problems.wrong::<()>(table, key, "has no effect beside oracle.endpoints, which names its own");
                }
            }
        }
        has_sense.then_some(Oracle {
            model: self.problems.string(table, "model").unwrap_or_else(|| default_model.to_owned()),
            base_url: base_url.or(default_url),
            policy,
            mock,
            concurrency: concurrency.min(4096) as u32,
            ckpt_every: self.problems.count(table, "ckpt_every", 0).unwrap_or(1000),
            both: self.problems.flag(table, "both").unwrap_or(true),
            corrections: self.problems.flag(table, "corrections").unwrap_or(false),
            max_tokens: self.problems.count(table, "max_tokens", 1).unwrap_or(512).min(u64::from(u32::MAX)) as u32,
            max_unlabelled_pct: self
                .problems
                .number(table, "max_unlabelled_pct", percent, "a share from 0 to 100")
                .unwrap_or(5.0),
            prices: self.outside_file(table, "prices", Expected::File),
            mode: self.problems.choice(table, "mode", &MODES).unwrap_or_default(),
            deadline_h: self.problems.number(table, "deadline_h", |h| h > 0.0, "hours above 0").unwrap_or_default(),
            online_rpm: self.problems.count(table, "online_rpm", 1).unwrap_or(0).min(u64::from(u32::MAX)) as u32,
            max_cost_usd,
            requests_per_minute,
            tokens_per_minute,
            endpoints: self.outside_file(table, "endpoints", Expected::File),
            judging: self.judging(table),
        })
    }

    /// Reads what the mock answers by; `Some(None)` for no mock.
    fn mock(&mut self, table: &Table<'_>, in_world: Option<bool>) -> Option<Option<Mock>> {
        match table.get("mock").map(|node| &node.value) {
            None | Some(Value::Boolean(false)) => Some(None),
            Some(Value::Boolean(true)) if in_world != Some(false) => Some(Some(Mock::World)),
            Some(Value::Boolean(true)) => {
                self.problems.wrong(table, "mock", "is true without data.world; name a rule file to answer by")
            }
            Some(Value::String(_)) => {
                self.outside_file(table, "mock", Expected::File).map(|file| Some(Mock::Rules(file)))
            }
            Some(other) => {
                let problem = format!("expected true or a rule file, found {}", other.what());
                self.problems.wrong(table, "mock", problem)
            }
        }
    }
}
