//! Asks again what got no verdict: on request only, since the answers that are there were paid for.
//!
//! An unclear answer, or one without text, stays in the ledger like any other, so a job that is run again does not ask
//! anew. Here the answers that left an item of a job undecided are moved aside; the next run asks for them. Items that got
//! no answer at all have none stored, and are asked about again anyway.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;
use shared::rules::Judge;

use crate::api::ledger::Ledger;
use crate::api::request::Model;
use crate::correct::CORRECTION_TRIES;
use crate::error::{Error, Result};
use crate::items::{Item, Work, items};
use crate::judging::correcting::{Correction, CorrectionLimit, Writer};
use crate::judging::{Ballot, Judged, Panel, Said, Source, written};
use crate::oracle::{Decision, OracleArgs, read_policy};
use crate::{Outcome, review, served, table};

/// Marks what got no verdict to be asked again
///
/// Looks a job's items up in the ledger, with the settings it was run with, and moves the answers aside that left some
/// without a verdict: unclear ones, split votes and low confidences (`uncertain`), refusals and answers without text
/// (`dead`). Nothing is sent; the next run of the job asks, and pays, for these alone. What people have decided stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which items
    #[arg(value_enum)]
    which: Which,
    /// The command whose job it is
    #[arg(long, value_enum, default_value_t = Work::Triage)]
    work: Work,
    /// Its input
    #[arg(long, visible_alias = "responses-json", value_name = "FILE")]
    input_json: PathBuf,
    /// The pairs were judged by one call each
    #[arg(long)]
    one_call_per_pair: bool,
    /// Corrections: longest one in tokens
    #[arg(long, value_name = "N", default_value_t = 512)]
    oracle_max_tokens: u32,
    /// Corrections: how often one was written at most
    #[arg(long, value_name = "N", default_value_t = CORRECTION_TRIES)]
    correction_tries: u32,
    /// Judging: rule file of the world the prompts are of
    #[arg(long, value_name = "FILE")]
    world: Option<PathBuf>,
    #[command(flatten)]
    oracle: OracleArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Which items are asked about again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// Those with answers and no sure verdict
    Uncertain,
    /// Those whose answers have no text
    Dead,
    Both,
}

#[derive(Debug, Default, Serialize)]
struct Counts {
    /// Items of the job that are asked about again.
    items: u64,
    /// Answers that were moved aside.
    answers: u64,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let policy = read_policy(args.oracle.policy.as_deref().ok_or(Error::NoJudge)?)?;
    let model = args.oracle.model(policy);
    let world = args.world.as_deref().map(Judge::load).transpose()?;
    let ledger = served::open_own(&args.oracle.state, "requeue")?;
    let looking = Looking { args, model: &model, ledger: &ledger };
    let mut counts = Counts::default();
    let keys = crate::block_on(async {
        let mut all = BTreeSet::new();
        for item in items(args.work, &args.input_json, world.as_ref())? {
            let Some(item) = item? else { continue };
            let keys = looking.undecided(&item).await?;
            counts.items += u64::from(!keys.is_empty());
            all.extend(keys);
        }
        Ok(all)
    })?;
    counts.answers = ledger.move_aside(&keys)?;
    if args.json {
        table::print_json(&counts)?;
    } else {
        println!(
            "{} {} will be asked about again: {} answers are moved aside; run the job to ask",
            counts.items,
            args.work.items(),
            counts.answers
        );
    }
    Ok(Outcome::Complete)
}

/// Looks items up.
struct Looking<'a> {
    args: &'a Args,
    model: &'a Model,
    ledger: &'a Ledger,
}

