//! The weights of a run's records: those that the records bring, or those of scores made on the way and kept in the run's
//! folder.

use shared::weights::WeightNorm;

use super::TrainArgs;
use super::run_folder::RunFolder;
use crate::control::Control;
use crate::dataset::DataSet;
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::objective::method::Method;
use crate::objective::step::Item;
use crate::score::{self, Scores, Setup};
use crate::text::Encoder;

/// Scores the records, unless this run did before it was interrupted; finished packs are kept in the folder until
/// [`keep_scores`]. `beat` as in [`score::score`].
#[allow(clippy::too_many_arguments)]
pub(super) fn made_scores(
    args: &TrainArgs,
    run: &RunFolder,
    decoder: &Decoder,
    adapter: Option<&Lora>,
    encoder: &Encoder,
    set: &DataSet,
    control: &Control,
    beat: &mut dyn FnMut() -> Result<()>,
) -> Result<Option<Scores>> {
    if weighted_file(run).exists() {
        // Written whole before training began.
        return Ok(None);
    }
    let fresh;
    let (adapter, is_fresh) = match adapter {
        Some(adapter) => (adapter, args.init_adapter.is_none()),
        None => {
            fresh = Lora::fresh(args.lora.fresh(&decoder.config)?, &decoder.config, args.seed, decoder.device);
            (&fresh, true)
        }
    };
    let journal = run.path.join("score.journal");
    let settings = args.score_settings();
    let model_dir = &args.model.model_name_or_path;
    let key = score::context(decoder, model_dir, &args.text, &args.lora, args.seed, args.init_adapter.as_deref())?;
    let setup = Setup { decoder, adapter, is_fresh, encoder, settings: &settings, key: &key, control };
    score::score(setup, set, &journal, beat).map(Some)
}

/// Writes the gold batch and the weighted records, which end the scoring.
pub(super) fn keep_scores(args: &TrainArgs, run: &RunFolder, set: &DataSet, scores: Scores) -> Result<()> {
    let gold_out = run.path.join("gold.json");
    if !args.score.gold.as_deref().is_some_and(|given| shared::output::same_file(given, &gold_out)) {
        shared::output::write_json(&gold_out, &scores.gold)?;
    }
    score::write_weighted(&weighted_file(run), set, &args.recipe(), &scores)?;
    set.warn_of_clamped(&scores.raw_scores());
    scores.journal.remove()
}

/// Returns the weight of every record as this run made it.
pub(super) fn own_weights(run: &RunFolder) -> Result<Vec<f64>> {
    let records: Vec<shared::record::Record> = shared::input::read_all(&weighted_file(run))?;
    Ok(records.iter().map(|record| record.impact_score.unwrap_or(0.0)).collect())
}

/// Returns δ, the raw score, of every record that has an item; `is_own` says that this run made the scores.
///
/// # Errors
/// A record's score is missing.
pub(super) fn raw_scores(
    run: &RunFolder,
    set: &DataSet,
    items: &[Option<Item>],
    is_own: bool,
) -> Result<Vec<Option<f64>>> {
    let own: Vec<shared::record::Record>;
    let records = if is_own {
        own = shared::input::read_all(&weighted_file(run))?;
        &own
    } else {
        &set.records
    };
    let score =
        |((item, record), index): ((&Option<Item>, &shared::record::Record), &usize)| match (item, record.raw_score) {
            (None, _) => Ok(None),
            (Some(item), _) if !item.term.uses_ratios() => Ok(None),
            (Some(_), Some(score)) if score.is_finite() => Ok(Some(score)),
            (Some(_), found) => {
                let found = found.map_or("missing".to_owned(), |score| score.to_string());
                let problem = format!(
                    "field \"raw_score\" is {found}; rounds begin with it: score the records again (--rescore)"
                );
                Err(Error::record(&set.file, *index, problem))
            }
        };
    items.iter().zip(records).zip(&set.index).map(score).collect()
}

