//! The canary: items with known answers, judged at the start of a job and on every new day, so that a model that changes
//! behind its name is noticed before its labels are trusted.
//!
//! A day's answers are asked for anew, as the day is part of their key, and once: a job started again on the same day
//! finds them in the ledger. What each day found is in the store, and the first day is what later ones drift from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::record::Text;
use shared::store::Change;

use crate::api::engine::now_ms;
use crate::api::reading::{Reading, read};
use crate::api::request::Model;
use crate::error::{Error, Result};
use crate::judging::{Judged, Panel};
use crate::oracle::{Asker, Decision};

const CANARIES: &str = "canaries";
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Items with known answers.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct CanaryArgs {
    /// Judge these items with known answers at the start and daily: [{"prompt", "response", "verdict"}], JSON or JSON lines
    #[arg(long, value_name = "FILE")]
    pub(crate) canary: Option<PathBuf>,
    /// Pause at a canary's alarm instead of warning: a command ends with exit code 4, a job of the service waits for `resume`
    #[arg(long, requires = "canary")]
    pub(crate) canary_stop: bool,
    /// Share of the canary's items that may be wrong, or changed since its first day, without an alarm
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = share)]
    pub(crate) canary_tolerance: f64,
}

fn share(text: &str) -> std::result::Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "expected a share in percent")?;
    if (0.0..=100.0).contains(&share) { Ok(share) } else { Err("expected a share from 0 to 100".to_owned()) }
}

/// A canary on watch.
#[derive(Debug)]
pub(crate) struct Canary {
    items: Vec<Known>,
    stop: bool,
    tolerance: f64,
    /// The day after the last one judged; 0 before the first.
    next_day: AtomicU64,
    judging: tokio::sync::Mutex<()>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Known {
    prompt: Text,
    response: String,
    verdict: String,
}

/// What all days found.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct History {
    /// By day since 1970.
    days: BTreeMap<u64, Found>,
}

/// What a day found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Found {
    items: usize,
    /// Items whose answer is not the known one, by index.
    wrong: BTreeSet<usize>,
    /// Snapshots and fingerprints that answered.
    servers: BTreeSet<String>,
    /// Someone has resumed a job that the day's alarm had paused.
    #[serde(default)]
    accepted: bool,
}

impl Canary {
    /// Reads the items; none where no canary is wanted.
    ///
    /// # Errors
    /// The file cannot be read, holds no item, or an answer is neither of the two words.
    pub(crate) fn load(args: &CanaryArgs) -> Result<Option<Canary>> {
        let Some(file) = &args.canary else { return Ok(None) };
        let items: Vec<Known> = shared::input::read_all(file)?;
        if items.is_empty() {
            return Err(shared::Error::file(file, "holds no item to judge").into());
        }
        if let Some(index) = items.iter().position(|item| read(&item.verdict) == Reading::Unclear) {
            let problem = format!("is {:?}; expected COMPLIANT or NON-COMPLIANT", items[index].verdict);
            return Err(shared::Error::field(file, index, "verdict", problem).into());
        }
        Ok(Some(Canary {
            items,
            stop: args.canary_stop,
            tolerance: args.canary_tolerance,
            next_day: AtomicU64::new(0),
            judging: tokio::sync::Mutex::default(),
        }))
    }

    /// Judges the items where they are due; the day's other questions wait for it.
    ///
    /// # Errors
    /// The alarm, where it is to stop a job that does not wait; no question can be answered.
    pub(crate) async fn watch(&self, asker: &Asker) -> Result<()> {
        let day = day_of(now_ms());
        if !is_due(day, self.next_day.load(Ordering::Acquire)) {
            return Ok(());
        }
        let _turn = self.judging.lock().await;
        if !is_due(day, self.next_day.load(Ordering::Acquire)) {
            return Ok(());
        }
        let id = self.id(&asker.model);
        let found = self.judge(&asker.panel(Some(day)), asker.concurrency).await?;
        let store = asker.ledger.store();
        let mut history: History = store.get(CANARIES, &id)?.unwrap_or_default();
        let alarm = alarm(&history, day, &found, self.tolerance);
        let right = found.items - found.wrong.len();
        tracing::info!("canary: {right} of {} answers are as known", found.items);
        let accepted = history.days.get(&day).is_some_and(|found| found.accepted);
        history.days.insert(day, Found { accepted, ..found });
        store.commit(vec![Change::put(CANARIES, &id, &history)]).await?;
        match alarm {
            Some(alarm) if self.stop && !accepted => {
                asker.engine.alarmed(alarm).await?;
                // Whoever resumes the job has looked at the judge: the day's alarm is over, after a restart too. Other jobs
                // may have asked on other days meanwhile.
                let mut history: History = store.get(CANARIES, &id)?.unwrap_or_default();
                if let Some(found) = history.days.get_mut(&day) {
                    found.accepted = true;
                }
                store.commit(vec![Change::put(CANARIES, &id, &history)]).await?;
            }
            Some(alarm) => tracing::warn!("{alarm}"),
            None => {}
        }
        self.next_day.store(day + 1, Ordering::Release);
        Ok(())
    }

