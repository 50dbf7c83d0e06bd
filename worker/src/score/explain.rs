//! `worker score --explain`: one record's score, the gold pairs that pull it most, and what each layer adds.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use shared::gold::{GoldPair, Origin};

use super::command::{Loaded, ScoreCommand};
use super::direction::NoGradient;
use super::directions::{self, Directions, Gold};
use super::engine::Engine;
use super::{IN_RECORD, Setup, left_out, pull};
use crate::control::Control;
use crate::dataset::{DataSet, GoldFile};
use crate::error::{Error, Result};

/// Runs the command for the record of an index. Returns the answer as JSON, or as a table where no JSON is asked for.
///
/// # Errors
/// There is no such record, or the method scores nothing of it; records or gold batch are unusable.
pub(super) fn run(args: &ScoreCommand, index: usize, loaded: &Loaded, control: &Control) -> Result<Value> {
    let records = args.dataset_json_path.as_deref().unwrap_or(Path::new(""));
    let file = args.score.gold.as_deref().unwrap_or(Path::new(""));
    let mut settings = loaded.settings.clone();
    settings.args.score_layers = true;
    let key = loaded.context(args)?;
    let setup = Setup { settings: &settings, ..loaded.setup(&key, control) };
    let set = DataSet::read(records, args.method)?;
    let Ok(position) = set.index.binary_search(&index) else {
        return Err(Error::Config(format!(
            "--explain {index}: {} has no usable record of that index (it holds {}, {} set aside)",
            records.display(),
            set.records.len(),
            set.quarantine.len()
        )));
    };
    let one = DataSet {
        file: set.file.clone(),
        records: vec![set.records[position].clone()],
        index: vec![index],
        quarantine: shared::quarantine::Quarantine::of("explain"),
    };
    let items = one.items(setup.encoder, &settings.recipe, settings.max_length)?;
    let Some(mut item) = items.into_iter().flatten().find(|item| item.term.uses_ratios()) else {
        return Err(Error::record(
            records,
            index,
            format!("method {} gives it no score: it is not of the conflict", args.method.name()),
        ));
    };
    directions::fill(setup, std::slice::from_mut(&mut item))?;
    let mut gold = Gold::new(setup, shared::gold::read(file)?, GoldFile::Given(file))?;
    gold.fill(setup)?;
    let more = setup.more_adapters();
    let points = setup.points(&more);
    let mut sample = directions::sample(setup, Some(&set))?;
    let Directions { vectors, .. } = directions::make(setup, &points, &mut gold, sample.as_mut(), &mut || Ok(()))?;
    let engine = Engine::new(&points, vectors, &settings, left_out(&settings, &one, &gold)?);
    let in_record = |bad: NoGradient| bad.in_file(records, IN_RECORD);
    let share = 1.0 / points.len() as f64;
    let mut answer = Answer {
        index,
        term: item.term.to_string(),
        raw: 0.0,
        layers: Vec::new(),
        model_layers: setup.decoder.config.layers,
        pulls: vec![0.0; gold.items.len()],
        own: pull::own_pairs(&one.records[0], &gold.pairs),
        is_left_out: settings.args.leave_gold_out,
        pairs: &gold.pairs,
    };
    for (point, one) in engine.taken_apart(&item).map_err(in_record)? {
        let objective = settings.objective();
        let (_, mut own) =
            point.gradient(std::slice::from_ref(&item), &objective, 1, &mut || Ok(())).map_err(in_record)?;
        if let Some(sample) = &mut sample {
            own = sample.solve(setup, point, &own, &mut || Ok(()))?.0;
        }
        let pulls = pull::along(point, &own, &gold.items, &objective, settings.args.pack_tokens);
        answer.pulls.iter_mut().zip(pulls).for_each(|(sum, pull)| *sum += share * pull / one.size);
        answer.raw += share * one.score;
        answer.layers.resize(one.layers.len(), 0.0);
        answer.layers.iter_mut().zip(one.layers).for_each(|(sum, part)| *sum += share * part);
    }
    Ok(if args.json { answer.json() } else { Value::String(answer.table(args.top)) })
}

