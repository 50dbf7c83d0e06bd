//! Label noise: copies of a record file in which a known share of the records is wrong (spec 1.5).
//!
//! The reference's noise is half category flips, half swaps, and does not touch the violation lists; `--model` offers
//! the two apart, under names that say so.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use shared::output::{ArrayWriter, check_all_spared, sibling, stem};
use shared::python_random::PythonRandom;
use shared::record::Category;
use shared::{Error, Result};

use super::row::{Labelled, Place, Row, read_labelled};

/// Writes copies of a record file with noisy labels, one for every rate.
///
/// Their names are `<input stem>_noisy<P>pct.json`, P being the rate in whole percent. Every rate starts from the seed.
/// With the default model each chosen record gets, by a fair coin, another
/// category or chosen and rejected swapped; violation lists are not adapted. Records with empty text are set aside in
/// `<input stem>_quarantine.json` and take no part.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Records with categories: JSON array or JSON lines, .gz and .xz too
    #[arg(long, value_name = "FILE")]
    input_json: PathBuf,
    /// Folder to write to
    #[arg(long, value_name = "DIR", default_value = "noisy_splits")]
    output_dir: PathBuf,
    /// Shares of the records to make wrong, 0 to 1
    #[arg(long, value_name = "RATE", num_args = 1.., default_values_t = [0.1, 0.2])]
    noise_rates: Vec<f64>,
    /// Seed of the random generator
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// What to do to a chosen record; other models than the reference's add their name to the file name
    #[arg(long, value_enum, default_value_t = Model::Reference)]
    model: Model,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Model {
    /// One of the two below, by a fair coin
    Reference,
    /// Another category, each of the two alike
    Category,
    /// Chosen and rejected swapped
    Swap,
}

/// What happens to one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Category(Category),
    Swap,
}

#[derive(Debug, Serialize)]
struct Written {
    file: PathBuf,
    rate: f64,
    records: usize,
    category_flips: usize,
    swaps: usize,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let outputs = output_paths(args)?;
    let beside = args.output_dir.join(stem(&args.input_json));
    let written = [&outputs[..], &[sibling(&beside, "_quarantine")]].concat();
    check_all_spared(&written, &[("--input-json", args.input_json.as_path())])?;
    let (records, quarantine) = read_labelled(&args.input_json, "data noise")?;
    let categories = categories(&records, &args.input_json, args.model)?;
    let mut result = Vec::new();
    for (rate, file) in args.noise_rates.iter().zip(outputs) {
        let changes = draw(&categories, *rate, args.seed, args.model);
        let mut writer = ArrayWriter::create(&file)?;
        for (record, change) in records.iter().zip(&changes) {
            match change {
                None => writer.push(&record.row)?,
                Some(change) => writer.push(&changed(&record.row, *change))?,
            }
        }
        let count = |wanted: fn(&Change) -> bool| changes.iter().flatten().filter(|change| wanted(change)).count();
        result.push(Written {
            file,
            rate: *rate,
            records: writer.finish()?,
            category_flips: count(|change| matches!(change, Change::Category(_))),
            swaps: count(|change| matches!(change, Change::Swap)),
        });
    }
    super::keep_quarantine(&quarantine, &beside)?;
    if args.json {
        return super::print_json(&result);
    }
    println!("{:>6} {:>9} {:>15} {:>7}  file", "rate", "records", "category flips", "swaps");
    for written in result {
        let Written { file, rate, records, category_flips, swaps } = written;
        println!("{rate:>6} {records:>9} {category_flips:>15} {swaps:>7}  {}", file.display());
    }
    Ok(())
}