pub(super) fn weighted_file(run: &RunFolder) -> std::path::PathBuf {
    run.path.join("weighted_dataset.json")
}

/// Returns the weights that are known without scoring: 1 where the method has none, or those that the records bring.
pub(super) fn stored_weights(args: &TrainArgs, set: &DataSet) -> Result<Option<Vec<f64>>> {
    if !args.method.is_weighted() || args.uniform_weights {
        return Ok(Some(vec![1.0; set.records.len()]));
    }
    if args.rescore {
        return Ok(None);
    }
    let recipe = args.recipe();
    let own_name = recipe.scored_as();
    let mut weights = Vec::with_capacity(set.records.len());
    let (mut missing, mut sum, mut conflict) = (None, 0.0, 0);
    for (record, &index) in set.records.iter().zip(&set.index) {
        let named = |problem: String| Error::record(&set.file, index, problem);
        let needs = recipe.decide(record).map_err(named)?.term.is_some_and(|term| term.uses_ratios());
        let scored_as = record.extra.get(shared::weights::METHOD_FIELD).and_then(serde_json::Value::as_str);
        if let Some(name) = scored_as.filter(|name| needs && *name != own_name) {
            let is_same_method = name.split('+').next() == own_name.split('+').next();
            let with = if is_same_method { ", with another --quality-filter or --quality-min-words" } else { "" };
            return Err(named(format!(
                "its weight was made for method {name}, not for {own_name}{with}; score the records again (--rescore)"
            )));
        }
        match record.impact_score {
            Some(weight) if !weight.is_finite() || weight < 0.0 => {
                return Err(named(format!("field \"impact_score\" is {weight}; expected a number from 0")));
            }
            Some(weight) if needs => {
                conflict += 1;
                sum += weight;
                weights.push(weight);
            }
            None if needs => {
                missing = missing.or(Some(index));
                weights.push(0.0);
            }
            _ => weights.push(1.0),
        }
    }
    match missing {
        Some(_) if conflict == 0 => Ok(None),
        Some(index) => Err(Error::record(
            &set.file,
            index,
            "field \"impact_score\" is missing while other records have one; score the whole file again (--rescore)",
        )),
        None if conflict > 0 && sum == 0.0 => Err(Error::Numeric(format!(
            "{}: every weight is 0, so training would do nothing; score the file again (--rescore) or use --method {}, \
             which has no weights",
            set.file.display(),
            if args.method == Method::U2a { "npo" } else { "no-impact" }
        ))),
        None => {
            if args.rescore_every.is_some() && conflict > 0 {
                check_continuation(args, set, sum, conflict)?;
            }
            Ok(Some(weights))
        }
    }
}

/// Makes sure that weights made anew go on where those of the file, `conflict` of that sum, left off.
fn check_continuation(args: &TrainArgs, set: &DataSet, sum: f64, conflict: usize) -> Result<()> {
    let file = set.file.display();
    if args.score.gold.is_none() {
        return Err(Error::Config(format!(
            "--rescore-every: the weights of {file} belong to a gold batch that is not known here; give it as --gold, or score \
             the records again (--rescore)"
        )));
    }
    // The sums of both rules; a part of a file is still nearer to its own.
    let distance = |of: f64| (sum / of).ln().abs();
    let (mean1, reference) = (distance(conflict as f64), distance(1.0));
    let (is_other, other) = match args.score.weight_norm {
        WeightNorm::Mean1 => (reference < mean1, WeightNorm::Reference),
        WeightNorm::Reference => (mean1 < reference, WeightNorm::Mean1),
    };
    if is_other {
        return Err(Error::Config(format!(
            "--rescore-every: the {conflict} weights of {file} add up to {sum:.3}, so they are of --weight-norm {}, not of {}; \
             give the options of [score] that they were made with, or score the records again (--rescore)",
            other.name(),
            args.score.weight_norm.name()
        )));
    }
    Ok(())
}
