//! Who decides: a rule file on this machine, or a language model behind an API. Commands and the service ask either by
//! the same two questions.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use shared::rules::Judge;

use crate::api::batch::{self, BatchArgs, Front};
use crate::api::endpoint;
use crate::api::engine::{BillNow, Engine, Handle, Home, Setup};
use crate::api::ledger::Ledger;
use crate::api::options::ApiArgs;
use crate::api::request::Model;
use crate::canary::{Canary, CanaryArgs};
use crate::error::{Error, Result};
use crate::judging::correcting::{Corrected, Correction, CorrectionLimit, Writer, not_accepted};
use crate::judging::{Judged, Judging, PairForm, PairJudged, Panel, Source};
use crate::progress::Sink;
use crate::review;
use shared::prices::Prices;

/// Where the key is read from; it is no option, since options show in process lists.
pub(crate) const KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// Who decides.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OracleArgs {
    /// Judge by a rule file (TOML), without a model: a world, or patterns with their verdicts
    #[arg(long, value_name = "FILE", conflicts_with_all = ["policy", "base_url", "prices"])]
    pub(crate) rules: Option<PathBuf>,
    /// Judge by a language model: the policy's text; the key comes from OPENAI_API_KEY
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// The model, by the API's name
    #[arg(long, value_name = "MODEL", default_value = "gpt-4o")]
    pub(crate) oracle_model: String,
    /// Address of the OpenAI-compatible API, up to and including /v1
    #[arg(long, value_name = "URL", env = "OPENAI_BASE_URL")]
    pub(crate) base_url: Option<String>,
    /// Folder of the ledger, which keeps every paid answer
    #[arg(long, value_name = "DIR", default_value = "oracle-state")]
    pub(crate) state: PathBuf,
    /// Requests on their way at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub(crate) concurrency: usize,
    /// Price table (TOML) instead of the program's own
    #[arg(long, value_name = "FILE")]
    pub(crate) prices: Option<PathBuf>,
    /// Name the answer's limit max_completion_tokens, as newer models want it
    #[arg(long)]
    pub(crate) max_completion_tokens: bool,
    #[command(flatten)]
    pub(crate) batch: BatchArgs,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    #[command(flatten)]
    pub(crate) judging: Judging,
    #[command(flatten)]
    pub(crate) canary: CanaryArgs,
}

/// Who pays for commands: whoever has the state folder.
pub(crate) const ACCOUNT: &str = "commands";

/// Items begun at once at least, so that a job's concurrency can be raised while it runs.
const LEAST_WINDOW: usize = 256;
const DEFAULT_URL: &str = "https://api.openai.com/v1";

/// Someone who can be asked.
pub(crate) enum Oracle {
    /// Rules decide at once and for nothing.
    Rules { file: PathBuf, judge: Box<Judge> },
    /// A model is asked over the network.
    Model(Box<Asker>),
}

/// A model with everything to ask it.
pub(crate) struct Asker {
    pub(crate) engine: Engine,
    pub(crate) model: Model,
    pub(crate) concurrency: usize,
    pub(crate) batch: BatchArgs,
    pub(crate) ledger: Ledger,
    pub(crate) prices: Prices,
    pub(crate) judging: Judging,
    pub(crate) canary: Option<Canary>,
}

/// A verdict on one response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Compliant,
    Violates,
    /// There are answers and no sure verdict among them, and why.
    Uncertain(String),
    /// There is no answer to be had.
    Dead(String),
    /// The rules' world does not know the prompt: the input is not for these rules.
    UnknownPrompt(String),
}

impl OracleArgs {
    /// Reads rules, policy, prices and key; opens the ledger.
    ///
    /// # Errors
    /// None of rules and policy is named; a file cannot be used; the key is missing; the ledger is in use.
    pub(crate) fn open(&self) -> Result<Oracle> {
        if let Some(rules) = &self.rules {
            return Oracle::of_rules(rules);
        }
        let policy = read_policy(self.policy.as_deref().ok_or(Error::NoJudge)?)?;
        let prices = Prices::load(self.prices.as_deref())?;
        let endpoints = self.api.endpoints(self.base_url.as_deref().unwrap_or(DEFAULT_URL), key)?;
        let canary = Canary::load(&self.canary)?;
        let ledger = Ledger::open(&self.state)?;
        let setup = Setup {
            endpoints,
            model: self.oracle_model.clone(),
            concurrency: self.concurrency,
            prices: prices.clone(),
            account: ACCOUNT.to_owned(),
            bill: None,
            max_cost_usd: self.api.max_cost_usd,
            deadline: self.api.deadline(),
            is_patient: false,
            fault: self.batch.pace.fault.clone(),
        };
        let engine = Engine::new(&Home::new(ledger.clone()).waiting_for(self.api.longest_outage), setup)?;
        let (concurrency, judging, batch) = (self.concurrency, self.judging, self.batch.clone());
        let model = self.model(policy);
        Ok(Oracle::Model(Box::new(Asker { engine, model, concurrency, batch, ledger, prices, judging, canary })))
    }

