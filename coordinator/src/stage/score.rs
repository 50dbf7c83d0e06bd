//! Scoring in shards: the gold batch is drawn here, records are cut into shards by content, raw scores come back and
//! become weights once, over all of them.
//!
//! Shards cost about alike in tokens, whatever the number of workers ([`shards`]), and always hold the same packs. Their
//! files are named by what they hold, so that scores of another cut are never taken for theirs. Records that carry no
//! weight (of RETAIN, but for methods that punish there too) are not sent.

use std::path::{Path, PathBuf};

use shared::curvature::Report;
use shared::gold::{self, GoldOptions, GoldPair, Pool};
use shared::output::ArrayWriter;
use shared::quarantine::Quarantine;
use shared::record::{CategoryCounts, Record};
use shared::weights::{WITH_SCORE, clamped_warning, keep, weights};
use shared::{Error, Result, input};

use super::{Context, args, curvature, shards};
use crate::plan::{Kind, Task};
use crate::run_file::Method;

/// The worker's `--max-length` where a run file does not say.
const MAX_LENGTH: f64 = 256.0;

/// The usable records of a file with their indices in it, and those without text.
struct Usable {
    records: Vec<Record>,
    index: Vec<usize>,
    quarantine: Quarantine,
}

fn usable(file: &Path) -> Result<Usable> {
    let mut usable = Usable { records: Vec::new(), index: Vec::new(), quarantine: Quarantine::of("score") };
    input::for_each(file, |index, record: Record| {
        if record.rejected.is_none() {
            return Err(Error::field(file, index, "rejected", "is missing"));
        }
        match record.empty_field() {
            Some(field) => usable.quarantine.push(file, index, field, "is empty", &record)?,
            None => {
                usable.records.push(record);
                usable.index.push(index);
            }
        }
        Ok(())
    })?;
    if usable.records.is_empty() {
        return Err(Error::file(file, "holds no usable record: all have an empty prompt or response"));
    }
    Ok(usable)
}

/// Draws a variant's gold batch, or reads the one it is given; returns the task of its gradient.
pub(super) fn begin_gold(context: &Context, variant: usize) -> Result<Vec<Task>> {
    let settings = &context.variant(variant).score;
    let pairs = match &settings.gold {
        Some(file) => gold::read(&file.at(&context.run_dir))?,
        None => {
            let file = context.records(variant);
            let Usable { records, index, .. } = usable(&file)?;
            let size = settings.gold_batch_size as usize;
            let use_corrections = settings.options.is_on("gold_corrections")
                || context.variant(variant).method.is_some_and(Method::needs_corrections);
            let options = GoldOptions { size, seed: settings.gold_seed, use_corrections };
            gold::draw(Pool { file: &file, records: &records, index: &index }, options)?.pairs
        }
    };
    gold::write(&context.of_variant(variant, "gold.json"), &pairs)?;
    if context.variant(variant).is_curved() {
        let Usable { records, .. } = usable(&context.records(variant))?;
        let positions = scored(&records, method(context, variant)?);
        curvature::write(context, variant, &records, &positions)?;
    }
    Ok(vec![Task {
        name: "gold".to_owned(),
        kind: Kind::Score,
        args: args::gold(context, variant),
        world_size: 1,
        min_workers: None,
        outputs: vec![context.relative(&context.of_variant(variant, args::GOLD_GRADIENT))],
    }])
}

/// Returns what people should know of a gold batch that was drawn, and of the direction that was made of it.
pub(super) fn gold_warning(context: &Context, variant: usize) -> Result<Option<String>> {
    let settings = &context.variant(variant).score;
    let mut warnings = Vec::new();
    if settings.gold.is_none() {
        let records = usable(&context.records(variant))?.records;
        let counts = CategoryCounts::of(records.iter().filter_map(|record| record.category));
        let pairs: Vec<GoldPair> = gold::read(&context.of_variant(variant, "gold.json"))?;
        warnings = gold::warnings(counts, &pairs, settings.gold_batch_size as usize);
    }
    if context.variant(variant).is_curved() {
        let reports: Vec<Report> = input::read_json(&context.of_variant(variant, args::CURVATURE_REPORT))?;
        warnings.extend(reports.iter().filter(|report| !report.converged).map(Report::told));
    }
    Ok((!warnings.is_empty()).then(|| warnings.join("; ")))
}

/// Returns the positions of the records that get a score.
fn scored(records: &[Record], method: Method) -> Vec<usize> {
    (0..records.len()).filter(|&at| method.scores(&records[at])).collect()
}

fn method(context: &Context, variant: usize) -> Result<Method> {
    let name = &context.variant(variant).name;
    context.variant(variant).method.ok_or_else(|| Error::Config(format!("variant {name} has nothing to score")))
}

/// Some of the records that get a score, for one task.
struct Shard<'a> {
    name: String,
    /// Positions of its records.
    positions: &'a [usize],
    records: PathBuf,
    scores: PathBuf,
}

