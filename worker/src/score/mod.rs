//! Impact scores of a set of records: gold batch, g_J, raw scores pack by pack (resumable), weights.

pub mod command;
pub mod direction;
pub mod weights;

use std::path::{Path, PathBuf};

use serde_json::json;
use shared::gold::{ChosenFrom, GoldOptions, GoldPair};

use crate::dataset::{self, DataSet};
use crate::error::{Error, Result};
use crate::fault::{self, Fault};
use crate::journal::Journal;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::objective::loss::PreferenceLoss;
use crate::objective::method::Method;
use crate::objective::step::{Item, Settings};
use crate::progress;
use crate::text::Encoder;
use weights::WeightNorm;

/// What shapes a score besides model and records.
#[derive(Debug, Clone)]
pub struct ScoreSettings {
    /// Whose loss terms are scored.
    pub method: Method,
    /// β (has no effect on the weights at a fresh adapter, spec 5.6).
    pub beta: f64,
    /// γ
    pub gamma: f64,
    /// Normalisation of the weights.
    pub norm: WeightNorm,
    /// A gold batch to read instead of drawing one.
    pub gold: Option<PathBuf>,
    /// B, pairs of a drawn gold batch.
    pub gold_batch_size: usize,
    /// Seed of the draw.
    pub gold_seed: u64,
    /// Gold pairs a forward pass.
    pub gold_rows: usize,
    /// Longest sequence.
    pub max_length: usize,
    /// Token budget of a pack.
    pub pack_tokens: usize,
}

/// The result: one entry a record of the set.
#[derive(Debug)]
pub struct Scores {
    /// ⟨g_J, g_i⟩; `None` where the method scores nothing.
    pub raw: Vec<Option<f64>>,
    /// The weights; 0 where nothing is scored.
    pub weights: Vec<f64>,
    /// The gold batch used.
    pub gold: Vec<GoldPair>,
    /// Holds the raw scores until the caller has written them.
    pub journal: Journal,
}

/// Scores a set of records at the adapter given.
///
/// `journal` is where finished packs are kept until the caller has written its result; a run with the same key goes on
/// from there. `adapter_is_fresh` says that B = 0. `key` names model, adapter and tokenisation.
///
/// # Errors
/// Anything of the records, the gold batch or the numbers that makes scores meaningless.
#[allow(clippy::too_many_arguments)]
pub fn score(
    decoder: &Decoder,
    adapter: &Lora,
    adapter_is_fresh: bool,
    encoder: &Encoder,
    set: &DataSet,
    settings: &ScoreSettings,
    journal: &Path,
    key: &serde_json::Value,
    fault: Option<&Fault>,
) -> Result<Scores> {
    weights::check_gamma(settings.gamma)?;
    let objective =
        Settings { beta: settings.beta, epsilon: 0.0, alpha_kl: 0.0, loss: PreferenceLoss::Dpo, nll_weight: 0.0 };
    // The anchor has no score, so no item is made for it: α_KL = 0.
    let items = set.items(encoder, settings.method, 0.0, settings.max_length)?;
    let scored: Vec<&Item> = items.iter().flatten().filter(|item| item.term.uses_ratios()).collect();
    if scored.is_empty() {
        return Err(Error::Numeric(format!(
            "{}: none of the {} records is scored by method {}; is everything RETAIN?",
            set.file.display(),
            set.records.len(),
            settings.method.name()
        )));
    }
    let gold = gold_batch(set, settings)?;
    let mut gold_items = dataset::gold_items(encoder, &gold, settings.max_length)?;

    let full_key = json!({
        "context": key, "method": settings.method, "beta": settings.beta, "max_length": settings.max_length,
        "pack_tokens": settings.pack_tokens, "gold_rows": settings.gold_rows, "gold": &gold, "records": content_hash(&set.records),
    });
    let (mut journal, finished) = Journal::open::<Vec<f64>>(journal, &shared_hash(&full_key))?;
    crate::reference::fill(decoder, &mut gold_items.iter_mut().collect::<Vec<_>>(), settings.pack_tokens);
    let direction = direction::gold_gradient(decoder, adapter, &gold_items, &objective, settings.gold_rows).map_err(
        |error| match (error, &settings.gold) {
            (Error::Numeric(problem), Some(file)) => Error::Numeric(format!("{}: {problem}", file.display())),
            (Error::Numeric(problem), None) => {
                Error::Numeric(format!("gold batch drawn from {}: {problem}", set.file.display()))
            }
            (other, _) => other,
        },
    )?;

    let packs = dataset::packs(scored.iter().copied(), settings.pack_tokens);
    let bar = progress::bar("score", scored.len() as u64);
    let mut raw_scored = Vec::with_capacity(scored.len());
    for (i, pack) in packs.iter().enumerate() {
        let scores = match finished.get(i) {
            Some(scores) => scores.clone(),
            None => {
                fault::pass(fault, "score.pack");
                let scores = direction::pack_scores(decoder, adapter, &direction, pack, &objective, adapter_is_fresh);
                if let Some(bad) = scores.iter().position(|score| !score.is_finite()) {
                    let problem = format!(
                        "its score is {}; look at the record's text, and at the model's weights and --dtype",
                        scores[bad]
                    );
                    return Err(Error::record(&set.file, pack[bad].record, problem));
                }
                journal.append(std::slice::from_ref(&scores))?;
                scores
            }
        };
        bar.inc(pack.len() as u64);
        raw_scored.extend(scores);
    }
    bar.finish_and_clear();

    let name = |i: usize| format!("{}: record {}", set.file.display(), scored[i].record);
    let weights_scored = weights::weights(&raw_scored, settings.gamma, settings.norm, name)?;
    let (mut raw, mut weights) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    let mut next = raw_scored.iter().zip(&weights_scored);
    for item in &items {
        let pair = match item {
            Some(item) if item.term.uses_ratios() => next.next(),
            _ => None,
        };
        raw.push(pair.map(|(raw, _)| *raw));
        weights.push(pair.map_or(0.0, |(_, weight)| *weight));
    }
    Ok(Scores { raw, weights, gold, journal })
}

