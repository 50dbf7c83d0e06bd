//! `worker train`: from records to an adapter folder or full weights.
//!
//! Read top to bottom: options, the run folder and its key, the data, the loop. The run folder holds everything of the
//! run; the same command with the same `--run-name` goes on where the last one ended.

pub mod best;
pub mod checkpoint;
mod curves;
pub mod gang;
pub mod metrics;
pub mod optim;
pub mod optimizer;
pub mod options;
pub mod pace;
mod references;
mod rounds;
pub mod run_folder;
mod saved;
pub mod schedule;
pub mod sharded;
mod steps;
pub mod tensorboard;
pub mod u2a;
pub mod update;
pub mod validation;
mod weights;

use std::time::Instant;

use serde_json::json;
use tch::Kind;

use crate::collective::Collective;
use crate::control::Control;
use crate::dataset::{DataSet, Truncated};
use crate::error::{Error, Result};
use crate::measure;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::model::{adapter_file, export_check};
use crate::model_folder;
use crate::objective::method::{Method, Recipe, Term};
use crate::objective::promotions::Promotions;
use crate::objective::step::{Item, Policy};
use crate::score;
use optim::AdamW;
use optimizer::Optimizer;
pub use options::TrainArgs;
use rounds::Rounds;
use run_folder::RunFolder;
use sharded::Sharded;
use steps::{Sets, Trained, U2a};
use validation::Validation;

