//! `worker score --explain`: one record's score and the gold pairs that pull it most.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use shared::gold::{GoldPair, Origin};

use super::command::{Loaded, ScoreCommand};
use super::pull::{self, Point};
use crate::collective::Alone;
use crate::control::Control;
use crate::dataset::{self, DataSet, GoldFile};
use crate::error::{Error, Result};
use crate::objective::step::Item;
use crate::reference::{self, Known};

/// Runs the command for the record of an index. Returns the answer as JSON, or as a table where no JSON is asked for.
///
/// # Errors
/// There is no such record, or the method scores nothing of it; records or gold batch are unusable.
pub(super) fn run(args: &ScoreCommand, index: usize, loaded: &Loaded, control: &Control) -> Result<Value> {
    let Loaded { decoder, encoder, adapter, is_fresh, settings } = loaded;
    let records = args.dataset_json_path.as_deref().unwrap_or(Path::new(""));
    let file = args.score.gold.as_deref().unwrap_or(Path::new(""));
    let set = DataSet::read(records, args.method)?;
    let Ok(position) = set.index.binary_search(&index) else {
        return Err(Error::Config(format!(
            "--explain {index}: {} has no usable record of that index (it holds {}, {} set aside)",
            records.display(),
            set.records.len(),
            set.quarantine.len()
        )));
    };
    let objective = settings.objective();
    let one = DataSet {
        file: set.file.clone(),
        records: vec![set.records[position].clone()],
        index: vec![index],
        quarantine: shared::quarantine::Quarantine::of("explain"),
    };
    let items = one.items(encoder, &settings.recipe, settings.max_length)?;
    let Some(mut item) = items.into_iter().flatten().find(|item| item.term.uses_ratios()) else {
        return Err(Error::record(
            records,
            index,
            format!("method {} gives it no score: it is not of the conflict", args.method.name()),
        ));
    };
    let pairs = shared::gold::read(file)?;
    let mut gold = dataset::gold_items(encoder, &pairs, GoldFile::Given(file), settings.max_length)?;
    let mut all: Vec<&mut Item> = std::iter::once(&mut item).chain(&mut gold).collect();
    reference::fill(decoder, &mut all, &Known::default(), None, settings.pack_tokens, control, &mut Alone)?;
    let point = Point { decoder, adapter, is_fresh: *is_fresh };
    let gold: Vec<&Item> = gold.iter().collect();
    let pulls = pull::of_gold_items(point, &item, &gold, &objective, settings.pack_tokens, records)?;
    let own = pull::own_pairs(&one.records[0], &pairs);
    let is_left_out = settings.leave_gold_out;
    let answer = Answer { index, term: item.term.to_string(), pairs: &pairs, pulls, own, is_left_out };
    Ok(if args.json { answer.json() } else { Value::String(answer.table(args.top)) })
}

/// A record's score and what it is made of.
struct Answer<'a> {
    index: usize,
    term: String,
    pairs: &'a [GoldPair],
    /// ⟨g_j, g_i⟩ of every pair.
    pulls: Vec<f64>,
    /// The record's own pairs.
    own: Vec<usize>,
    /// These do not count for the score.
    is_left_out: bool,
}

impl Answer<'_> {
    fn counts(&self, at: usize) -> bool {
        !(self.is_left_out && self.own.contains(&at))
    }

    fn raw(&self) -> f64 {
        self.pulls.iter().enumerate().filter(|(at, _)| self.counts(*at)).map(|(_, pull)| pull).sum()
    }

    fn own_pull(&self) -> f64 {
        self.own.iter().map(|&at| self.pulls[at]).sum()
    }

    /// Returns the pairs, the strongest pull first, whatever its sign.
    fn strongest_first(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.pulls.len()).collect();
        order.sort_by(|&a, &b| self.pulls[b].abs().total_cmp(&self.pulls[a].abs()).then(a.cmp(&b)));
        order
    }

    fn json(&self) -> Value {
        let pairs = self.strongest_first().into_iter().map(|at| {
            json!({"pair": at, "pull": self.pulls[at], "own": self.own.contains(&at), "prompt": self.pairs[at].prompt,
                   "origin": self.pairs[at].origin})
        });
        json!({"record": self.index, "term": self.term, "raw_score": self.raw(), "own_pull": self.own_pull(),
               "pulls": pairs.collect::<Vec<_>>()})
    }

    fn table(&self, top: usize) -> String {
        // A sum of nothing is −0.
        let counted: Vec<f64> = (0..self.pulls.len()).filter(|at| self.counts(*at)).map(|at| self.pulls[at]).collect();
        let against = counted.iter().filter(|pull| **pull < 0.0).sum::<f64>() + 0.0;
        let mut text = format!(
            "record {}: {}\nraw score {:.4e}: {} of {} gold pairs pull for it, {:+.4e}, the others against, {:+.4e}\n",
            self.index,
            self.term,
            self.raw(),
            counted.iter().filter(|pull| **pull > 0.0).count(),
            counted.len(),
            self.raw() - against,
            against
        );
        if !self.own.is_empty() {
            let counts = if self.is_left_out { "and does not count" } else { "(--leave-gold-out)" };
            let _ = writeln!(text, "its own pair in the gold batch pulls {:+.4e} {counts}", self.own_pull());
        }
        let shown = if top == 0 { self.pulls.len() } else { top.min(self.pulls.len()) };
        let _ = writeln!(text, "\n{:>5}  {:>12}  {:<18}  prompt", "pair", "pull", "from");
        for at in self.strongest_first().into_iter().take(shown) {
            let from = self.pairs[at].origin.as_ref().map_or("given".to_owned(), origin);
            let from = if self.own.contains(&at) { "this record".to_owned() } else { from };
            let prompt = shorten(&self.pairs[at].prompt.question());
            let _ = writeln!(text, "{at:>5}  {:>+12.4e}  {from:<18}  {prompt}", self.pulls[at]);
        }
        text.trim_end().to_owned()
    }
}

fn origin(origin: &Origin) -> String {
    format!("{} {}", origin.category.name(), origin.record)
}

/// Returns the first 60 characters of a text on one line.
fn shorten(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
