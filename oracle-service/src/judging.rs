//! How a verdict is reached: which forms of the question a model is asked, and what its answers amount to.
//!
//! ```text
//! response ─▶ a person's verdict? ──yes──────────────────────────────▶ decision
//!                │ no
//!                ▼
//!   for each wording and vote: ask, once again if unclear ─▶ ballot ─▶ tally (pure) ─▶ decision and confidence
//! ```

pub(crate) mod correcting;
pub(crate) mod provenance;
mod tally;

use std::cell::RefCell;

use futures::future::try_join_all;

use crate::api::confidence;
use crate::api::engine::{Asked, Engine};
use crate::api::ledger::{Answer, Ledger, TokenLogprob};
use crate::api::reading::{Reading, read, read_pair};
use crate::api::request::{Form, Model, Request, Wording};
use crate::error::Result;
use crate::oracle::Decision;
use crate::review::Review;

/// How sure of itself a judge must be.
#[derive(Debug, Clone, Copy, PartialEq, clap::Args)]
pub(crate) struct Judging {
    /// Ask each question this often (odd) and take the majority; votes after the first are drawn at temperature 0.7 with
    /// seeds 43, 44, …
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = votes)]
    pub(crate) votes: u32,
    /// Ask also with the two words in the other order (and the two responses, with --one-call-per-pair) and take the
    /// verdict only where both wordings agree
    #[arg(long)]
    pub(crate) swap_wording: bool,
    /// Ask for log-probabilities and record the confidence they give
    #[arg(long)]
    pub(crate) logprobs: bool,
    /// Leave a response undecided, for people, where the confidence is below this: the share of the votes, each weighed by
    /// its log-probabilities where they are asked for; with a single vote they are asked for
    #[arg(long, value_name = "P", value_parser = probability)]
    pub(crate) min_confidence: Option<f64>,
}

impl Default for Judging {
    fn default() -> Judging {
        Judging { votes: 1, swap_wording: false, logprobs: false, min_confidence: None }
    }
}

impl Judging {
    /// Checks settings that came over the wire; no votes are one vote.
    ///
    /// # Errors
    /// The votes are even, or the confidence is no probability.
    pub(crate) fn checked(self) -> std::result::Result<Judging, String> {
        let votes = odd(self.votes.max(1))?;
        self.min_confidence.map(in_unit).transpose()?;
        Ok(Judging { votes, ..self })
    }

    /// Returns the forms in which every question is put; those of a canary carry its day.
    pub(crate) fn forms(&self, day: Option<u64>) -> Vec<Form> {
        let wordings = if self.swap_wording { &[Wording::Plain, Wording::Swapped][..] } else { &[Wording::Plain] };
        let logprobs = self.with_logprobs();
        let votes = |wording| (0..self.votes).map(move |vote| Form { wording, vote, logprobs, day });
        wordings.iter().flat_map(|wording| votes(*wording)).collect()
    }

    /// Returns whether log-probabilities are asked for.
    pub(crate) fn with_logprobs(&self) -> bool {
        self.logprobs || (self.min_confidence.is_some() && self.votes == 1)
    }
}

fn votes(text: &str) -> std::result::Result<u32, String> {
    odd(text.parse().map_err(|_| "expected an odd number".to_owned())?)
}

fn odd(votes: u32) -> std::result::Result<u32, String> {
    if votes % 2 == 1 && votes < 100 {
        Ok(votes)
    } else {
        Err(format!("votes is {votes}; expected an odd number below 100"))
    }
}

fn probability(text: &str) -> std::result::Result<f64, String> {
    in_unit(text.parse().map_err(|_| "expected a probability".to_owned())?)
}

fn in_unit(p: f64) -> std::result::Result<f64, String> {
    if (0.0..=1.0).contains(&p) {
        Ok(p)
    } else {
        Err(format!("min_confidence is {p}; expected a probability from 0 to 1"))
    }
}