impl Looking<'_> {
    /// Returns the keys of the answers that leave an item undecided.
    async fn undecided(&self, item: &Item) -> Result<BTreeSet<String>> {
        let (source, judging) = (Source::Stored(self.ledger), self.args.oracle.judging);
        let panel = Panel { source, model: self.model, forms: judging.forms(None) };
        let voted = |ballots| Judged::voted(String::new(), ballots, judging.min_confidence);
        let mut judged = Vec::new();
        let mut keys = BTreeSet::new();
        match item {
            Item::Pair { prompt, chosen, rejected } if self.args.one_call_per_pair => {
                let ballots = panel.pair(prompt, [chosen, rejected]).await?;
                for (response, ballots) in [chosen, rejected].into_iter().zip(ballots) {
                    if !self.is_reviewed(prompt, response)? {
                        judged.push(voted(ballots));
                    }
                }
            }
            Item::Pair { prompt, chosen, rejected } => {
                for response in [chosen, rejected] {
                    if !self.is_reviewed(prompt, response)? {
                        judged.push(voted(panel.response(prompt, response).await?));
                    }
                }
            }
            Item::Response { prompt, response } => {
                if !self.is_reviewed(prompt, response)? {
                    judged.push(voted(panel.response(prompt, response).await?));
                }
            }
            Item::Correction { prompt, violating } => {
                let limit =
                    CorrectionLimit { max_tokens: self.args.oracle_max_tokens, tries: self.args.correction_tries };
                let judge = async |text: &str| match review::of(
                    self.ledger,
                    &review::item(&self.model.policy, prompt, text),
                )? {
                    Some(review) => Ok(Judged::reviewed(String::new(), review)),
                    None => Ok(voted(panel.response(prompt, text).await?)),
                };
                let writer = Writer { source, model: self.model, limit };
                let corrected = writer.correct(prompt, violating, judge).await?;
                if matches!(corrected.correction, Correction::NotAccepted(_)) {
                    for one in corrected.tries {
                        judged.extend(one.judged);
                        let silent = one.reply.filter(|(_, answer)| written(answer).is_err());
                        keys.extend(silent.filter(|_| self.args.which != Which::Uncertain).map(|(key, _)| key));
                    }
                }
            }
        }
        keys.extend(judged.iter().flat_map(|judged| to_ask_again(judged, self.args.which)));
        Ok(keys)
    }

    fn is_reviewed(&self, prompt: &str, response: &str) -> Result<bool> {
        Ok(review::of(self.ledger, &review::item(&self.model.policy, prompt, response))?.is_some())
    }
}

/// Returns the keys of the answers that kept a response from a verdict; none where it has one, or is not meant.
fn to_ask_again(judged: &Judged, which: Which) -> Vec<String> {
    let is_meant = match judged.decision {
        Decision::Uncertain(_) => which != Which::Dead,
        Decision::Dead(_) => which != Which::Uncertain,
        Decision::Compliant | Decision::Violates | Decision::UnknownPrompt(_) => false,
    };
    if !is_meant {
        return Vec::new();
    }
    let is_clear = |said: &Said| matches!(said, Said::Compliant | Said::Violates);
    let keys = |wanted: &dyn Fn(&Ballot) -> bool| -> Vec<String> {
        let ballots = judged.ballots.iter().filter(|ballot| wanted(ballot));
        ballots.flat_map(|ballot| ballot.answers.iter().map(|(key, _)| key.clone())).collect()
    };
    if judged.ballots.iter().all(|ballot| is_clear(&ballot.said)) {
        // The votes are split, the wordings disagree, or nobody is sure enough: all of them are cast again.
        return keys(&|_| true);
    }
    // An unclear answer whose follow-up is not stored is no end yet: the next run asks on from there.
    let is_open = |ballot: &Ballot| matches!(ballot.said, Said::Unclear(_)) && ballot.answers.len() < 2;
    keys(&|ballot| !is_clear(&ballot.said) && !is_open(ballot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ledger::Answer;
    use crate::api::request::Form;

    fn ballot(said: Said, keys: &[&str]) -> Ballot {
        let answers = keys.iter().map(|key| ((*key).to_owned(), Answer::default())).collect();
        Ballot { form: Form::default(), said, probability: None, answers, shared: false }
    }

    fn again(ballots: Vec<Ballot>, which: Which) -> Vec<String> {
        to_ask_again(&Judged::voted(String::new(), ballots, None), which)
    }

    #[test]
    fn only_the_answers_that_kept_it_from_a_verdict_are_asked_for_again() {
        let unclear = || ballot(Said::Unclear("It depends".into()), &["a", "b"]);
        let clear = |said| ballot(said, &["c"]);
        assert_eq!(again(vec![unclear()], Which::Uncertain), ["a", "b"]);
        assert!(again(vec![unclear()], Which::Dead).is_empty());
        assert!(again(vec![clear(Said::Compliant)], Which::Both).is_empty());
        assert_eq!(again(vec![ballot(Said::Nothing("refused".into()), &["a"])], Which::Both), ["a"]);
        assert!(again(vec![ballot(Said::Nothing("refused".into()), &["a"])], Which::Uncertain).is_empty());
        // Not asked yet, or not to its end: nothing is there to be moved.
        assert!(again(vec![ballot(Said::Nothing("not there".into()), &[])], Which::Both).is_empty());
        assert!(again(vec![ballot(Said::Unclear("It depends".into()), &["a"])], Which::Both).is_empty());
    }
}
