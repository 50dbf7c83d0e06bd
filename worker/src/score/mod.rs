//! Impact scores of a set of records: gold batch, g_J, raw scores pack by pack (resumable), weights.

pub mod cg;
pub mod command;
pub mod curvature;
pub mod direction;
pub mod directions;
pub mod engine;
mod explain;
pub mod options;
pub mod point;
pub mod pull;
pub mod vector;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::json;
use shared::curvature::Report;
use shared::gold::{GoldOptions, GoldPair, Pool};
use shared::record::Record;
use shared::weights;

use crate::control::Control;
use crate::dataset::{self, DataSet, GoldFile, Truncated};
use crate::error::{Error, Result};
use crate::in_flight::{self, InFlight};
use crate::journal::{self, Journal};
use crate::model::adapter_file;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::model_folder;
use crate::objective::method::{Method, Recipe, Term};
use crate::objective::step::Item;
use crate::options::{LoraArgs, TextArgs};
use crate::reference::{self, Keys};
use crate::text::Encoder;
use directions::{Directions, Gold};
use engine::{Engine, PackScores};
pub use options::{ScoreArgs, ScoreSettings};

/// What records are scored with.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// The adapter at which records are scored.
    pub adapter: &'a Lora,
    /// Its B = 0: it computes nothing yet.
    pub is_fresh: bool,
    /// Tokenises records and gold pairs.
    pub encoder: &'a Encoder,
    /// What shapes the scores.
    pub settings: &'a ScoreSettings,
    /// The [`context`].
    pub key: &'a serde_json::Value,
    /// Stops, pauses and progress.
    pub control: &'a Control,
}

/// The result: one entry a record of the set.
#[derive(Debug)]
pub struct Scores {
    /// The raw score and what goes with it; `None` where the method scores nothing.
    pub raw: Vec<Option<Raw>>,
    /// The weights; 0 where nothing is scored.
    pub weights: Vec<f64>,
    /// The gold batch used.
    pub gold: Vec<GoldPair>,
    /// log π_ref of the sequences of each record that is scored, by [`Keys::key`].
    pub reference: Vec<BTreeMap<String, f64>>,
    /// Records scored on a part of their text.
    pub truncated: Truncated,
    /// What the curvature did to g_J at every adapter; empty without one.
    pub curvature: Vec<Report>,
    /// Holds the raw scores until the caller has written them.
    pub journal: Journal,
}

impl Scores {
    /// Returns the raw scores alone.
    pub fn raw_scores(&self) -> Vec<Option<f64>> {
        self.raw.iter().map(|raw| raw.as_ref().map(|raw| raw.score)).collect()
    }
}

/// What scoring says about one record.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    /// The raw score, as the options have it.
    pub score: f64,
    /// Its values at every adapter, where there are several.
    pub by_seed: Vec<f64>,
    /// What every layer adds to it, where that was asked for.
    pub layers: Vec<f64>,
}

/// Returns what scores depend on besides records, gold batch and [`ScoreSettings`], for the keys of journals and kept
/// gradients: model, adapter and tokenisation.
///
/// # Errors
/// A file of the model or the adapter cannot be read.
pub fn context(
    decoder: &Decoder,
    model_dir: &Path,
    text: &TextArgs,
    lora: &LoraArgs,
    seed: u64,
    init_adapter: Option<&Path>,
) -> Result<serde_json::Value> {
    Ok(json!({
        "model": decoder.fingerprint, "folder": model_folder::content_hash(model_dir)?,
        "dtype": format!("{:?}", decoder.dtype), "text": text, "lora": lora, "seed": seed,
        "init_adapter": init_adapter.map(adapter_file::content_hash).transpose()?,
    }))
}

