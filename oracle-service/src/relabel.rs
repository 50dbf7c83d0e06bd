//! Another judge relabels only on request.
//!
//! Answers are kept by everything that shapes them, so with another model none of a job's is found again and all would be
//! paid for anew, silently. The store remembers by which judges an input was labelled under a policy; another one is
//! refused, with what exists and what it would cost, until it is asked for. Going back to a known judge is free.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::record::Record;
use shared::store::Change;

use crate::api::request::{Form, Model};
use crate::error::{Error, Result};
use crate::judging::PairForm;
use crate::oracle::Asker;
use shared::prices::Tokens;

const JUDGES: &str = "judges";

/// What of a judge shapes the keys of its first answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct JudgeId {
    model: String,
    #[serde(default)]
    logprobs: bool,
    #[serde(default)]
    one_call: bool,
    #[serde(default)]
    completion_tokens_key: bool,
}

/// What a judge left in the ledger of an input.
#[derive(Debug, Default, PartialEq)]
struct Left {
    pairs: u64,
    labelled: u64,
    calls: u64,
    tokens: Tokens,
}

/// Checks that an input was labelled by this judge or by none, or that relabelling is asked for; remembers the judge.
///
/// # Errors
/// Labels by another judge exist, and nobody asked to relabel; a file or the store cannot be read.
pub(crate) async fn check(asker: &Asker, input: &Path, form: PairForm, relabel: bool) -> Result<()> {
    let store = asker.ledger.store();
    let named = std::fs::canonicalize(input).unwrap_or_else(|_| input.to_owned());
    let id = json!({"input": named.display().to_string(), "policy": asker.model.policy}).to_string();
    let id = &blake3::hash(id.as_bytes()).to_hex()[..32];
    let mut known: Vec<JudgeId> = store.get(JUDGES, id)?.unwrap_or_default();
    let own = JudgeId {
        model: asker.model.name.clone(),
        logprobs: asker.judging.with_logprobs(),
        one_call: form == PairForm::OneCall,
        completion_tokens_key: asker.model.completion_tokens_key,
    };
    if known.contains(&own) {
        return Ok(());
    }
    if !relabel {
        for other in &known {
            let left = other.left(asker, input)?;
            if left.labelled > 0 {
                return Err(Error::Relabel(refusal(input, other, &own, &left, asker)));
            }
        }
    }
    known.push(own);
    store.commit(vec![Change::put(JUDGES, id, &known)]).await?;
    Ok(())
}

impl JudgeId {
    /// Counts what the ledger holds by this judge.
    fn left(&self, asker: &Asker, input: &Path) -> Result<Left> {
        let model = Model {
            name: self.model.clone(),
            completion_tokens_key: self.completion_tokens_key,
            policy: asker.model.policy.clone(),
        };
        let form = Form { logprobs: self.logprobs, ..Form::default() };
        let mut left = Left::default();
        shared::input::for_each(input, |_, record: Record| {
            left.pairs += 1;
            let prompt = record.prompt.prompt_text();
            let (chosen, rejected) = (record.chosen.response(), record.rejected.unwrap_or_default().response());
            let requests = if self.one_call {
                vec![model.pair(&prompt, [&chosen, &rejected], form)]
            } else {
                vec![model.verdict(&prompt, &chosen, form), model.verdict(&prompt, &rejected, form)]
            };
            for (place, request) in requests.iter().enumerate() {
                if let Some(answer) = asker.ledger.answer(&request.key())? {
                    left.labelled += u64::from(place == 0);
                    left.calls += 1;
                    left.tokens.prompt += answer.tokens.prompt;
                    left.tokens.completion += answer.tokens.completion;
                }
            }
            Ok(())
        })?;
        Ok(left)
    }
}

impl std::fmt::Display for JudgeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.model)?;
        if self.one_call {
            f.write_str(", one call per pair")?;
        }
        if self.logprobs {
            f.write_str(", with log-probabilities")?;
        }
        if self.completion_tokens_key {
            f.write_str(", with max_completion_tokens")?;
        }
        Ok(())
    }
}

fn refusal(input: &Path, other: &JudgeId, own: &JudgeId, left: &Left, asker: &Asker) -> String {
    let cost = match asker.prices.cost(&own.model, left.tokens) {
        Some(cost) => format!("about ${cost:.4}"),
        None => {
            format!("{} + {} tokens at a price the table does not know", left.tokens.prompt, left.tokens.completion)
        }
    };
    format!(
        "{}: {} of {} pairs are labelled under this policy by another judge ({other}); labelling them by this one ({own}) \
         asks again what {} calls have answered, for {cost}. Give --relabel (oracle.relabel = true in a run file) to do \
         so, or the settings of the other judge to keep its labels",
        input.display(),
        left.labelled,
        left.pairs,
        left.calls
    )
}
