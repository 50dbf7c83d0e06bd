//! Base pairs from rows of preference data (spec 1.1, 1.2).
//!
//! What becomes of a row is decided in `pku`; here rows are streamed from files to files. Nothing takes its name before
//! every row of every input was read without error.

mod parquet;
mod pku;

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use shared::output::{ArrayWriter, check_all_spared, sibling};
use shared::quarantine::Quarantine;
use shared::{Error, Result, input};

use super::row::{Place, Row, empty_text};
use crate::progress;
use pku::{Kind, Verdict};

/// Turns PKU-SafeRLHF rows, or plain pairs, into base pairs {prompt, chosen, rejected}.
///
/// PKU-SafeRLHF rows: the safe response wins over the unsafe one; between two safe or two unsafe responses
/// safer_response_id decides; rows without that label are unused. Plain rows {prompt, chosen, rejected} pass through
/// with all their fields. A file holds one kind, told by its fields. Row order is kept. Rows whose texts are empty are
/// set aside in `<output stem>_quarantine.json`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files of rows, read in the order given: JSON array, JSON lines (.gz and .xz too) or Parquet
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// File of pairs to write
    #[arg(long, value_name = "FILE", default_value = "pku_chosen_rejected.json")]
    output_json: PathBuf,
    /// Take the first N rows only; more than there are is an error
    #[arg(long, value_name = "N")]
    num_samples: Option<usize>,
    /// Write rows without preference label to `<output stem>_unused.json`
    #[arg(long)]
    save_unused: bool,
    /// The reference's name of the source's part; here the files of that part are named
    #[arg(long, value_name = "NAME", hide = true)]
    split: Option<String>,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// What became of the rows; the counters after `loaded` add up to it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Counts {
    loaded: usize,
    one_safe_one_unsafe: usize,
    both_safe: usize,
    both_unsafe: usize,
    plain: usize,
    no_preference_label: usize,
    quarantined: usize,
}

/// What is to be done, by whomever it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) input: Vec<PathBuf>,
    pub(crate) output: PathBuf,
    pub(crate) num_samples: Option<usize>,
    pub(crate) save_unused: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    if let Some(split) = &args.split {
        tracing::warn!("--split {split} chooses nothing here: the rows are those of --input");
    }
    let job = Job {
        input: args.input.clone(),
        output: args.output_json.clone(),
        num_samples: args.num_samples,
        save_unused: args.save_unused,
    };
    let progress = progress::counter("rows read");
    let (counts, written) = work(&job, &mut |read| {
        progress.set_position(read as u64);
        Ok(())
    })?;
    progress.finish_and_clear();
    report(args, &counts, written)
}