/// How a pair is judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum PairForm {
    /// Both responses, one call each.
    #[default]
    Both,
    /// The rejected one only where the chosen one violates: its violation list is then missing in RETAIN records.
    SkipRejected,
    /// Both in one call, answered by a JSON object.
    OneCall,
}

/// Where answers come from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// The ledger, and the API for what is not there.
    Engine(&'a Engine),
    /// The ledger alone: nothing is sent.
    Stored(&'a Ledger),
    /// The ledger, if there is one; what is not there is counted, and who asked for it waits for ever.
    Counted(&'a Count<'a>),
}

/// Counts what would be asked.
pub(crate) struct Count<'a> {
    pub(crate) ledger: Option<&'a Ledger>,
    pub(crate) found: RefCell<Found>,
}

/// What was counted.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Answers that the ledger had.
    pub(crate) reused: u64,
    /// Requests it has no answer to.
    pub(crate) missing: Vec<Request>,
}

impl Source<'_> {
    async fn ask(&self, request: &Request) -> Result<Asked> {
        match self {
            Source::Engine(engine) => engine.ask(request).await,
            Source::Stored(ledger) => Ok(match ledger.answer(&request.key())? {
                Some(answer) => Asked::Answered(answer),
                None => Asked::Dead(format!("the ledger holds no answer to request {}", request.key())),
            }),
            Source::Counted(count) => match count.ledger.map(|ledger| ledger.answer(&request.key())).transpose()? {
                Some(Some(answer)) => {
                    count.found.borrow_mut().reused += 1;
                    Ok(Asked::Answered(answer))
                }
                _ => {
                    count.found.borrow_mut().missing.push(request.clone());
                    std::future::pending().await
                }
            },
        }
    }
}

/// A model that is asked every question in these forms.
pub(crate) struct Panel<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) model: &'a Model,
    pub(crate) forms: Vec<Form>,
}

/// What one question in one form came to, for one response.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ballot {
    pub(crate) form: Form,
    pub(crate) said: Said,
    /// How probable COMPLIANT was, of both words.
    pub(crate) probability: Option<f64>,
    /// The answers by their keys: one, or two where the first was unclear.
    pub(crate) answers: Vec<(String, Answer)>,
    /// The answers speak of the pair's other response too.
    pub(crate) shared: bool,
}

/// What a model said in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Compliant,
    Violates,
    /// Neither of the two words, twice; what it was.
    Unclear(String),
    /// There is no answer, and why.
    Nothing(String),
}

/// A verdict on a response with all that it rests on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judged {
    pub(crate) decision: Decision,
    pub(crate) confidence: Option<f64>,
    /// Names the response under its policy, whoever judges it; empty where rules decide.
    pub(crate) item: String,
    /// The person's verdict that was taken.
    pub(crate) review: Option<Review>,
    pub(crate) ballots: Vec<Ballot>,
}

impl Judged {
    /// Returns a verdict of rules: it rests on nothing but them.
    pub(crate) fn ruled(decision: Decision) -> Judged {
        Judged { decision, confidence: None, item: String::new(), review: None, ballots: Vec::new() }
    }

    /// Returns a person's verdict.
    pub(crate) fn reviewed(item: String, review: Review) -> Judged {
        let decision = if review.compliant { Decision::Compliant } else { Decision::Violates };
        Judged { decision, confidence: None, item, review: Some(review), ballots: Vec::new() }
    }

    /// Returns what ballots amount to.
    pub(crate) fn voted(item: String, ballots: Vec<Ballot>, min_confidence: Option<f64>) -> Judged {
        let (decision, confidence) = tally::tally(&ballots, min_confidence);
        Judged { decision, confidence, item, review: None, ballots }
    }
}

/// Verdicts on a pair; the second is none where it was not asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PairJudged {
    pub(crate) chosen: Judged,
    pub(crate) rejected: Option<Judged>,
}