fn gold_batch(set: &DataSet, settings: &ScoreSettings) -> Result<Vec<GoldPair>> {
    if let Some(file) = &settings.gold {
        return Ok(shared::gold::read(file)?);
    }
    if let Some(untriaged) = set.records.iter().position(|record| record.category.is_none()) {
        let problem =
            "field \"category\" is missing, so no gold batch can be drawn; triage the records, or give --gold";
        return Err(Error::record(&set.file, set.index[untriaged], problem));
    }
    let options = GoldOptions {
        size: settings.gold_batch_size,
        seed: settings.gold_seed,
        use_corrections: matches!(settings.method, Method::OraclePunish | Method::DpoGold),
    };
    let mut drawn = shared::gold::draw(&set.records, options)?;
    // The draw counts usable records; the file's own indices are what a person looks up.
    for origin in drawn.iter_mut().filter_map(|pair| pair.origin.as_mut()) {
        origin.record = set.index[origin.record];
        if let Some(ChosenFrom::Record(other)) = &mut origin.chosen_from {
            *other = set.index[*other];
        }
    }
    if drawn.len() < settings.gold_batch_size {
        tracing::warn!(
            "the gold batch has {} pairs, {} were asked for: too few RETAIN, INVERT and PUNISH records",
            drawn.len(),
            settings.gold_batch_size
        );
    }
    Ok(drawn)
}

/// Returns a hash of records' content.
pub fn content_hash(records: &[shared::record::Record]) -> String {
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

/// The field that says whose loss terms a record's weight was made for.
pub const METHOD_FIELD: &str = "score_method";

/// Writes the records with `raw_score` and `impact_score` (spec 1.6), and whose terms were scored.
///
/// # Errors
/// The file cannot be written.
pub fn write_weighted(path: &Path, set: &DataSet, method: Method, scores: &Scores) -> Result<()> {
    let mut out = shared::output::ArrayWriter::create(path)?;
    for ((record, raw), weight) in set.records.iter().zip(&scores.raw).zip(&scores.weights) {
        let mut record = record.clone();
        record.raw_score = Some(raw.unwrap_or(0.0));
        record.impact_score = Some(*weight);
        record.extra.insert(METHOD_FIELD.to_owned(), json!(method.scored_as().name()));
        out.push(&record)?;
    }
    out.finish()?;
    Ok(())
}