/// Scores a set of records.
///
/// `journal` is where finished packs are kept until the caller has written its result; a run with the same key goes on
/// from there. `beat` is called after every pack, gold pairs' included, for those who wait.
///
/// # Errors
/// Anything of the records, the gold batch or the numbers that makes scores meaningless.
pub fn score(setup: Setup<'_>, set: &DataSet, journal: &Path, beat: &mut dyn FnMut() -> Result<()>) -> Result<Scores> {
    let Setup { decoder, settings, control, .. } = setup;
    weights::check_gamma(settings.args.lamda)?;
    let mut items = set.items(setup.encoder, &settings.recipe, settings.max_length)?;
    let scored: Vec<&Item> = items.iter().flatten().filter(|item| item.term.uses_ratios()).collect();
    if scored.is_empty() && !settings.raw_only {
        return Err(Error::Numeric(format!(
            "{}: none of the {} records is scored by method {}; is everything RETAIN?",
            set.file.display(),
            set.records.len(),
            settings.recipe.method.name()
        )));
    }
    let pairs = gold_batch(set, settings)?;
    let mut sample = directions::sample(setup, Some(set))?;
    let full_key = json!({
        "context": setup.key, "terms": settings.recipe.scored_as(), "beta": settings.beta,
        "max_length": settings.max_length, "options": settings.args.shaping(), "gold": &pairs,
        "curvature": sample.as_ref().map(|sample| &sample.hash), "records": content_hash(&set.records),
    });
    let key = shared_hash(&full_key);
    let noted = journal::in_flight(journal);
    let (mut journal, finished) = Journal::open::<PackScores>(journal, &key, control.attempt())?;
    let mut in_flight = InFlight::open(&noted, &key, &set.file)?;
    let gold_file = match &settings.args.gold {
        Some(file) => GoldFile::Given(file),
        None => GoldFile::DrawnFrom(&set.file),
    };
    let mut gold = Gold::new(setup, pairs, gold_file)?;
    let more = setup.more_adapters();
    let points = setup.points(&more);
    let Directions { vectors, curvature } = directions::make(setup, &points, &mut gold, sample.as_mut(), beat)?;
    if settings.args.leave_gold_out {
        gold.fill(setup)?;
    }
    let engine = Engine::new(&points, vectors, settings, left_out(settings, set, &gold)?);

    let packs = dataset::packs(scored.iter().copied(), settings.args.pack_tokens);
    let kept: usize = packs.iter().take(finished.len()).map(Vec::len).sum();
    let bar = control.bar_from(kept as u64, "score", scored.len() as u64);
    let (mut raw_scored, mut references) = (Vec::with_capacity(scored.len()), Vec::new());
    for (i, pack) in packs.iter().enumerate() {
        let scores = match finished.get(i) {
            Some(scores) => scores.clone(),
            None => {
                control.go_on()?;
                in_flight.at(in_flight::Kind::Pack, i as u64 + 1, pack.iter().map(|item| item.record))?;
                control.pass("score.pack");
                let scores = engine.scores(pack).map_err(|bad| bad.in_file(&set.file, IN_RECORD))?;
                beat()?;
                if let Some(bad) = scores.first_not_finite(pack) {
                    let problem =
                        format!("its score is {}, or a log-prob of it is not finite; {IN_RECORD}", scores.raw[bad]);
                    return Err(Error::record(&set.file, pack[bad].record, problem));
                }
                journal.append(std::slice::from_ref(&scores))?;
                bar.inc(pack.len() as u64);
                scores
            }
        };
        let PackScores { raw, reference, mut by_seed, mut layers } = scores;
        let part = |table: &mut Vec<Vec<f64>>, at| table.get_mut(at).map(std::mem::take).unwrap_or_default();
        for (at, score) in raw.into_iter().enumerate() {
            raw_scored.push(Raw { score, by_seed: part(&mut by_seed, at), layers: part(&mut layers, at) });
        }
        references.extend(reference);
    }
    bar.finish_and_clear();
    in_flight.done();

    let weights_scored = match settings.raw_only {
        true => vec![0.0; raw_scored.len()],
        false => {
            let raw: Vec<f64> = raw_scored.iter().map(|raw| raw.score).collect();
            let (gamma, norm) = (settings.args.lamda, settings.args.weight_norm);
            match weights::weights(&raw, gamma, norm, &set.file, |i| scored[i].record) {
                Ok(weights) => weights,
                Err(error) => {
                    // These scores are of no use to anyone, and must not stand in the way of another gold batch's.
                    journal.remove()?;
                    return Err(error.into());
                }
            }
        }
    };
    let (mut raw, mut weights) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    let mut next = raw_scored.into_iter().zip(&weights_scored);
    let mut references = references.into_iter();
    let keys = Keys::of(decoder);
    let mut by_key = Vec::with_capacity(items.len());
    for item in &mut items {
        let pair = match item {
            Some(item) if item.term.uses_ratios() => {
                item.reference = references.by_ref().take(item.sequences.len()).collect();
                next.next()
            }
            _ => None,
        };
        by_key.push(reference::by_key(&keys, item.iter()));
        weights.push(pair.as_ref().map_or(0.0, |(_, weight)| **weight));
        raw.push(pair.map(|(raw, _)| raw));
    }
    let truncated = Truncated::of(items.iter().flatten());
    Ok(Scores { raw, weights, gold: gold.pairs, reference: by_key, truncated, curvature, journal })
}

