//! `worker train`: from records to an adapter folder or full weights.
//!
//! Read top to bottom: options, the run folder and its key, the data, the loop. The run folder holds everything of the
//! run; the same command with the same `--run-name` goes on where the last one ended.

pub mod checkpoint;
mod curves;
pub mod metrics;
pub mod optim;
pub mod options;
pub mod pace;
mod references;
pub mod run_folder;
pub mod schedule;
pub mod tensorboard;

use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tch::Kind;

use crate::collective::{self, Collective};
use crate::control::{Control, Stop};
use crate::dataset::{self, DataSet, Truncated};
use crate::error::{Error, Result};
use crate::measure;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::model::{adapter_file, export_check};
use crate::model_folder;
use crate::objective::method::{Method, Term};
use crate::objective::step::{self, DropoutKey, Item, LossParts, Policy};
use crate::score::{self, Scores};
use crate::text::Encoder;
use curves::Curves;
use metrics::StepMetrics;
use optim::AdamW;
pub use options::TrainArgs;
use run_folder::RunFolder;

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
    args.pace(args.plan(set.records.len()).total_steps())?;
    let dtype = args.model.prepare()?;
    let model_dir = &args.model.model_name_or_path;
    let device = args.model.device()?;
    let load = || match args.from_scratch {
        true => Decoder::from_scratch(model_dir, args.seed, dtype, device),
        false => Decoder::load(model_dir, dtype, device),
    };
    let decoder = load()?;
    let encoder = args.text.encoder(model_dir, &decoder)?;
    // Everything that can be wrong with the records is found before there is a folder.
    let mut items = set.items(&encoder, args.method, args.alpha_kl, args.max_length)?;
    let replay: Vec<Item> = match &replay_set {
        Some(set) => set.items(&encoder, Method::Sft, 0.0, args.max_length)?.into_iter().flatten().collect(),
        None => Vec::new(),
    };
    let truncated = Truncated::of(items.iter().flatten());
    let stored_weights = stored_weights(args, &set)?;
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
    let key = json!({
        "options": args.key(),
        "world_size": gang.world_size(),
        "model": decoder.fingerprint,
        "folder": model_folder::content_hash(model_dir)?,
        "dtype": format!("{dtype:?}"),
        "records": score::content_hash(&set.records),
        "replay": replay_set.as_ref().map(|set| score::content_hash(&set.records)),
        "init_adapter": args.init_adapter.as_deref().map(adapter_file::content_hash).transpose()?,
        "gold": args.score.gold.as_deref().map(shared::gold::read).transpose()?.map(|g| score::shared_hash(&json!(g))),
    });
    let complete = run.begin(&key)?.is_some();
    if gang.first_of(f64::from(u8::from(complete)))? != 0.0 {
        tracing::info!("{} is complete already", run.path.display());
        return run.summary();
    }
    if run.is_owned() {
        truncated.warn(&set.file, args.max_length);
        if let Some(set) = &replay_set {
            Truncated::of(&replay).warn(&set.file, args.max_length);
        }
        let scores = match &stored_weights {
            None => made_scores(args, &run, &decoder, adapter.as_ref(), &encoder, &set, control)?,
            Some(_) => None,
        };
        // From here on the folder belongs to these settings: nothing is refused any more for what they are.
        run.bind(&key)?;
        keep_set_aside(&run, &set, replay_set.as_ref())?;
        if let Some(scores) = scores {
            keep_scores(args, &run, &set, scores)?;
        }
    }

    let weights = match stored_weights {
        Some(weights) => weights,
        None => {
            // The other ranks wait here until the file is whole.
            gang.first_of(0.0)?;
            own_weights(&run)?
        }
    };
    for (item, weight) in items.iter_mut().zip(weights) {
        if let Some(found) = item {
            found.weight = weight;
            // A term without weight moves nothing: it stays in the batch count and costs nothing.
            if weight == 0.0 && found.term.uses_ratios() {
                *item = None;
            }
        }
    }

    // Nothing is trained yet, so the decoder is still π_ref: a copy is needed only for what is computed later, the KL.
    references::fill(args, &run, &decoder, known_references, &mut items, control, gang)?;
    let frozen;
    let reference_decoder = if args.full && items.iter().flatten().any(|item| item.term == Term::Anchor) {
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
    let mut optimizer = AdamW::new(args.adam(), trained, rounded);
    let policy = Policy {
        decoder: &decoder,
        adapter: adapter.as_ref(),
        reference: reference_decoder,
        train_head: adapter.is_none(),
        recompute: args.recompute,
    };
    let groups = args.batching.groups(&set.records);
    let tokens = train(args, &run, policy, &items, &groups, &replay, &mut optimizer, control, gang)?;

    let seconds = started.elapsed().as_secs_f64();
    let mut summary = json!({
        "run": run.path.display().to_string(), "method": args.method, "steps": optimizer.step, "records": set.records.len(),
        "set_aside": set.quarantine.len(), "truncated": truncated.records,
        "world_size": gang.world_size(), "seconds": seconds, "tokens": tokens,
        "tokens_per_s": tokens as f64 / seconds, "peak_rss_gib": measure::peak_rss_gib(),
        "threads": tch::get_num_threads(),
    });
    if run.is_owned() {
        run.check()?;
        match &adapter {
            Some(adapter) => {
                let name = model_folder::full_name(model_dir);
                adapter_file::save(adapter, &run.path, &name, &decoder.fingerprint)?;
                model_folder::copy_text_files(model_dir, &run.path)?;
                if let Some(sequence) = items.iter().flatten().find_map(|item| item.sequences.first()) {
                    let change = export_check::check(&run.path, adapter, &decoder, sequence)?;
                    if change == 0.0 {
                        tracing::warn!("{}: the adapter changes no logit of the first record", run.path.display());
                    }
                    summary["largest_logit_change"] = json!(change);
                }
            }
            None => model_folder::save(model_dir, &run.path, &decoder.named_parameters(), dtype)?,
        }
        run.finish(summary.clone())?;
    }
    // Nobody is done before the outputs are written.
    gang.first_of(0.0)?;
    Ok(summary)
}