/// Reads all rows and writes the pairs; returns what became of the rows, and the pairs' number. `on_row` is told how many
/// rows are read; its error ends the work.
pub(crate) fn work(job: &Job, on_row: &mut dyn FnMut(usize) -> Result<()>) -> Result<(Counts, usize)> {
    let unused_path = sibling(&job.output, "_unused");
    let mut outputs = vec![job.output.clone(), sibling(&job.output, "_quarantine")];
    outputs.extend(job.save_unused.then(|| unused_path.clone()));
    let inputs: Vec<(&str, &Path)> = job.input.iter().map(|file| ("--input", file.as_path())).collect();
    check_all_spared(&outputs, &inputs)?;
    let mut pairs = ArrayWriter::create(&job.output)?;
    let mut unused = job.save_unused.then(|| ArrayWriter::create(&unused_path)).transpose()?;
    let mut quarantine = Quarantine::of("data prepare");
    let mut counts = Counts::default();
    let limit = job.num_samples.unwrap_or(usize::MAX);
    for file in &job.input {
        let mut kind = None;
        for (index, row) in rows(file)?.enumerate() {
            if counts.loaded == limit {
                break;
            }
            let row = row?;
            let place = Place { file, index };
            counts.loaded += 1;
            on_row(counts.loaded)?;
            let kind = *kind.insert(pku::kind_of(&row, place, kind)?);
            match judge(&row, place, kind)? {
                Verdict::Unused { reason } => {
                    counts.no_preference_label += 1;
                    if let Some(unused) = &mut unused {
                        let [prompt, first, second] =
                            ["prompt", "response_0", "response_1"].map(|field| row.get(field).cloned());
                        let row =
                            json!({"prompt": prompt, "response_0": first, "response_1": second, "reason": reason});
                        unused.push(&row)?;
                    }
                }
                Verdict::Empty { field } => {
                    counts.quarantined += 1;
                    quarantine.push(file, index, field, "is empty", &row)?;
                }
                Verdict::Plain => {
                    counts.plain += 1;
                    pairs.push(&row)?;
                }
                Verdict::Pair { safety, chosen, rejected } => {
                    *counts.of(safety) += 1;
                    pairs.push(&BasePair {
                        prompt: row.get("prompt"),
                        chosen: row.get(chosen),
                        rejected: row.get(rejected),
                    })?;
                }
            }
        }
    }
    if let Some(wanted) = job.num_samples.filter(|wanted| counts.loaded < *wanted) {
        return Err(Error::Config(format!("--num-samples {wanted}: the input holds {} rows only", counts.loaded)));
    }
    let written = pairs.finish()?;
    unused.map(ArrayWriter::finish).transpose()?;
    super::keep_quarantine(&quarantine, &job.output)?;
    if written == 0 {
        tracing::warn!(file = %job.output.display(), "no row gave a pair");
    }
    Ok((counts, written))
}

#[derive(Serialize)]
struct BasePair<'a> {
    prompt: Option<&'a Value>,
    chosen: Option<&'a Value>,
    rejected: Option<&'a Value>,
}

impl Counts {
    fn of(&mut self, safety: pku::Safety) -> &mut usize {
        match safety {
            pku::Safety::OneSafe => &mut self.one_safe_one_unsafe,
            pku::Safety::BothSafe => &mut self.both_safe,
            pku::Safety::BothUnsafe => &mut self.both_unsafe,
        }
    }
}

fn judge(row: &Row, place: Place<'_>, kind: Kind) -> Result<Verdict> {
    match kind {
        Kind::SafeRlhf => pku::judge(row, place),
        Kind::Plain => Ok(match empty_text(row, place)? {
            Some(field) => Verdict::Empty { field },
            None => Verdict::Plain,
        }),
    }
}

/// Rows of a file, Parquet told from JSON by its first bytes.
fn rows(file: &Path) -> Result<Box<dyn Iterator<Item = Result<Row>>>> {
    let mut start = Vec::new();
    let source = std::fs::File::open(file).map_err(|source| Error::io("open", file, source))?;
    source.take(4).read_to_end(&mut start).map_err(|source| Error::io("read", file, source))?;
    if start == parquet::MAGIC { parquet::rows(file) } else { Ok(Box::new(input::records::<Row>(file)?)) }
}

fn report(args: &Args, counts: &Counts, written: usize) -> Result<()> {
    if args.json {
        return super::print_json(&json!({"file": args.output_json, "pairs": written, "rows": counts}));
    }
    let lines = [
        ("rows loaded", counts.loaded),
        ("one safe, one unsafe", counts.one_safe_one_unsafe),
        ("both safe", counts.both_safe),
        ("both unsafe", counts.both_unsafe),
        ("plain pairs", counts.plain),
        ("no preference label", counts.no_preference_label),
        ("empty text", counts.quarantined),
        ("pairs written", written),
    ];
    for (name, count) in lines {
        println!("{name:<22} {count:>9} {:>6.2} %", 100.0 * count as f64 / counts.loaded.max(1) as f64);
    }
    println!("written to {}", args.output_json.display());
    Ok(())
}
