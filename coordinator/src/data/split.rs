//! Splits: train1, train2 and test of a triaged file, as the reference cuts them (spec 1.4).

mod partition;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::Result;
use shared::output::{ArrayWriter, check_all_spared, sibling, stem};
use shared::record::Text;

use super::row::{Labelled, Row, read_labelled};
use partition::{Parts, Sizes, Unit};

/// Cuts triaged records into train1, train2 (drawn from train1) and test (the rest).
///
/// Writes trace/{train1,train2,test}.json with all fields and dpo/{train1,train2,test}.json with prompt, chosen and
/// rejected only. The same seed gives the same split as the reference's scripts. Records with empty text are set aside
/// in `<input stem>_quarantine.json` before anything is drawn.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("manner").required(true).args(["stratified", "uniform"]))]
pub(crate) struct Args {
    /// Triaged records: JSON array or JSON lines, .gz and .xz too
    #[arg(long, value_name = "FILE")]
    ckpt_json: PathBuf,
    /// Folder to write to
    #[arg(long, value_name = "DIR", default_value = "splits")]
    output_dir: PathBuf,
    /// Records in train1
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    train1_size: usize,
    /// Records in train2
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    train2_size: usize,
    /// Seed of the random generator
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Give every category the same share in every part; records without category count as one of their own
    #[arg(long)]
    stratified: bool,
    /// Draw without regard to categories
    #[arg(long)]
    uniform: bool,
    /// Keep all records of a prompt on one side of train1/test. Whole prompts are dealt until train1 (with --stratified:
    /// its share of every category, a prompt counting to that of its first record) has reached its size, so train1 can
    /// be larger by a few records; the sizes reached are printed
    #[arg(long)]
    group_by_prompt: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Sizes reached, by part and category.
#[derive(Debug, Serialize)]
struct Written {
    part: &'static str,
    records: usize,
    by_category: serde_json::Map<String, Value>,
}

/// What is to be done, by whomever it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) input: PathBuf,
    pub(crate) output_dir: PathBuf,
    pub(crate) train1_size: usize,
    pub(crate) train2_size: usize,
    pub(crate) seed: u64,
    pub(crate) stratified: bool,
    pub(crate) group_by_prompt: bool,
}

/// The records and how they were cut.
pub(crate) struct Cut {
    records: Vec<Labelled>,
    parts: Parts,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let cut = work(&Job {
        input: args.ckpt_json.clone(),
        output_dir: args.output_dir.clone(),
        train1_size: args.train1_size,
        train2_size: args.train2_size,
        seed: args.seed,
        stratified: args.stratified,
        group_by_prompt: args.group_by_prompt,
    })?;
    report(args, &cut.records, &cut.parts)
}

/// Cuts the records of a file and writes the parts.
pub(crate) fn work(job: &Job) -> Result<Cut> {
    let beside = job.output_dir.join(stem(&job.input));
    let mut outputs = vec![sibling(&beside, "_quarantine")];
    outputs.extend(FOLDERS.iter().flat_map(|folder| PARTS.map(|part| part_file(&job.output_dir, folder, part))));
    check_all_spared(&outputs, &[("--ckpt-json", job.input.as_path())])?;
    let (records, quarantine) = read_labelled(&job.input, "data split")?;
    let sizes = Sizes { train1: job.train1_size, train2: job.train2_size };
    let units = units(&records, job.group_by_prompt);
    let parts = if job.stratified {
        partition::stratified(binned(units, &records), sizes, job.seed)?
    } else {
        partition::uniform(units, sizes, job.seed)?
    };
    write(&job.output_dir, &records, &parts)?;
    super::keep_quarantine(&quarantine, &beside)?;
    if parts.train2.len() < job.train2_size {
        let (size, wanted) = (parts.train2.len(), job.train2_size);
        tracing::warn!(size, wanted, "train2 is smaller than asked for: train1 holds no more of its categories");
    }
    Ok(Cut { records, parts })
}

/// Units in order of first appearance: single records, or all records of a prompt.
fn units(records: &[Labelled], group_by_prompt: bool) -> Vec<Unit> {
    if !group_by_prompt {
        return (0..records.len()).map(|index| vec![index]).collect();
    }
    let mut units: Vec<Unit> = Vec::new();
    let mut unit_of_prompt: HashMap<String, usize> = HashMap::new();
    for (index, record) in records.iter().enumerate() {
        let unit = *unit_of_prompt.entry(prompt_key(&record.row)).or_insert(units.len());
        match units.get_mut(unit) {
            Some(unit) => unit.push(index),
            None => units.push(vec![index]),
        }
    }
    units
}

/// Returns what tells prompts apart: a string and one user turn that says it are the same prompt.
fn prompt_key(row: &Row) -> String {
    let prompt = &row["prompt"];
    match Text::deserialize(prompt) {
        Ok(text) => serde_json::to_string(&text.turns()).expect("turns are plain data"),
        Err(_) => prompt.to_string(),
    }
}