/// What to do about a record whose score cannot be computed.
const IN_RECORD: &str = "look at the record's text, and at the model's weights and --dtype";

/// Returns the gold items that do not count for a record, by its index in the file.
///
/// # Errors
/// Nothing of the gold batch counts for a record that is scored.
fn left_out(settings: &ScoreSettings, set: &DataSet, gold: &Gold) -> Result<HashMap<usize, Vec<Item>>> {
    let mut left_out = HashMap::new();
    if !settings.args.leave_gold_out {
        return Ok(left_out);
    }
    for (record, &index) in set.records.iter().zip(&set.index) {
        let own = pull::own_pairs(record, &gold.pairs);
        let is_scored = || settings.recipe.decide(record).is_ok_and(|found| found.term.is_some_and(Term::uses_ratios));
        if own.len() == gold.pairs.len() && is_scored() {
            let problem = format!(
                "all {} pairs of the gold batch are its own, so --leave-gold-out leaves nothing to score it along; give \
                 a larger gold batch",
                own.len()
            );
            return Err(Error::record(&set.file, index, problem));
        }
        if !own.is_empty() {
            left_out.insert(index, own.into_iter().map(|at| gold.items[at].clone()).collect());
        }
    }
    Ok(left_out)
}

/// Returns the gold batch: the one that is given, or drawn.
///
/// # Errors
/// The file cannot be read, or there is nothing to draw from.
pub fn gold_batch(set: &DataSet, settings: &ScoreSettings) -> Result<Vec<GoldPair>> {
    if let Some(file) = &settings.args.gold {
        return Ok(shared::gold::read(file)?);
    }
    let options = GoldOptions {
        size: settings.args.gold_batch_size,
        seed: settings.args.gold_seed,
        use_corrections: settings.args.gold_corrections
            || matches!(settings.recipe.method, Method::OraclePunish | Method::DpoGold),
    };
    let pool = Pool { file: &set.file, records: &set.records, index: &set.index };
    let drawn = shared::gold::draw(pool, options)?;
    drawn.warnings.iter().for_each(|warning| tracing::warn!("{}: {warning}", set.file.display()));
    Ok(drawn.pairs)
}

/// Returns a hash of records' content.
pub fn content_hash(records: &[Record]) -> String {
    let mut hasher = blake3::Hasher::new();
    for record in records {
        let line = serde_json::to_vec(record).expect("a record is plain data");
        hasher.update(&line).update(b"\n");
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// Returns a hash of a JSON value.
pub fn shared_hash(value: &serde_json::Value) -> String {
    blake3::hash(value.to_string().as_bytes()).to_hex()[..32].to_owned()
}

/// Writes the records with `raw_score` and `impact_score` (spec 1.6), whose terms were scored, and their log π_ref.
///
/// # Errors
/// The file cannot be written.
pub fn write_weighted(path: &Path, set: &DataSet, recipe: &Recipe, scores: &Scores) -> Result<()> {
    write(path, set, scores, |record, raw, weight| {
        weights::keep(record, raw.map_or(0.0, |raw| raw.score), weight, &recipe.scored_as());
    })
}

/// Writes the records of a part with their raw scores and log π_ref alone; a record that the method does not score gets none.
///
/// # Errors
/// The file cannot be written.
pub fn write_raw(path: &Path, set: &DataSet, scores: &Scores) -> Result<()> {
    write(path, set, scores, |record, raw, _| {
        (record.raw_score, record.impact_score) = (raw.map(|raw| raw.score), None);
    })
}

fn write(
    path: &Path,
    set: &DataSet,
    scores: &Scores,
    mut keep: impl FnMut(&mut Record, Option<&Raw>, f64),
) -> Result<()> {
    let mut out = shared::output::ArrayWriter::create(path)?;
    let numbers = scores.raw.iter().zip(&scores.weights).zip(&scores.reference);
    for (record, ((raw, weight), reference)) in set.records.iter().zip(numbers) {
        let mut record = record.clone();
        reference::keep(&mut record, reference);
        let of_raw = |numbers: fn(&Raw) -> &Vec<f64>| raw.as_ref().map(numbers).filter(|numbers| !numbers.is_empty());
        weights::keep_numbers(&mut record, weights::BY_SEED, of_raw(|raw| &raw.by_seed));
        weights::keep_numbers(&mut record, weights::BY_LAYER, of_raw(|raw| &raw.layers));
        keep(&mut record, raw.as_ref(), *weight);
        out.push(&record)?;
    }
    out.finish()?;
    Ok(())
}
