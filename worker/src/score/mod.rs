//! Impact scores of a set of records: gold batch, g_J, raw scores pack by pack (resumable), weights.

pub mod command;
pub mod direction;
mod explain;
pub mod pull;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use shared::gold::{ChosenFrom, GoldOptions, GoldPair};

use crate::collective::Alone;
use crate::control::Control;
use crate::dataset::{self, DataSet, GoldFile, Truncated};
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::model::adapter_file;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::model::tangent::Direction;
use crate::model_folder;
use crate::objective::loss::PreferenceLoss;
use crate::objective::method::{Method, Recipe};
use crate::objective::step::{Item, Settings};
use crate::options::{LoraArgs, TextArgs};
use crate::reference::{self, Keys, Known};
use crate::text::Encoder;
use direction::PackScores;
use pull::Point;
use shared::weights::{self, WeightNorm};

/// What shapes a score besides model and records.
#[derive(Debug, Clone)]
pub struct ScoreSettings {
    /// Whose loss terms are scored. The anchor has no score, so α_KL is 0.
    pub recipe: Recipe,
    /// β (has no effect on the weights at a fresh adapter, spec 5.6).
    pub beta: f64,
    /// γ
    pub gamma: f64,
    /// Normalisation of the weights.
    pub norm: WeightNorm,
    /// A gold batch to read instead of drawing one.
    pub gold: Option<PathBuf>,
    /// Where g_J is kept: read if it is there, else written.
    pub gold_gradient: Option<PathBuf>,
    /// A record's own gold pairs do not count for its score.
    pub leave_gold_out: bool,
    /// Only raw scores are wanted, of a part of a file: nothing is normalised, and a part may hold nothing to score.
    pub raw_only: bool,
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

impl ScoreSettings {
    /// Returns the loss that scores are derivatives of: DPO's, whatever is trained.
    pub fn objective(&self) -> Settings {
        Settings { beta: self.beta, epsilon: 0.0, alpha_kl: 0.0, loss: PreferenceLoss::Dpo, nll_weight: 0.0 }
    }
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
    /// log π_ref of the sequences of each record that is scored, by [`Keys::key`].
    pub reference: Vec<BTreeMap<String, f64>>,
    /// Records scored on a part of their text.
    pub truncated: Truncated,
    /// Holds the raw scores until the caller has written them.
    pub journal: Journal,
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

/// Scores a set of records at the adapter given.
///
/// `journal` is where finished packs are kept until the caller has written its result; a run with the same key goes on
/// from there. `adapter_is_fresh` says that B = 0. `key` is the [`context`]. `beat` is called after every pack, gold pairs'
/// included, for those who wait.
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
    control: &Control,
    beat: &mut dyn FnMut() -> Result<()>,
) -> Result<Scores> {
    weights::check_gamma(settings.gamma)?;
    let objective = settings.objective();
    let mut items = set.items(encoder, &settings.recipe, settings.max_length)?;
    let scored: Vec<&Item> = items.iter().flatten().filter(|item| item.term.uses_ratios()).collect();
    if scored.is_empty() && !settings.raw_only {
        return Err(Error::Numeric(format!(
            "{}: none of the {} records is scored by method {}; is everything RETAIN?",
            set.file.display(),
            set.records.len(),
            settings.recipe.method.name()
        )));
    }
    let gold = gold_batch(set, settings)?;
    let gold_file = match &settings.gold {
        Some(file) => GoldFile::Given(file),
        None => GoldFile::DrawnFrom(&set.file),
    };

    let full_key = json!({
        "context": key, "method": settings.recipe.method, "terms": settings.recipe.scored_as(), "beta": settings.beta, "max_length": settings.max_length,
        "pack_tokens": settings.pack_tokens, "gold_rows": settings.gold_rows, "gold": &gold, "records": content_hash(&set.records),
    });
    let (mut journal, finished) = Journal::open::<PackScores>(journal, &shared_hash(&full_key), control.attempt())?;
    let direction = direction_along(decoder, adapter, encoder, &gold, gold_file, settings, key, control, beat)?;

    let packs = dataset::packs(scored.iter().copied(), settings.pack_tokens);
    let bar = control.bar("score", scored.len() as u64);
    let (mut raw_scored, mut references) = (Vec::with_capacity(scored.len()), Vec::new());
    for (i, pack) in packs.iter().enumerate() {
        let scores = match finished.get(i) {
            Some(scores) => scores.clone(),
            None => {
                control.pass("score.pack");
                control.go_on()?;
                let scores = direction::pack_scores(
                    decoder,
                    adapter,
                    Direction::Adapter(&direction),
                    pack,
                    &objective,
                    adapter_is_fresh,
                );
                beat()?;
                if let Some(bad) = scores.first_not_finite(pack) {
                    let problem = format!(
                        "its score is {}, or a log-prob of it is not finite; look at the record's text, and at the model's \
                         weights and --dtype",
                        scores.raw[bad]
                    );
                    return Err(Error::record(&set.file, pack[bad].record, problem));
                }
                journal.append(std::slice::from_ref(&scores))?;
                scores
            }
        };
        bar.inc(pack.len() as u64);
        raw_scored.extend(scores.raw);
        references.extend(scores.reference);
    }
    bar.finish_and_clear();

    if settings.leave_gold_out {
        let gold_items = dataset::gold_items(encoder, &gold, gold_file, settings.max_length)?;
        let (point, pairs) = (Point { decoder, adapter, is_fresh: adapter_is_fresh }, (&gold[..], &gold_items[..]));
        let budget = settings.pack_tokens;
        pull::leave_own_out(point, set, &scored, &mut raw_scored, pairs, &objective, budget, control, beat)?;
    }
    let weights_scored = match settings.raw_only {
        true => vec![0.0; raw_scored.len()],
        false => match weights::weights(&raw_scored, settings.gamma, settings.norm, &set.file, |i| scored[i].record) {
            Ok(weights) => weights,
            Err(error) => {
                // These scores are of no use to anyone, and must not stand in the way of another gold batch's.
                journal.remove()?;
                return Err(error.into());
            }
        },
    };
    let (mut raw, mut weights) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    let mut next = raw_scored.iter().zip(&weights_scored);
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
        raw.push(pair.map(|(raw, _)| *raw));
        weights.push(pair.map_or(0.0, |(_, weight)| *weight));
    }
    Ok(Scores { raw, weights, gold, reference: by_key, truncated: Truncated::of(items.iter().flatten()), journal })
}