/// Bins of units by the category of their first record, in order of first appearance.
fn binned(units: Vec<Unit>, records: &[Labelled]) -> Vec<(String, Vec<Unit>)> {
    let mut bins: Vec<(String, Vec<Unit>)> = Vec::new();
    for unit in units {
        let name = category_name(&records[unit[0]]);
        match bins.iter_mut().find(|(bin, _)| bin == name) {
            Some((_, units)) => units.push(unit),
            None => bins.push((name.to_owned(), vec![unit])),
        }
    }
    bins
}

fn category_name(record: &Labelled) -> &'static str {
    record.category.map_or("UNKNOWN", |category| category.name())
}

/// Folders of a split: records with all fields, and pairs alone.
const FOLDERS: [&str; 2] = ["trace", "dpo"];
const PARTS: [&str; 3] = ["train1", "train2", "test"];

fn part_file(folder: &Path, kind: &str, part: &str) -> PathBuf {
    folder.join(kind).join(part).with_extension("json")
}

/// Writes the six files; none takes its name before all are complete.
fn write(folder: &Path, records: &[Labelled], parts: &Parts) -> Result<()> {
    let mut writers = Vec::new();
    for (name, indices) in named(parts) {
        let mut whole = ArrayWriter::create(&part_file(folder, FOLDERS[0], name))?;
        let mut pairs = ArrayWriter::create(&part_file(folder, FOLDERS[1], name))?;
        for index in indices {
            let row = &records[*index].row;
            whole.push(row)?;
            pairs.push(&pair_only(row))?;
        }
        writers.extend([whole, pairs]);
    }
    writers.into_iter().try_for_each(|writer| writer.finish().map(|_| ()))
}

fn named(parts: &Parts) -> [(&'static str, &[usize]); 3] {
    [(PARTS[0], &parts.train1), (PARTS[1], &parts.train2), (PARTS[2], &parts.test)]
}

#[derive(Serialize)]
struct Pair<'a> {
    prompt: Option<&'a Value>,
    chosen: Option<&'a Value>,
    rejected: Option<&'a Value>,
}

fn pair_only(row: &Row) -> Pair<'_> {
    Pair { prompt: row.get("prompt"), chosen: row.get("chosen"), rejected: row.get("rejected") }
}

fn report(args: &Args, records: &[Labelled], parts: &Parts) -> Result<()> {
    let mut names: Vec<&str> = Vec::new();
    for record in records {
        if !names.contains(&category_name(record)) {
            names.push(category_name(record));
        }
    }
    let written: Vec<Written> = named(parts)
        .into_iter()
        .map(|(part, indices)| {
            let count = |name: &str| indices.iter().filter(|index| category_name(&records[**index]) == name).count();
            let by_category = names.iter().map(|name| ((*name).to_owned(), Value::from(count(name)))).collect();
            Written { part, records: indices.len(), by_category }
        })
        .collect();
    if args.json {
        return super::print_json(&written);
    }
    print!("{:<8} {:>9}", "part", "records");
    names.iter().for_each(|name| print!(" {name:>9}"));
    println!();
    for Written { part, records, by_category } in &written {
        print!("{part:<8} {records:>9}");
        names.iter().for_each(|name| print!(" {:>9}", by_category[*name].to_string()));
        println!();
    }
    println!("written to {}", args.output_dir.display());
    if args.group_by_prompt && parts.train1.len() != args.train1_size {
        println!("train1 holds {} records instead of {}: prompts stay whole", parts.train1.len(), args.train1_size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::record::Category;

    fn records(prompts: &[(&str, Option<Category>)]) -> Vec<Labelled> {
        let record = |(index, (prompt, category)): (usize, &(&str, Option<Category>))| Labelled {
            row: [("prompt".to_owned(), Value::from(*prompt))].into_iter().collect(),
            category: *category,
            index,
        };
        prompts.iter().enumerate().map(record).collect()
    }

    #[test]
    fn records_of_a_prompt_form_one_unit_in_order_of_first_appearance() {
        let records = records(&[("b", None), ("a", None), ("b", None), ("c", None), ("a", None)]);
        assert_eq!(units(&records, true), [vec![0, 2], vec![1, 4], vec![3]]);
        assert_eq!(units(&records, false), [vec![0], vec![1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn a_string_and_one_user_turn_that_says_it_are_the_same_prompt() {
        let mut records = records(&[("a", None), ("a", None), ("a", None)]);
        records[1].row["prompt"] = serde_json::json!([{"role": "user", "content": "a"}]);
        records[2].row["prompt"] =
            serde_json::json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]);
        assert_eq!(units(&records, true), [vec![0, 1], vec![2]]);
    }

    #[test]
    fn bins_come_in_order_of_first_appearance_and_a_missing_category_is_one() {
        let (punish, retain) = (Some(Category::Punish), Some(Category::Retain));
        let records = records(&[("a", retain), ("b", None), ("c", punish), ("d", retain)]);
        let bins = binned(units(&records, false), &records);
        assert_eq!(
            bins,
            [
                ("RETAIN".to_owned(), vec![vec![0], vec![3]]),
                ("UNKNOWN".to_owned(), vec![vec![1]]),
                ("PUNISH".to_owned(), vec![vec![2]]),
            ]
        );
    }
}