/// One output path a rate; rates out of range and rates that share a name are refused.
fn output_paths(args: &Args) -> Result<Vec<PathBuf>> {
    let ending = match args.model {
        Model::Reference => "",
        Model::Category => "_category",
        Model::Swap => "_swap",
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for rate in &args.noise_rates {
        if !(0.0..=1.0).contains(rate) {
            return Err(Error::Config(format!("--noise-rates: {rate} is not a share between 0 and 1")));
        }
        let percent = (rate * 100.0) as u32;
        let path = args.output_dir.join(format!("{}_noisy{percent}pct{ending}.json", stem(&args.input_json)));
        if paths.contains(&path) {
            return Err(Error::Config(format!(
                "--noise-rates: two rates would be written to {}; names hold whole percents only",
                path.display()
            )));
        }
        paths.push(path);
    }
    Ok(paths)
}

/// Categories of all records; those that a flip could reach must have one.
fn categories(records: &[Labelled], file: &Path, model: Model) -> Result<Vec<Option<Category>>> {
    for record in records {
        if record.category.is_none() && model != Model::Swap {
            let place = Place { file, index: record.index };
            return Err(place.error("category", "is missing; triage the records first, or use --model swap"));
        }
    }
    Ok(records.iter().map(|record| record.category).collect())
}

/// Draws which records change and how: first the sample of records, then, in file order, the change of each.
fn draw(categories: &[Option<Category>], rate: f64, seed: u64, model: Model) -> Vec<Option<Change>> {
    let mut generator = PythonRandom::new(seed);
    let wanted = (categories.len() as f64 * rate).round_ties_even() as usize;
    let chosen: HashSet<usize> = generator.sample(categories.len(), wanted).into_iter().collect();
    let mut change = |current: Option<Category>| {
        let flips = match model {
            Model::Reference => generator.random() < 0.5,
            Model::Category => true,
            Model::Swap => false,
        };
        if !flips {
            return Change::Swap;
        }
        let others: Vec<Category> = Category::ALL.into_iter().filter(|other| Some(*other) != current).collect();
        Change::Category(others[generator.below(others.len())])
    };
    (0..categories.len()).map(|index| chosen.contains(&index).then(|| change(categories[index]))).collect()
}

fn changed(row: &Row, change: Change) -> Row {
    let mut row = row.clone();
    match change {
        Change::Category(category) => {
            row.insert("category".into(), Value::from(category.name()));
        }
        Change::Swap => {
            if let [Some(chosen), Some(rejected)] = ["chosen", "rejected"].map(|field| row.get(field).cloned()) {
                row.insert("chosen".into(), rejected);
                row.insert("rejected".into(), chosen);
            }
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use Category::{Invert, Punish, Retain};

    /// The 20 records of spec A.2.
    fn spec_categories() -> Vec<Option<Category>> {
        [Retain, Invert, Punish, Retain, Retain].into_iter().cycle().take(20).map(Some).collect()
    }

    fn drawn(rate: f64, model: Model) -> Vec<(usize, Change)> {
        let changes = draw(&spec_categories(), rate, 42, model);
        changes.into_iter().enumerate().filter_map(|(index, change)| Some((index, change?))).collect()
    }

    #[test]
    fn changes_are_the_ones_of_the_spec() {
        let (category, swap) = (Change::Category, Change::Swap);
        assert_eq!(drawn(0.2, Model::Reference), [(0, category(Invert)), (3, swap), (7, swap), (8, category(Punish))]);
        assert_eq!(
            drawn(0.5, Model::Reference),
            [
                (0, category(Punish)),
                (1, category(Punish)),
                (2, category(Invert)),
                (3, swap),
                (7, swap),
                (8, swap),
                (10, category(Punish)),
                (11, swap),
                (16, swap),
                (17, category(Invert)),
            ]
        );
    }

    #[test]
    fn half_records_round_to_even() {
        assert_eq!(drawn(0.125, Model::Swap).len(), 2);
        assert_eq!(drawn(0.175, Model::Swap).len(), 4);
        assert_eq!(drawn(0.0, Model::Reference), []);
        assert_eq!(drawn(1.0, Model::Reference).len(), 20);
    }

    #[test]
    fn pure_models_change_the_same_records_in_one_way() {
        let chosen = |model| drawn(0.5, model).into_iter().map(|(index, _)| index).collect::<Vec<_>>();
        assert_eq!(chosen(Model::Swap), chosen(Model::Reference));
        assert!(drawn(0.5, Model::Swap).iter().all(|(_, change)| *change == Change::Swap));
        for (index, change) in drawn(0.5, Model::Category) {
            assert!(matches!(change, Change::Category(new) if Some(new) != spec_categories()[index]));
        }
    }

    #[test]
    fn a_changed_record_keeps_its_other_fields_and_their_order() {
        let row = |text: &str| serde_json::from_str::<Row>(text).unwrap();
        let before = row(r#"{"id": 1, "chosen": "c", "rejected": "r", "category": "RETAIN", "chosen_violations": []}"#);
        let text = |change| serde_json::to_string(&changed(&before, change)).unwrap();
        assert_eq!(
            text(Change::Swap),
            r#"{"id":1,"chosen":"r","rejected":"c","category":"RETAIN","chosen_violations":[]}"#
        );
        assert_eq!(
            text(Change::Category(Punish)),
            r#"{"id":1,"chosen":"c","rejected":"r","category":"PUNISH","chosen_violations":[]}"#
        );
    }
}