    /// Returns the model that these arguments name, under a policy.
    pub(crate) fn model(&self, policy: String) -> Model {
        Model { name: self.oracle_model.clone(), policy, completion_tokens_key: self.max_completion_tokens }
    }
}

/// Returns the API's key.
///
/// # Errors
/// It is not set, or cannot be one.
pub(crate) fn key() -> Result<SecretString> {
    std::env::var(KEY_VARIABLE).ok().as_deref().and_then(endpoint::secret).ok_or(Error::NoKey)
}

/// Reads a policy's text.
///
/// # Errors
/// The file cannot be read or holds no text.
pub(crate) fn read_policy(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).map_err(|source| shared::Error::io("read", file, source))?;
    if text.trim().is_empty() {
        return Err(shared::Error::file(file, "is empty; it must hold the policy's text").into());
    }
    Ok(text.trim().to_owned())
}

/// Checks an API's address.
///
/// # Errors
/// It is no http or https address.
pub(crate) fn check_url(url: &str) -> Result<()> {
    match url.split_once("://") {
        Some(("http" | "https", rest)) if names_a_user(rest) => Err(shared::Error::Config(
            "--base-url has a user or password before its host, which would stand in messages and in the state; keys are \
             given by OPENAI_API_KEY or an endpoint's key_env, key_file or headers"
                .into(),
        )
        .into()),
        Some(("http" | "https", rest)) if !rest.is_empty() => Ok(()),
        _ => Err(shared::Error::Config(format!("--base-url {url:?} is no address; expected http(s)://HOST[:PORT]/v1"))
            .into()),
    }
}

/// Returns whether what follows the scheme of an address has a user or a password before the host.
pub(crate) fn names_a_user(rest: &str) -> bool {
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

impl Oracle {
    /// Returns rules as an oracle.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(crate) fn of_rules(file: &Path) -> Result<Oracle> {
        Ok(Oracle::Rules { file: file.to_owned(), judge: Box::new(Judge::load(file)?) })
    }

    /// Returns how many items are worked on at once.
    pub(crate) fn window(&self) -> usize {
        match self {
            Oracle::Rules { .. } => 1,
            // Items that wait for their next try keep no place from others.
            Oracle::Model(asker) => (4 * asker.concurrency).max(LEAST_WINDOW),
        }
    }

    /// Returns who decides, for records.
    pub(crate) fn name(&self) -> String {
        match self {
            Oracle::Rules { file, .. } => file.display().to_string(),
            Oracle::Model(asker) => asker.model.name.clone(),
        }
    }

    /// Returns what was paid; rules cost nothing.
    pub(crate) fn bill(&self) -> Option<BillNow> {
        match self {
            Oracle::Rules { .. } => None,
            Oracle::Model(asker) => Some(asker.engine.bill()),
        }
    }

    /// Returns a hold on the job where a model is asked.
    pub(crate) fn handle(&self) -> Option<Handle> {
        match self {
            Oracle::Rules { .. } => None,
            Oracle::Model(asker) => Some(asker.engine.handle()),
        }
    }

    /// Returns what requests wait for, where one does.
    pub(crate) fn waiting(&self) -> Option<String> {
        match self {
            Oracle::Rules { .. } => None,
            Oracle::Model(asker) => asker.engine.waiting(),
        }
    }

    /// Has the questions of a job answered in batches first, where its mode says so. `walk` visits every
    /// item of the job.
    ///
    /// # Errors
    /// As [`Oracle::decide`].
    pub(crate) async fn in_batches(
        &self,
        job: &str,
        sink: Sink<'_>,
        walk: impl AsyncFn(&Front) -> Result<()>,
    ) -> Result<()> {
        match self {
            Oracle::Rules { .. } => Ok(()),
            Oracle::Model(asker) => {
                // Before the first walk, which would gather the canary's questions alone.
                asker.watch_canary().await?;
                batch::run(&asker.engine, &asker.batch, job, sink, walk).await
            }
        }
    }

    /// Decides whether a response complies.
    ///
    /// # Errors
    /// No question can be answered until someone acts.
    pub(crate) async fn judge(&self, prompt: &str, response: &str) -> Result<Judged> {
        match self {
            Oracle::Rules { judge, .. } => Ok(Judged::ruled(match judge.verdict(prompt, response, true) {
                Ok(verdict) if verdict.compliant => Decision::Compliant,
                Ok(_) => Decision::Violates,
                Err(unknown) => Decision::UnknownPrompt(unknown.to_string()),
            })),
            Oracle::Model(asker) => asker.judge(prompt, response).await,
        }
    }

    /// Decides whether the responses of a pair comply.
    ///
    /// # Errors
    /// As [`Oracle::judge`].
    pub(crate) async fn judge_pair(
        &self,
        prompt: &str,
        chosen: &str,
        rejected: &str,
        form: PairForm,
    ) -> Result<PairJudged> {
        match (form, self) {
            (PairForm::SkipRejected, _) => {
                let chosen = self.judge(prompt, chosen).await?;
                let needed = chosen.decision == Decision::Violates;
                let rejected = if needed { Some(self.judge(prompt, rejected).await?) } else { None };
                Ok(PairJudged { chosen, rejected })
            }
            (PairForm::OneCall, Oracle::Model(asker)) => asker.judge_at_once(prompt, [chosen, rejected]).await,
            _ => {
                let (chosen, rejected) = futures::try_join!(self.judge(prompt, chosen), self.judge(prompt, rejected))?;
                Ok(PairJudged { chosen, rejected: Some(rejected) })
            }
        }
    }

    /// Writes a compliant reply to a prompt and judges it, again where it is not accepted. `violating` is the reply not to
    /// be imitated. Rules always write the same, so they try once.
    ///
    /// # Errors
    /// As [`Oracle::judge`].
    pub(crate) async fn correct(&self, prompt: &str, violating: &str, limit: CorrectionLimit) -> Result<Corrected> {
        match self {
            Oracle::Rules { judge, .. } => {
                let Some(text) = judge.correct(prompt) else {
                    let problem = shared::rules::UnknownPrompt.to_string();
                    return Ok(Corrected { correction: Correction::UnknownPrompt(problem), tries: Vec::new() });
                };
                let judged = self.judge(prompt, &text).await?;
                let correction = match not_accepted(&judged.decision) {
                    None => Correction::Accepted(text),
                    Some(problem) => Correction::NotAccepted(problem),
                };
                Ok(Corrected { correction, tries: Vec::new() })
            }
            Oracle::Model(asker) => {
                let writer = Writer { source: Source::Engine(&asker.engine), model: &asker.model, limit };
                writer.correct(prompt, violating, async |text| asker.judge(prompt, text).await).await
            }
        }
    }
}

