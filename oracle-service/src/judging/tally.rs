//! What ballots amount to: a majority in each wording, agreement of the wordings, and enough confidence. Pure.

use super::{Ballot, Said};
use crate::api::request::Wording;
use crate::oracle::Decision;

/// Returns the decision, and how sure it is: the mean probability of the verdict over all ballots, where a ballot without
/// log-probabilities is worth 1 or 0. A single ballot without them has no confidence.
pub(super) fn tally(ballots: &[Ballot], min_confidence: Option<f64>) -> (Decision, Option<f64>) {
    let mut verdicts = Vec::new();
    for wording in [Wording::Plain, Wording::Swapped] {
        let votes: Vec<&Ballot> = ballots.iter().filter(|ballot| ballot.form.wording == wording).collect();
        if votes.is_empty() {
            continue;
        }
        match majority(&votes) {
            Ok(compliant) => verdicts.push(compliant),
            Err(decision) => return (decision, None),
        }
    }
    let Some(&compliant) = verdicts.first() else {
        return (Decision::Uncertain("nobody was asked".into()), None);
    };
    if verdicts.iter().any(|other| *other != compliant) {
        let reason =
            "the judge's verdict depends on the wording: with the two words in the other order it is the other";
        return (Decision::Uncertain(reason.into()), None);
    }
    let confidence = confidence(ballots, compliant);
    let decision = if compliant { Decision::Compliant } else { Decision::Violates };
    let decision = match (min_confidence, confidence) {
        (Some(least), None) => Decision::Uncertain(format!(
            "there is no confidence to compare with {least}: no log-probabilities were sent"
        )),
        (Some(least), Some(confidence)) if confidence < least => {
            let word = if compliant { "COMPLIANT" } else { "NON-COMPLIANT" };
            Decision::Uncertain(format!("the verdict {word} has confidence {confidence:.3}, less than {least}"))
        }
        _ => decision,
    };
    (decision, confidence)
}

/// Returns the verdict of more than half of the votes. Without one, a missing answer outweighs an unclear one.
fn majority(votes: &[&Ballot]) -> Result<bool, Decision> {
    let count = |said: &Said| votes.iter().filter(|vote| vote.said == *said).count();
    let (compliant, violates) = (count(&Said::Compliant), count(&Said::Violates));
    if compliant * 2 > votes.len() {
        return Ok(true);
    }
    if violates * 2 > votes.len() {
        return Ok(false);
    }
    for vote in votes {
        if let Said::Nothing(reason) = &vote.said {
            return Err(Decision::Dead(reason.clone()));
        }
    }
    let unclear = votes.iter().find_map(|vote| match &vote.said {
        Said::Unclear(answer) => Some(answer),
        _ => None,
    });
    Err(Decision::Uncertain(match unclear {
        Some(answer) if votes.len() == 1 => format!("the answer is no verdict: {answer:?}"),
        _ => format!("no majority: of {} votes {compliant} COMPLIANT and {violates} NON-COMPLIANT", votes.len()),
    }))
}

fn confidence(ballots: &[Ballot], compliant: bool) -> Option<f64> {
    if let [Ballot { probability: None, .. }] = ballots {
        return None;
    }
    let worth = |ballot: &Ballot| match (&ballot.said, ballot.probability) {
        (Said::Compliant | Said::Violates, Some(p)) => {
            if compliant {
                p
            } else {
                1.0 - p
            }
        }
        (Said::Compliant, None) => f64::from(u8::from(compliant)),
        (Said::Violates, None) => f64::from(u8::from(!compliant)),
        _ => 0.0,
    };
    Some(ballots.iter().map(worth).sum::<f64>() / ballots.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::request::Form;

    fn ballot(wording: Wording, said: Said, probability: Option<f64>) -> Ballot {
        let form = Form { wording, ..Form::default() };
        Ballot { form, said, probability, answers: Vec::new(), shared: false }
    }

    fn plain(said: Said) -> Ballot {
        ballot(Wording::Plain, said, None)
    }

    fn unclear() -> Said {
        Said::Unclear("Maybe".into())
    }

    #[test]
    fn one_vote_is_its_own_majority_and_has_no_confidence_of_itself() {
        assert_eq!(tally(&[plain(Said::Compliant)], None), (Decision::Compliant, None));
        assert_eq!(tally(&[plain(Said::Nothing("x".into()))], None), (Decision::Dead("x".into()), None));
        let (decision, _) = tally(&[plain(unclear())], None);
        assert_eq!(decision, Decision::Uncertain("the answer is no verdict: \"Maybe\"".into()));
    }

    #[test]
    fn more_than_half_of_the_votes_decide_and_their_share_is_the_confidence() {
        let (decision, confidence) = tally(&[Said::Violates, Said::Compliant, Said::Violates].map(plain), None);
        assert_eq!(decision, Decision::Violates);
        assert!((confidence.unwrap() - 2.0 / 3.0).abs() < 1e-12);
        // What says nothing clear takes its share with it, and two of four clear ones are no majority of five.
        let (decision, confidence) = tally(&[Said::Violates, unclear(), Said::Violates].map(plain), Some(0.6));
        assert_eq!(decision, Decision::Violates);
        assert!((confidence.unwrap() - 2.0 / 3.0).abs() < 1e-12);
        let split = [Said::Violates, unclear(), Said::Compliant].map(plain);
        assert!(matches!(tally(&split, None).0, Decision::Uncertain(reason) if reason.contains("no majority")));
        let missing = [Said::Violates, Said::Nothing("gone".into()), Said::Compliant].map(plain);
        assert_eq!(tally(&missing, None).0, Decision::Dead("gone".into()));
    }

    #[test]
    fn log_probabilities_weigh_the_votes() {
        let sure = |p| ballot(Wording::Plain, Said::Compliant, Some(p));
        assert_eq!(tally(&[sure(0.9)], Some(0.9)), (Decision::Compliant, Some(0.9)));
        assert!(matches!(tally(&[sure(0.9)], Some(0.95)).0, Decision::Uncertain(reason) if reason.contains("0.900")));
        let against = ballot(Wording::Plain, Said::Violates, Some(0.25));
        assert_eq!(tally(&[against], None), (Decision::Violates, Some(0.75)));
        assert!(matches!(tally(&[plain(Said::Compliant)], Some(0.5)).0, Decision::Uncertain(_)));
    }

    #[test]
    fn both_wordings_must_agree() {
        let both = |a, b| [ballot(Wording::Plain, a, None), ballot(Wording::Swapped, b, None)];
        assert_eq!(tally(&both(Said::Violates, Said::Violates), None), (Decision::Violates, Some(1.0)));
        let (decision, _) = tally(&both(Said::Violates, Said::Compliant), None);
        assert!(matches!(decision, Decision::Uncertain(reason) if reason.contains("wording")));
    }
}