/// A record's score and what it is made of.
struct Answer<'a> {
    index: usize,
    term: String,
    /// The raw score, as the options have it.
    raw: f64,
    /// What each layer adds to it; the last is what is outside of layers, where there is such.
    layers: Vec<f64>,
    /// Layers of the model.
    model_layers: usize,
    pairs: &'a [GoldPair],
    /// What every pair adds to it, or would.
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

    fn own_pull(&self) -> f64 {
        self.own.iter().map(|&at| self.pulls[at]).sum()
    }

    /// Returns the name of a part of the layers.
    fn layer(&self, at: usize) -> String {
        if at < self.model_layers { format!("{at}") } else { "outside".to_owned() }
    }

    fn json(&self) -> Value {
        let pairs = strongest_first(&self.pulls).into_iter().map(|at| {
            json!({"pair": at, "pull": self.pulls[at], "own": self.own.contains(&at), "counts": self.counts(at), "prompt": self.pairs[at].prompt,
                   "origin": self.pairs[at].origin})
        });
        let layers = self.layers.iter().enumerate().map(|(at, pull)| json!({"layer": self.layer(at), "pull": pull}));
        json!({"record": self.index, "term": self.term, "raw_score": self.raw, "own_pull": self.own_pull(),
               "pulls": pairs.collect::<Vec<_>>(), "layers": layers.collect::<Vec<_>>()})
    }

    fn table(&self, top: usize) -> String {
        // A sum of nothing is −0.
        let counted: Vec<f64> = (0..self.pulls.len()).filter(|at| self.counts(*at)).map(|at| self.pulls[at]).collect();
        let against = counted.iter().filter(|pull| **pull < 0.0).sum::<f64>() + 0.0;
        let mut text = format!(
            "record {}: {}\nraw score {:.4e}: {} of {} gold pairs pull for it, {:+.4e}, the others against, {:+.4e}\n",
            self.index,
            self.term,
            self.raw,
            counted.iter().filter(|pull| **pull > 0.0).count(),
            counted.len(),
            counted.iter().filter(|pull| **pull > 0.0).sum::<f64>() + 0.0,
            against
        );
        if !self.own.is_empty() {
            let counts = if self.is_left_out { "and does not count" } else { "(--leave-gold-out)" };
            let _ = writeln!(text, "its own pair in the gold batch pulls {:+.4e} {counts}", self.own_pull());
        }
        let strongest = strongest_first(&self.layers).into_iter().take(LAYERS_SHOWN);
        let layers = strongest.map(|at| format!("{} {:+.4e}", self.layer(at), self.layers[at])).collect::<Vec<_>>();
        let _ = writeln!(text, "strongest of {} layers: {}", self.model_layers, layers.join(", "));
        let shown = if top == 0 { self.pulls.len() } else { top.min(self.pulls.len()) };
        let _ = writeln!(text, "\n{:>5}  {:>12}  {:<18}  prompt", "pair", "pull", "from");
        for at in strongest_first(&self.pulls).into_iter().take(shown) {
            let from = self.pairs[at].origin.as_ref().map_or("given".to_owned(), origin);
            let from = if self.own.contains(&at) { "this record".to_owned() } else { from };
            let prompt = shorten(&self.pairs[at].prompt.question());
            let _ = writeln!(text, "{at:>5}  {:>+12.4e}  {from:<18}  {prompt}", self.pulls[at]);
        }
        text.trim_end().to_owned()
    }
}

/// Layers that the table names.
const LAYERS_SHOWN: usize = 5;

/// Returns the positions of numbers, the largest first, whatever their sign.
fn strongest_first(numbers: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|&a, &b| numbers[b].abs().total_cmp(&numbers[a].abs()).then(a.cmp(&b)));
    order
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