impl Asker {
    /// Returns the model as it is asked by this job, or by the canary of a day.
    pub(crate) fn panel(&self, canary_day: Option<u64>) -> Panel<'_> {
        Panel { source: Source::Engine(&self.engine), model: &self.model, forms: self.judging.forms(canary_day) }
    }

    async fn judge(&self, prompt: &str, response: &str) -> Result<Judged> {
        let item = review::item(&self.model.policy, prompt, response);
        if let Some(review) = review::of(&self.ledger, &item)? {
            return Ok(Judged::reviewed(item, review));
        }
        self.watch_canary().await?;
        let ballots = self.panel(None).response(prompt, response).await?;
        Ok(Judged::voted(item, ballots, self.judging.min_confidence))
    }

    async fn judge_at_once(&self, prompt: &str, responses: [&str; 2]) -> Result<PairJudged> {
        let items = responses.map(|response| review::item(&self.model.policy, prompt, response));
        let reviews = [review::of(&self.ledger, &items[0])?, review::of(&self.ledger, &items[1])?];
        let ballots = if reviews.iter().all(Option::is_some) {
            [Vec::new(), Vec::new()]
        } else {
            self.watch_canary().await?;
            self.panel(None).pair(prompt, responses).await?
        };
        let mut judged = items.into_iter().zip(reviews).zip(ballots).map(|((item, review), ballots)| match review {
            Some(review) => Judged::reviewed(item, review),
            None => Judged::voted(item, ballots, self.judging.min_confidence),
        });
        let mut next = || judged.next().expect("two responses have two verdicts");
        Ok(PairJudged { chosen: next(), rejected: Some(next()) })
    }

    async fn watch_canary(&self) -> Result<()> {
        match &self.canary {
            // A walk that gathers batches keeps nothing and waits for nothing: a day that begins meanwhile is asked about in
            // the pass that follows.
            Some(canary) if !self.engine.is_gathering() => canary.watch(self).await,
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns the arguments of a judge by rules.
    pub(crate) fn rules(file: PathBuf) -> OracleArgs {
        OracleArgs {
            rules: Some(file),
            policy: None,
            oracle_model: "none".into(),
            base_url: None,
            state: PathBuf::from("none"),
            concurrency: 1,
            prices: None,
            max_completion_tokens: false,
            batch: BatchArgs::default(),
            api: ApiArgs::default(),
            judging: Judging::default(),
            canary: CanaryArgs::default(),
        }
    }

    #[test]
    fn an_address_needs_a_scheme() {
        check_url("http://127.0.0.1:7402/v1").unwrap();
        check_url("https://api.openai.com/v1").unwrap();
        check_url("https://api.openai.com/v1?at=a@b").unwrap();
        for url in ["127.0.0.1:7402", "ftp://x", "http://", ""] {
            assert!(check_url(url).unwrap_err().to_string().contains("--base-url"), "{url}");
        }
        let told = check_url("https://me:secret@host/v1").unwrap_err().to_string();
        assert!(told.contains("user or password") && !told.contains("secret"), "{told}");
    }

    #[test]
    fn a_policy_must_hold_text() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.md");
        std::fs::write(&file, " \n").unwrap();
        assert!(read_policy(&file).unwrap_err().to_string().contains("policy.md: is empty"));
        std::fs::write(&file, " Be kind.\n").unwrap();
        assert_eq!(read_policy(&file).unwrap(), "Be kind.");
    }
}