/// Runs the whole training, as one member of a gang or alone. Returns the run's summary as written to
/// `train_summary.json`. Every member computes; the first rank alone writes.
///
/// # Errors
/// Options, model, records or numbers are unusable; the message says which. A member of the gang is gone. The command was
/// told to stop. Checkpoints written so far stay.
pub fn run(args: &TrainArgs, control: &Control, gang: &mut dyn Collective) -> Result<serde_json::Value> {
    args.validate()?;
    args.note_without_effect();
    let started = Instant::now();
    let count = args.sample_size.unwrap_or(usize::MAX);
    let set = DataSet::read_first(&args.dataset_json_path, args.method, count)?;
    let replay_set = args.replay_json_path.as_ref().map(|file| DataSet::read(file, Method::Sft)).transpose()?;
    let total = args.plan(set.records.len()).total_steps();
    args.pace(total)?;
    args.u2a.check_rounds(total, args.hold_until_loss.is_some(), args.full)?;
    args.check_rescoring(total)?;
    let dtype = args.model.prepare()?;
    let model_dir = &args.model.model_name_or_path;
    let device = args.model.device()?;
    let load = || match args.from_scratch {
        true => Decoder::from_scratch(model_dir, args.seed, dtype, device),
        false => Decoder::load(model_dir, dtype, device),
    };
    let decoder = load()?;
    let encoder = args.text.encoder(model_dir, &decoder)?;
    let recipe = args.recipe();
    // Everything that can be wrong with the records is found before there is a folder.
    let mut items = set.items(&encoder, &recipe, args.max_length)?;
    let replay: Vec<Item> = match &replay_set {
        Some(set) => set
            .items(&encoder, &Recipe { method: Method::Sft, ..recipe }, args.max_length)?
            .into_iter()
            .flatten()
            .collect(),
        None => Vec::new(),
    };
    let truncated = Truncated::of(items.iter().flatten());
    let mut validation = Validation::read(args, &encoder)?;
    let promotions = Promotions::of(&recipe, &set)?;
    let stored_weights = weights::stored_weights(args, &set)?;
    let known_references = references::given(args, &set)?;
    let adapter = match (&args.init_adapter, args.full) {
        (Some(dir), _) => {
            let mut adapter = adapter_file::load(dir, &decoder.config, &decoder.fingerprint, decoder.device)?;
            args.lora.apply_to(&mut adapter.config)?;
            Some(adapter)
        }
        (None, true) => None,
        (None, false) => {
            Some(Lora::fresh(args.lora.fresh(&decoder.config)?, &decoder.config, args.seed, decoder.device))
        }
    };
    let mut run = RunFolder::open(args, gang.rank() == 0, control.attempt())?;
    let mut key = json!({
        "options": args.key(),
        "world_size": if args.any_world_size { json!("any") } else { json!(gang.world_size()) },
        "model": decoder.fingerprint,
        "folder": model_folder::content_hash(model_dir)?,
        "dtype": format!("{dtype:?}"),
        "records": score::content_hash(&set.records),
        "replay": replay_set.as_ref().map(|set| score::content_hash(&set.records)),
        "init_adapter": args.init_adapter.as_deref().map(adapter_file::content_hash).transpose()?,
        "gold": args.score.gold.as_deref().map(shared::gold::read).transpose()?.map(|g| score::shared_hash(&json!(g))),
    });
    if let Some(validation) = &validation {
        key["validation"] = validation.key(args);
    }
    if let Some(file) = &args.score.cg.curvature_json_path {
        key["curvature_records"] = json!(score::content_hash(&DataSet::read(file, args.method)?.records));
    }
    let complete = run.begin(&key)?.is_some();
    if gang.first_of(f64::from(u8::from(complete)))? != 0.0 {
        tracing::info!("{} is complete already", run.path.display());
        return run.summary();
    }
    if run.is_owned() {
        truncated.warn(&set.file, args.max_length);
        promotions.warn(&set.file);
        if let Some(set) = &replay_set {
            Truncated::of(&replay).warn(&set.file, args.max_length);
        }
        if let Some(validation) = &validation {
            validation.warn(args);
        }
        let scores = match &stored_weights {
            None => {
                // The other ranks wait for this one, and must hear of it.
                let mut beat = || gang.first_of(1.0).map(|_| ());
                weights::made_scores(args, &run, &decoder, adapter.as_ref(), &encoder, &set, control, &mut beat)?
            }
            Some(_) => None,
        };
        // From here on the folder belongs to these settings: nothing is refused any more for what they are.
        run.bind(&key)?;
        run.keep_set_aside(&set, replay_set.as_ref(), validation.as_ref().map(|validation| &validation.set))?;
        promotions.keep(&run.path.join("quality.json"))?;
        if let Some(scores) = scores {
            weights::keep_scores(args, &run, &set, scores)?;
        }
    }

    let is_scored_here = stored_weights.is_none();
    let mut weights = match stored_weights {
        Some(weights) => weights,
        None => {
            // The other ranks wait here until the file is whole.
            while gang.first_of(0.0)? != 0.0 {}
            weights::own_weights(&run)?
        }
    };
    let forget_set = items.iter().flatten().count();
    let scores = match args.has_rounds() {
        true => weights::raw_scores(&run, &set, &items, is_scored_here)?,
        false => Vec::new(),
    };
    if let Some(count) = args.u2a.u2a_top {
        weights = u2a::top(&scores, count);
        if count > forget_set {
            tracing::warn!(
                "--u2a-top is {count}, {} holds {forget_set} violating responses' records",
                set.file.display()
            );
        }
    }
    for (item, weight) in items.iter_mut().zip(weights) {
        if let Some(found) = item {
            found.weight = weight;
            // A term without weight moves nothing: it stays in the batch count and costs nothing. The NLL that may go with
            // a preference has a weight of its own.
            let has_nll = args.nll_weight != 0.0 && matches!(found.term, Term::Prefer(..));
            // One that may be given a weight later stays.
            if weight == 0.0 && found.term.uses_ratios() && !has_nll && args.rescore_every.is_none() {
                *item = None;
            }
        }
    }

    // Nothing is trained yet, so the decoder is still π_ref: a copy is needed only for what is computed later, the KL.
    references::fill(args, &run, &decoder, known_references, &mut items, control, gang)?;
    if let Some(validation) = &mut validation {
        validation.fill(&decoder, args.score.pack_tokens, control, gang)?;
    }
    let frozen;
    let validated = validation.iter().flat_map(|validation| validation.items());
    let has_anchors = items.iter().flatten().chain(validated).any(|item| item.term == Term::Anchor);
    let reference_decoder = if args.full && has_anchors {
        frozen = load()?;
        &frozen
    } else {
        &decoder
    };

    let trained = match &adapter {
        Some(adapter) => adapter.named_parameters(),
        None => decoder.named_parameters(),
    };
    let rounded = adapter.is_none() && dtype == Kind::BFloat16;
    let handles: Vec<_> = trained.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    let mut optimizer = match adapter.is_none() && gang.world_size() > 1 {
        true => {
            let reference = (!std::ptr::eq(reference_decoder, &decoder)).then_some(reference_decoder);
            let spread = args.shard_parameters;
            let sharded = Sharded::new(args.adam(), &decoder, reference, rounded, &*gang, spread);
            Optimizer::Sharded(Box::new(sharded))
        }
        false => Optimizer::Whole(AdamW::new(args.adam(), trained, rounded)),
    };
    let policy = Policy {
        decoder: &decoder,
        adapter: adapter.as_ref(),
        reference: reference_decoder,
        train_head: adapter.is_none(),
        recompute: args.recompute || args.shard_parameters,
    };
    let groups = args.batching.groups(&set.records);
    let mut rounds = Rounds::new(args, &set, &encoder, policy, total, control, gang)?;
    let u2a = rounds.as_mut().map(|rounds| U2a { rounds, scores: &scores });
    let sets = Sets { items: &mut items, groups: &groups, replay: &replay, validation: validation.as_ref(), u2a };
    let mut in_flight = run.in_flight(&set.file, gang)?;
    let trained = steps::train(args, &run, policy, sets, &mut optimizer, &mut in_flight, control, gang);
    match &trained {
        // A member died or hung, perhaps of what it had to compute.
        Err(Error::Gang(_)) if control.stop().is_none() => in_flight.leave(),
        Ok(_) | Err(Error::Gang(_) | Error::Stopped) => {}
        Err(_) => run.excuse_step(),
    }
    let Trained { tokens, best, last, checkpoints, times } = trained?;
    in_flight.done();
    drop(in_flight);

    let seconds = started.elapsed().as_secs_f64();
    let mut summary = json!({
        "run": run.path.display().to_string(), "method": args.method, "steps": optimizer.step(), "records": set.records.len(),
        "set_aside": set.quarantine.len(), "truncated": truncated.records,
        "world_size": gang.world_size(), "seconds": seconds, "step_seconds": times.steps.as_secs_f64(), "tokens": tokens,
        "tokens_per_s": tokens as f64 / seconds, "peak_rss_gib": measure::peak_rss_gib(),
        "threads": tch::get_num_threads(), "promoted": promotions.figures, "checkpoints": checkpoints,
    });
    if gang.world_size() > 1 {
        summary["gang"] = times.told();
    }
    if args.method == Method::U2a {
        let selected = items.iter().flatten().count();
        summary["u2a"] = json!({"forget_set": forget_set, "selected": selected});
        if let Some(rounds) = &rounds {
            summary["u2a"]["rounds"] = json!(rounds.told());
            summary["u2a"]["objective_after"] = json!(rounds.objective(policy, gang)?);
        }
    }
    if let (Some(every), Some(rounds)) = (args.rescore_every, &rounds) {
        summary["rescored"] = json!({"every": every, "rounds": rounds.told()});
    }
    if let Some(validation) = &validation {
        summary["validation"] = json!({
            "records": validation.set.records.len(), "set_aside": validation.set.quarantine.len(),
            "loss": last.map(|last| last.loss), "best": best, "kept": if args.validation.load_best { "best" } else { "last" },
        });
    }
    optimizer.with_weights(gang, |_| {
        if !run.is_owned() {
            return Ok(());
        }
        run.check()?;
        if args.validation.load_best {
            best::load(&run.path, adapter.is_some(), &handles)?;
        }
        saved::save(policy, model_dir, &run, control)?;
        if let Some(adapter) = &adapter
            && let Some(sequence) = items.iter().flatten().find_map(|item| item.sequences.first())
        {
            let change = export_check::check(&run.path, adapter, &decoder, sequence)?;
            if change == 0.0 {
                tracing::warn!("{}: the adapter changes no logit of the first record", run.path.display());
            }
            summary["largest_logit_change"] = json!(change);
        }
        run.finish(summary.clone()).map(|_| ())
    })?;
    // Nobody is done before the outputs are written.
    gang.barrier()?;
    Ok(summary)
}