    /// Names the canary with its judge: another judge, or other items, have a history of their own.
    fn id(&self, model: &Model) -> String {
        let text = json!({"items": self.items, "model": model.name, "policy": model.policy}).to_string();
        blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
    }

    async fn judge(&self, panel: &Panel<'_>, at_once: usize) -> Result<Found> {
        let mut found = Found { items: self.items.len(), ..Found::default() };
        let mut judged = futures::stream::iter(self.items.iter().enumerate())
            .map(|(index, item)| async move {
                let ballots = panel.response(&item.prompt.prompt_text(), &item.response).await?;
                Ok::<_, Error>((index, item, Judged::voted(String::new(), ballots, None)))
            })
            .buffer_unordered(at_once);
        while let Some((index, item, judged)) = judged.try_next().await? {
            let expected = match read(&item.verdict) {
                Reading::Compliant => Decision::Compliant,
                _ => Decision::Violates,
            };
            if judged.decision != expected {
                found.wrong.insert(index);
            }
            for (_, answer) in judged.ballots.iter().flat_map(|ballot| &ballot.answers) {
                found.servers.insert(match &answer.fingerprint {
                    Some(fingerprint) => format!("{} ({fingerprint})", answer.model),
                    None => answer.model.clone(),
                });
            }
        }
        Ok(found)
    }
}

fn day_of(now_ms: u64) -> u64 {
    now_ms / DAY_MS
}

fn is_due(day: u64, next_day: u64) -> bool {
    day >= next_day
}

/// Returns what is alarming about a day: too many wrong answers, or too many that changed since the first day.
fn alarm(history: &History, day: u64, found: &Found, tolerance_percent: f64) -> Option<String> {
    let too_many = |count: usize| count as f64 * 100.0 > tolerance_percent * found.items as f64;
    let (first_day, first) = history.days.iter().next().filter(|(first, _)| **first < day).unzip();
    let changed: Vec<usize> = first
        .map(|first: &Found| first.wrong.symmetric_difference(&found.wrong).copied().collect())
        .unwrap_or_default();
    if !too_many(found.wrong.len()) && !too_many(changed.len()) {
        return None;
    }
    let mut text = format!(
        "the canary's answers drift: {} of {} are wrong (items {:?})",
        found.wrong.len(),
        found.items,
        found.wrong
    );
    if let (Some(first), Some(first_day)) = (first, first_day) {
        text += &format!(
            "; {} changed since {} days ago (items {changed:?}), answered then by {:?} and now by {:?}",
            changed.len(),
            day - first_day,
            first.servers,
            found.servers
        );
    }
    text += "; look at the judge before trusting its labels";
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(wrong: &[usize], server: &str) -> Found {
        Found {
            items: 10,
            wrong: wrong.iter().copied().collect(),
            servers: [server.to_owned()].into(),
            accepted: false,
        }
    }

    #[test]
    fn it_is_judged_at_the_start_and_once_a_day() {
        let (start, day) = (1_760_000_000_000, day_of(1_760_000_000_000));
        assert!(is_due(day, 0));
        let next = day + 1;
        assert!(!is_due(day_of(start), next));
        assert!(is_due(day_of(start + DAY_MS), next));
        assert_eq!(day_of(day * DAY_MS), day);
        assert_eq!(day_of((day + 1) * DAY_MS - 1), day);
    }

    #[test]
    fn wrong_answers_beyond_the_tolerance_alarm_on_the_first_day_too() {
        let none = History::default();
        assert_eq!(alarm(&none, 5, &found(&[], "a"), 0.0), None);
        assert_eq!(alarm(&none, 5, &found(&[3], "a"), 10.0), None);
        let text = alarm(&none, 5, &found(&[3, 4], "a"), 10.0).unwrap();
        assert!(text.contains("2 of 10 are wrong (items {3, 4})") && !text.contains("changed"), "{text}");
    }

    #[test]
    fn answers_that_change_alarm_though_as_many_are_right() {
        let history = History { days: [(5, found(&[3], "old")), (6, found(&[3], "old"))].into() };
        assert_eq!(alarm(&history, 7, &found(&[3], "old"), 10.0), None);
        let text = alarm(&history, 7, &found(&[4], "new"), 10.0).unwrap();
        assert!(text.contains("2 changed since 2 days ago (items [3, 4])"), "{text}");
        assert!(text.contains("old") && text.contains("new"), "{text}");
        // The first day judged again has nothing to drift from.
        assert_eq!(alarm(&history, 5, &found(&[4], "new"), 10.0), None);
    }
}
