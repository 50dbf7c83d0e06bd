//! How a correction is reached: written, judged, and written again where the judge does not accept it.

use super::{Judged, Source, written};
use crate::api::engine::Asked;
use crate::api::ledger::Answer;
use crate::api::request::Model;
use crate::error::Result;
use crate::oracle::Decision;

/// A correction, already judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Correction {
    Accepted(String),
    /// Written as often as allowed, and found to violate each time, or not decided; with the last reason.
    NotAccepted(String),
    UnknownPrompt(String),
}

/// A correction with all that was tried for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Corrected {
    pub(crate) correction: Correction,
    pub(crate) tries: Vec<Try>,
}

/// One reply that was written, by the key of its answer, and its verdict; without a reply there is no verdict.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Try {
    pub(crate) reply: Option<(String, Answer)>,
    pub(crate) judged: Option<Judged>,
    /// Why it was not accepted.
    pub(crate) problem: Option<String>,
}

/// How long a correction may be and how often one is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CorrectionLimit {
    pub(crate) max_tokens: u32,
    pub(crate) tries: u32,
}

/// A model that writes corrections.
pub(crate) struct Writer<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) model: &'a Model,
    pub(crate) limit: CorrectionLimit,
}

impl Writer<'_> {
    /// Writes a reply to a prompt until `judge` accepts one. `violating` is the reply not to be imitated.
    ///
    /// # Errors
    /// No question can be answered until someone acts.
    pub(crate) async fn correct(
        &self,
        prompt: &str,
        violating: &str,
        judge: impl AsyncFn(&str) -> Result<Judged>,
    ) -> Result<Corrected> {
        let max_tokens = self.limit.max_tokens;
        let mut tries: Vec<Try> = Vec::new();
        let mut rejected: Option<String> = None;
        for earlier in 0..self.limit.tries.max(1) {
            let request = self.model.correction(prompt, violating, max_tokens, earlier, rejected.as_deref());
            let (reply, text) = match self.source.ask(&request).await? {
                Asked::Dead(reason) => (None, Err(reason)),
                Asked::Answered(answer) => {
                    let text = match written(&answer) {
                        Ok(_) if answer.finish == "length" => {
                            Err(format!("the reply is longer than {max_tokens} tokens"))
                        }
                        text => text,
                    };
                    (Some((request.key(), answer)), text)
                }
            };
            let text = match text {
                Ok(text) => text,
                Err(problem) => {
                    tries.push(Try { reply, judged: None, problem: Some(problem) });
                    continue;
                }
            };
            let judged = judge(&text).await?;
            let problem = not_accepted(&judged.decision);
            tries.push(Try { reply, judged: Some(judged), problem: problem.clone() });
            if problem.is_none() {
                return Ok(Corrected { correction: Correction::Accepted(text), tries });
            }
            rejected = Some(text);
        }
        let last = tries.last().and_then(|last| last.problem.clone()).unwrap_or_default();
        Ok(Corrected { correction: Correction::NotAccepted(last), tries })
    }
}

/// Returns why a correction with this verdict is not used.
pub(crate) fn not_accepted(decision: &Decision) -> Option<String> {
    match decision {
        Decision::Compliant => None,
        Decision::Violates => Some("the judge finds that it violates the policy".into()),
        Decision::Uncertain(reason) => Some(format!("the judge is not sure: {reason}")),
        Decision::Dead(reason) => Some(format!("the judge gave no answer: {reason}")),
        Decision::UnknownPrompt(problem) => Some(problem.clone()),
    }
}