/// Cuts the records that get a score into shards with files in `folder`.
fn cut<'a>(
    context: &Context,
    variant: usize,
    records: &[Record],
    positions: &'a [usize],
    folder: &Path,
) -> Result<Vec<Shard<'a>>> {
    let (settings, method) = (context.variant(variant), method(context, variant)?);
    let max_length = settings.train.options.number("max_length").unwrap_or(MAX_LENGTH) as u64;
    let costs: Vec<u64> = positions.iter().map(|at| shards::cost(&records[*at], method, max_length)).collect();
    let cut = shards::cut(&costs, settings.score.shard_records as usize);
    let shard = |(number, range): (usize, std::ops::Range<usize>)| {
        let positions = &positions[range];
        let mut hasher = blake3::Hasher::new();
        for at in positions {
            let line = serde_json::to_vec(&records[*at]).expect("a record is plain data");
            hasher.update(&line).update(b"\n");
        }
        let content = hasher.finalize().to_hex()[..16].to_owned();
        let file = |kind: &str| folder.join(format!("{kind}-{number:04}-{content}.json"));
        Shard { name: format!("shard-{number:04}"), positions, records: file("records"), scores: file("scores") }
    };
    Ok(cut.into_iter().enumerate().map(shard).collect())
}

/// Cuts a variant's records into shards; returns the tasks of those that have no scores yet.
pub(super) fn begin(context: &Context, variant: usize, folder: &Path) -> Result<Vec<Task>> {
    let file = context.records(variant);
    let Usable { records, .. } = usable(&file)?;
    let positions = scored(&records, method(context, variant)?);
    if positions.is_empty() {
        return Err(Error::file(
            &file,
            "holds no record of the conflict (INVERT or PUNISH): there is nothing to score",
        ));
    }
    let mut tasks = Vec::new();
    for shard in cut(context, variant, &records, &positions, folder)? {
        if shard.scores.exists() {
            continue;
        }
        let mut writer = ArrayWriter::create(&shard.records)?;
        shard.positions.iter().try_for_each(|at| writer.push(&records[*at]))?;
        writer.finish()?;
        let mut args = args::score(context, variant);
        args.extend(args::score_shard(&shard.records, &shard.scores));
        tasks.push(Task {
            name: shard.name,
            kind: Kind::Score,
            args,
            world_size: 1,
            min_workers: None,
            outputs: vec![context.relative(&shard.scores)],
        });
    }
    Ok(tasks)
}

/// Joins the shards' scores and makes the weights. Returns what people should know of them.
pub(super) fn finish(context: &Context, variant: usize, folder: &Path) -> Result<Option<String>> {
    let file = context.records(variant);
    let Usable { mut records, index, quarantine } = usable(&file)?;
    let method = method(context, variant)?;
    let positions = scored(&records, method);
    let settings = &context.variant(variant).score;
    let mut raw = Vec::with_capacity(positions.len());
    for shard in cut(context, variant, &records, &positions, folder)? {
        let (part, out) = (shard.positions, &shard.scores);
        if !out.exists() {
            let problem = format!(
                "is missing: another version of the coordinator cut the records into other shards when the stage began; \
                 submit the run again, then {} is scored",
                shard.name
            );
            return Err(Error::file(out, problem));
        }
        let scores: Vec<Record> = input::read_all(out)?;
        if scores.len() != part.len() {
            return Err(Error::file(out, format!("holds {} scores for {} records", scores.len(), part.len())));
        }
        for (at, (score, position)) in scores.iter().zip(part).enumerate() {
            if score.prompt != records[*position].prompt || score.chosen != records[*position].chosen {
                return Err(Error::record(out, at, "is another record than the one that was to be scored"));
            }
            let missing = || Error::field(out, at, "raw_score", "is missing");
            raw.push(score.raw_score.ok_or_else(missing)?);
            for field in WITH_SCORE {
                match score.extra.get(field) {
                    Some(value) => records[*position].extra.insert(field.to_owned(), value.clone()),
                    None => records[*position].extra.remove(field),
                };
            }
        }
    }
    let weights = weights(&raw, settings.lamda, settings.weight_norm, &file, |at| index[positions[at]])?;
    let warning = clamped_warning(positions.iter().map(|at| &records[*at]).zip(raw.iter().copied().map(Some)));
    let of_method = context.variant(variant).scored_as(method);
    records.iter_mut().for_each(|record| keep(record, 0.0, 0.0, &of_method));
    for ((position, raw), weight) in positions.iter().zip(&raw).zip(&weights) {
        keep(&mut records[*position], *raw, *weight, &of_method);
    }
    let output = context.of_variant(variant, "weighted_dataset.json");
    let mut writer = ArrayWriter::create(&output)?;
    records.iter().try_for_each(|record| writer.push(record))?;
    writer.finish()?;
    quarantine.write_beside(&output)?;
    Ok(warning)
}