/// The loop. Returns the tokens computed in this process and its gang.
#[allow(clippy::too_many_arguments)]
fn train(
    args: &TrainArgs,
    run: &RunFolder,
    policy: Policy<'_>,
    items: &[Option<Item>],
    groups: &[usize],
    replay: &[Item],
    optimizer: &mut AdamW,
    control: &Control,
    gang: &mut dyn Collective,
) -> Result<usize> {
    let plan = args.plan(items.len());
    let mut pace = args.pace(plan.total_steps())?;
    let dropout_probability = match policy.adapter {
        Some(adapter) => adapter.config.dropout,
        None => 0.0,
    };
    let (start, seen) = checkpoint::resume(&run.path, optimizer, &run.key)?.unwrap_or_default();
    pace.restore(seen);
    let starts = gang.all_gather_f64(start as f64)?;
    if starts.iter().any(|other| *other != start as f64) {
        return Err(Error::Gang(format!("the ranks found checkpoints of different steps: {starts:?}")));
    }
    if start > 0 {
        tracing::info!("continuing {} from step {start} of {}", run.path.display(), pace.total());
    }
    run.check()?;
    let mut curves = if run.is_owned() { Some(Curves::open(run, start)?) } else { None };
    let bar = control.bar("train", pace.total());
    bar.start_at(start);
    let (mut order, mut order_epoch) = (Vec::new(), u64::MAX);
    let mut tokens = 0;

    let (mut step, mut begun) = (start, Instant::now());
    while step < pace.total() {
        let epoch = plan.epoch_of(step);
        if epoch != order_epoch {
            (order, order_epoch) = (plan.epoch_order(epoch, groups), epoch);
        }
        let batch = &order[plan.batch_range(step)];
        let dropout = (dropout_probability > 0.0).then_some(DropoutKey {
            probability: dropout_probability,
            seed: args.seed,
            epoch,
            step,
        });

        optimizer.zero_grad();
        let mut sums = StepSums { parts: own_pass(args, policy, items, batch, dropout, gang)?, ..StepSums::default() };
        if !replay.is_empty() {
            sums.replayed = replay_pass(args, policy, replay, step, gang)?;
        }
        sums.stop = control.stop();
        exchange(&mut sums, optimizer, gang)?;

        let norm = optimizer.gradient_norm();
        if !norm.is_finite() {
            let records: Vec<usize> = batch.iter().filter_map(|&i| items[i].as_ref()).map(|i| i.record).collect();
            return Err(Error::Numeric(format!(
                "{}: step {}: the gradient is not finite; the records of this step are {records:?}. Lower the \
                 learning rate or remove the record at fault; the last checkpoint is untouched",
                args.dataset_json_path.display(),
                step + 1
            )));
        }
        let clip = if args.max_grad_norm > 0.0 { (args.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let rate = pace.rate(step);
        optimizer.update(rate, clip);

        tokens += sums.parts.tokens;
        let metrics = StepMetrics {
            loss_replay: (!replay.is_empty()).then_some(sums.replayed),
            grad_norm: norm,
            learning_rate: rate,
            ..StepMetrics::new(step + 1, epoch, &sums.parts, batch.len(), args.alpha_kl)
        };
        run.check()?;
        if let Some(curves) = &mut curves {
            curves.append(&metrics, std::mem::replace(&mut begun, Instant::now()))?;
        }
        // A batch of records without a loss has no gradient, and says nothing of the others.
        let felt = if sums.parts.tokens > 0 { norm } else { f64::INFINITY };
        if pace.saw(step, metrics.loss, felt) && run.is_owned() {
            tracing::warn!(
                "{}: the loss has not come down to --hold-until-loss; the learning rate falls all the same, so that the run \
                 ends with its {} updates",
                run.path.display(),
                pace.total()
            );
        }
        step += 1;
        bar.set_length(pace.total());
        bar.advance(1, format!("loss {:.4}", metrics.loss));
        control.pass("train.step");
        let is_due = step % args.save_steps == 0 || sums.stop == Some(Stop::Paused);
        if is_due
            && step < pace.total()
            && let Some(curves) = &curves
        {
            curves.metrics.sync()?;
            checkpoint::save(&run.path, optimizer, pace.seen(), &run.key, args.save_total_limit, &|| run.check())?;
        }
        if sums.stop.is_some() && step < pace.total() {
            // Whoever goes on from here finds the checkpoint whole.
            gang.first_of(0.0)?;
            return Err(Error::Stopped);
        }
    }
    bar.finish_and_clear();
    Ok(tokens)
}

/// A step's sums, this rank's own at first, the gang's after [`exchange`].
#[derive(Debug, Default)]
struct StepSums {
    parts: LossParts,
    /// Mean-token NLL of the replay batch.
    replayed: f64,
    /// What any rank was told; all obey at the same step.
    stop: Option<Stop>,
}

/// Adds sums and gradients over the ranks.
fn exchange(sums: &mut StepSums, optimizer: &mut AdamW, gang: &mut dyn Collective) -> Result<()> {
    if gang.world_size() == 1 {
        return Ok(());
    }
    let told = |stop| f64::from(u8::from(sums.stop == Some(stop)));
    let mut numbers = sums.parts.numbers().to_vec();
    numbers.extend([sums.replayed, told(Stop::Cancelled), told(Stop::Paused)]);
    gang.all_reduce_f64(&mut numbers)?;
    let mut gradients = optimizer.flat_gradients();
    gang.all_reduce(&mut gradients)?;
    optimizer.set_flat_gradients(&gradients);
    sums.parts = LossParts::from_numbers(numbers[..LossParts::NUMBERS].try_into().expect("as many"));
    let rest = &numbers[LossParts::NUMBERS..];
    sums.replayed = rest[0];
    sums.stop = match (rest[1] > 0.0, rest[2] > 0.0) {
        (true, _) => Some(Stop::Cancelled),
        (false, true) => Some(Stop::Paused),
        (false, false) => None,
    };
    Ok(())
}

/// This rank's part of a step: forward, loss and backward over the records dealt to it.
fn own_pass(
    args: &TrainArgs,
    policy: Policy<'_>,
    items: &[Option<Item>],
    batch: &[usize],
    dropout: Option<DropoutKey>,
    gang: &dyn Collective,
) -> Result<LossParts> {
    let settings = args.objective();
    let scale = 1.0 / batch.len() as f64;
    let costs: Vec<usize> = batch.iter().map(|&i| items[i].as_ref().map_or(0, Item::tokens)).collect();
    let own = &collective::deal(&costs, gang.world_size())[gang.rank()];
    let mut parts = LossParts::default();
    let present = own.iter().filter_map(|&position| items[batch[position]].as_ref());
    for pack in dataset::packs(present, args.score.pack_tokens) {
        let sums = step::accumulate(policy, &pack, &settings, scale, dropout);
        parts.add(&sums.map_err(|bad| bad.in_file(&args.dataset_json_path, ADVICE))?);
    }
    Ok(parts)
}

/// What to do about a loss that is not finite.
const ADVICE: &str = "lower --learning-rate or remove the record; at the first step, look at the model's weights and \
                      --dtype";

/// This rank's part of a step's replay batch; returns its part of the mean-token NLL.
fn replay_pass(args: &TrainArgs, policy: Policy<'_>, replay: &[Item], step: u64, gang: &dyn Collective) -> Result<f64> {
    let picked = schedule::replay_batch(args.seed, step, replay.len(), args.replay_batch_size);
    let scale = args.replay_weight / picked.len() as f64;
    let costs: Vec<usize> = picked.iter().map(|&i| replay[i].tokens()).collect();
    let own = &collective::deal(&costs, gang.world_size())[gang.rank()];
    let mut nll = 0.0;
    for pack in dataset::packs(own.iter().map(|&position| &replay[picked[position]]), args.score.pack_tokens) {
        let file = args.replay_json_path.as_deref().unwrap_or(&args.dataset_json_path);
        let sums = step::accumulate(policy, &pack, &args.objective(), scale, None);
        nll += sums.map_err(|bad| bad.in_file(file, ADVICE))?.nll;
    }
    Ok(nll / picked.len() as f64)
}

/// Writes what was set aside into the run's folder.
fn keep_set_aside(run: &RunFolder, set: &DataSet, replay: Option<&DataSet>) -> Result<()> {
    let beside = |file: &Path, part: &str| run.path.join(format!("{}{part}.json", shared::output::stem(file)));
    set.set_aside(&beside(&set.file, ""))?;
    match replay {
        Some(set) => set.set_aside(&beside(&set.file, "_replay")),
        None => Ok(()),
    }
}

/// Scores the records, unless this run did before it was interrupted; finished packs are kept in the folder until
/// [`keep_scores`].
fn made_scores(
    args: &TrainArgs,
    run: &RunFolder,
    decoder: &Decoder,
    adapter: Option<&Lora>,
    encoder: &Encoder,
    set: &DataSet,
    control: &Control,
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
    score::score(decoder, adapter, is_fresh, encoder, set, &settings, &journal, &key, control).map(Some)
}

/// Writes the gold batch and the weighted records, which end the scoring.
fn keep_scores(args: &TrainArgs, run: &RunFolder, set: &DataSet, scores: Scores) -> Result<()> {
    let gold_out = run.path.join("gold.json");
    if !args.score.gold.as_deref().is_some_and(|given| shared::output::same_file(given, &gold_out)) {
        shared::output::write_json(&gold_out, &scores.gold)?;
    }
    score::write_weighted(&weighted_file(run), set, args.method, &scores)?;
    scores.journal.remove()
}

/// Returns the weight of every record as this run made it.
fn own_weights(run: &RunFolder) -> Result<Vec<f64>> {
    let records: Vec<shared::record::Record> = shared::input::read_all(&weighted_file(run))?;
    Ok(records.iter().map(|record| record.impact_score.unwrap_or(0.0)).collect())
}

fn weighted_file(run: &RunFolder) -> std::path::PathBuf {
    run.path.join("weighted_dataset.json")
}

/// Returns the weights that are known without scoring: 1 where the method has none, or those that the records bring.
fn stored_weights(args: &TrainArgs, set: &DataSet) -> Result<Option<Vec<f64>>> {
    if !args.method.is_weighted() || args.uniform_weights {
        return Ok(Some(vec![1.0; set.records.len()]));
    }
    if args.rescore {
        return Ok(None);
    }
    let mut weights = Vec::with_capacity(set.records.len());
    let (mut missing, mut sum, mut conflict) = (None, 0.0, 0);
    for (record, &index) in set.records.iter().zip(&set.index) {
        let named = |problem: String| Error::record(&set.file, index, problem);
        let needs = args.method.term(record, 0.0).map_err(named)?.is_some_and(|term| term.uses_ratios());
        let scored_as = record.extra.get(shared::weights::METHOD_FIELD).and_then(serde_json::Value::as_str);
        if let Some(name) = scored_as.filter(|name| needs && *name != args.method.scored_as().name()) {
            return Err(named(format!(
                "its weight was made for method {name}, not for {}; score the records again (--rescore)",
                args.method.name()
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
            "{}: every weight is 0, so training would do nothing; score the file again (--rescore) or use --method \
             no-impact",
            set.file.display()
        ))),
        None => Ok(Some(weights)),
    }
}