/// Returns g_J of a gold batch, from the file that keeps it or computed and kept there.
///
/// # Errors
/// The batch cannot be tokenised, or its gradient means nothing.
#[allow(clippy::too_many_arguments)]
pub fn direction_along(
    decoder: &Decoder,
    adapter: &Lora,
    encoder: &Encoder,
    gold: &[GoldPair],
    file: GoldFile<'_>,
    settings: &ScoreSettings,
    key: &serde_json::Value,
    control: &Control,
    beat: &mut dyn FnMut() -> Result<()>,
) -> Result<Lora> {
    let key = shared_hash(&json!({
        "context": key, "beta": settings.beta, "max_length": settings.max_length, "gold_rows": settings.gold_rows,
        "gold": gold,
    }));
    if let Some(kept) = &settings.gold_gradient
        && let Some(kept) = direction::read(kept, &key, adapter)?
    {
        return Ok(kept);
    }
    let mut items = dataset::gold_items(encoder, gold, file, settings.max_length)?;
    let mut all: Vec<&mut Item> = items.iter_mut().collect();
    reference::fill(decoder, &mut all, &Known::default(), None, settings.pack_tokens, control, &mut Alone)?;
    let objective = settings.objective();
    beat()?;
    let mut told = Ok(());
    let mut between = || told = std::mem::replace(&mut told, Ok(())).and_then(|()| beat());
    let made = direction::gradient(decoder, adapter, &items, &objective, settings.gold_rows, &mut between);
    told?;
    let (_, made) = made.map_err(|bad| bad.in_file(file.path(), direction::IN_GOLD))?;
    direction::check(&made, file.path())?;
    if let Some(kept) = &settings.gold_gradient {
        direction::write(kept, &key, &made)?;
    }
    Ok(made)
}

/// Returns the gold batch: the one that is given, or drawn.
///
/// # Errors
/// The file cannot be read, or there is nothing to draw from.
pub fn gold_batch(set: &DataSet, settings: &ScoreSettings) -> Result<Vec<GoldPair>> {
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
        use_corrections: matches!(settings.recipe.method, Method::OraclePunish | Method::DpoGold),
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

/// Writes the records with `raw_score` and `impact_score` (spec 1.6), whose terms were scored, and their log π_ref.
///
/// # Errors
/// The file cannot be written.
pub fn write_weighted(path: &Path, set: &DataSet, recipe: &Recipe, scores: &Scores) -> Result<()> {
    let mut out = shared::output::ArrayWriter::create(path)?;
    let numbers = scores.raw.iter().zip(&scores.weights).zip(&scores.reference);
    for (record, ((raw, weight), reference)) in set.records.iter().zip(numbers) {
        let mut record = record.clone();
        reference::keep(&mut record, reference);
        shared::weights::keep(&mut record, raw.unwrap_or(0.0), *weight, &recipe.scored_as());
        out.push(&record)?;
    }
    out.finish()?;
    Ok(())
}

/// Writes the records of a part with their raw scores and log π_ref alone; a record that the method does not score gets none.
///
/// # Errors
/// The file cannot be written.
pub fn write_raw(path: &Path, set: &DataSet, scores: &Scores) -> Result<()> {
    let mut out = shared::output::ArrayWriter::create(path)?;
    for ((record, raw), reference) in set.records.iter().zip(&scores.raw).zip(&scores.reference) {
        let mut record = record.clone();
        reference::keep(&mut record, reference);
        (record.raw_score, record.impact_score) = (*raw, None);
        out.push(&record)?;
    }
    out.finish()?;
    Ok(())
}