impl Panel<'_> {
    /// Asks about one response in every form.
    ///
    /// # Errors
    /// No question can be answered until someone acts.
    pub(crate) async fn response(&self, prompt: &str, response: &str) -> Result<Vec<Ballot>> {
        try_join_all(self.forms.iter().map(|&form| async move {
            let request = self.model.verdict(prompt, response, form);
            let [ballot] =
                self.ballots(&request, form, |text| [read(text)], |tokens| [confidence::of_word(tokens)]).await?;
            Ok(ballot)
        }))
        .await
    }

    /// Asks about both responses of a pair at once in every form.
    ///
    /// # Errors
    /// As [`Panel::response`].
    pub(crate) async fn pair(&self, prompt: &str, responses: [&str; 2]) -> Result<[Vec<Ballot>; 2]> {
        let asked = try_join_all(self.forms.iter().map(|&form| async move {
            let request = self.model.pair(prompt, responses, form);
            let mut ballots = self.ballots(&request, form, read_pair, confidence::of_pair).await?;
            if form.wording == Wording::Swapped {
                ballots.reverse();
            }
            Ok::<_, crate::Error>(ballots)
        }))
        .await?;
        let (first, second) = asked.into_iter().map(|[first, second]| (first, second)).unzip();
        Ok([first, second])
    }

    /// Asks one question, once more where the answer is unclear. `N` responses are judged by it.
    async fn ballots<const N: usize>(
        &self,
        request: &Request,
        form: Form,
        read: impl Fn(&str) -> [Reading; N],
        sure: impl Fn(&[TokenLogprob]) -> [Option<f64>; N],
    ) -> Result<[Ballot; N]> {
        let mut answers = Vec::new();
        let mut unclear = None;
        let mut request = request.clone();
        let (said, probabilities) = loop {
            let asked = self.source.ask(&request).await?;
            let found = match asked {
                Asked::Dead(reason) => Err(reason),
                Asked::Answered(answer) => {
                    let text = written(&answer);
                    answers.push((request.key(), answer));
                    text
                }
            };
            let text = match (found, unclear) {
                (Ok(text), first) => {
                    let readings = read(&text);
                    if !readings.contains(&Reading::Unclear) {
                        let tokens = answers.last().and_then(|(_, answer)| answer.logprobs.as_deref());
                        break (readings.map(Said::of), tokens.map_or([None; N], &sure));
                    }
                    match first {
                        Some(first) => {
                            break (std::array::from_fn(|_| Said::Unclear(String::clone(&first))), [None; N]);
                        }
                        None => text,
                    }
                }
                (Err(_), Some(first)) => {
                    break (std::array::from_fn(|_| Said::Unclear(String::clone(&first))), [None; N]);
                }
                (Err(reason), None) => break (std::array::from_fn(|_| Said::Nothing(reason.clone())), [None; N]),
            };
            request = request.again(&text);
            unclear = Some(text);
        };
        let mut each = said.into_iter().zip(probabilities);
        Ok(std::array::from_fn(|_| {
            let (said, probability) = each.next().expect("one for each response");
            Ballot { form, said, probability, answers: answers.clone(), shared: N > 1 }
        }))
    }
}

impl Said {
    fn of(reading: Reading) -> Said {
        match reading {
            Reading::Compliant => Said::Compliant,
            Reading::Violates => Said::Violates,
            Reading::Unclear => Said::Unclear(String::new()),
        }
    }
}

/// Returns an answer's text, or why there is none.
pub(crate) fn written(answer: &Answer) -> std::result::Result<String, String> {
    match (&answer.text, &answer.refusal) {
        (Some(text), _) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        (_, Some(refusal)) => Err(format!("the model refused: {refusal}")),
        _ => Err(format!("the model sent no text (finish_reason {:?})", answer.finish)),
    }
}

#[cfg(test)]
mod tests;
