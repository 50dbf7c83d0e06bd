//! Writes the example world: what a small model needs to be trained, re-aligned and judged in it.
//!
//! The world itself is `shared::policy_shift`, a pure function of the seed; here its parts become files. The same seed
//! writes the same bytes.

use std::path::{Path, PathBuf};

use serde::Serialize;
use shared::Result;
use shared::output::{ArrayWriter, write_atomic, write_json};
use shared::policy_shift::data_sets::{DataSets, Pair};
use shared::policy_shift::{Policy, World, tokenizer};
use shared::record::Category;

/// Makes the example world: a small model's tokenizer, data, prompts, and rules to judge by
///
/// The world is made up and harmless; an old and a new policy differ in it. Files in the output folder: `model/` (configuration, tokenizer and chat template of a small Llama, without weights),
/// `skill_sft.json` and `corpus_sft.json` (to train the base model, in this order), `old_pairs_dpo.json` (to align it to
/// the old policy), `pairs.json` (the old pairs to triage and re-align with), `prompts_val.json` and `prompts_test.json`
/// (to generate and judge), `world.json` with `rules_new.toml` and `rules_old.toml` (to judge by).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seed of the world and of everything drawn in it
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Folder to write to
    #[arg(long, value_name = "DIR")]
    output_dir: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// A file and how much is in it.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    file: PathBuf,
    records: usize,
}

/// An old pair as a training record: DPO takes `chosen` over `rejected` where the category is INVERT.
#[derive(Serialize)]
struct OldPair<'a> {
    #[serde(flatten)]
    pair: &'a Pair,
    category: Category,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let written = write(&World::new(args.seed), &args.output_dir)?;
    if args.json {
        return super::print_json(&written);
    }
    println!("{:>8}  file", "records");
    for Written { file, records } in written {
        println!("{records:>8}  {}", file.display());
    }
    Ok(())
}

/// Writes a world's files into a folder.
pub(crate) fn write(world: &World, folder: &Path) -> Result<Vec<Written>> {
    let model = folder.join("model");
    write_json(&model.join("config.json"), &tokenizer::config_json())?;
    write_json(&model.join("tokenizer.json"), &tokenizer::tokenizer_json())?;
    write_json(&model.join("tokenizer_config.json"), &tokenizer::tokenizer_config_json())?;

    write_rules(world, folder)?;
    let sets = DataSets::of(world);
    let old_pairs = sets.old_pairs().iter().map(|pair| OldPair { pair, category: Category::Invert });
    Ok(vec![
        array(folder.join("skill_sft.json"), &sets.skill_items)?,
        array(folder.join("corpus_sft.json"), &sets.corpus)?,
        array(folder.join("old_pairs_dpo.json"), old_pairs)?,
        array(folder.join("pairs.json"), &sets.pairs)?,
        array(folder.join("prompts_val.json"), &sets.validation)?,
        array(folder.join("prompts_test.json"), &sets.test)?,
    ])
}

/// Writes what is needed to judge in a world: the world itself and its two policies as rule files.
pub(crate) fn write_rules(world: &World, folder: &Path) -> Result<()> {
    write_json(&folder.join("world.json"), &world.to_file())?;
    for policy in Policy::ALL {
        let rules = rule_file(policy);
        write_atomic(&folder.join(format!("rules_{}.toml", policy.name())), rules.as_bytes())?;
    }
    Ok(())
}

fn rule_file(policy: Policy) -> String {
    let name = policy.name();
    format!("world = \"policy-shift\"\nworld_file = \"world.json\"\npolicy = \"{name}\"\n")
}

fn array<T: Serialize>(file: PathBuf, records: impl IntoIterator<Item = T>) -> Result<Written> {
    let mut writer = ArrayWriter::create(&file)?;
    for record in records {
        writer.push(&record)?;
    }
    let records = writer.finish()?;
    Ok(Written { file, records })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;
    use shared::record::Record;
    use shared::rules::Judge;

    use super::*;

    fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        for part in ["", "model"] {
            for entry in std::fs::read_dir(folder.join(part)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    all.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
                }
            }
        }
        all
    }

    #[test]
    fn the_same_seed_writes_the_same_bytes_and_another_seed_others() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str, seed| {
            let folder = dir.path().join(name);
            write(&World::new(seed), &folder).unwrap();
            files(&folder)
        };
        let first = made("a", 3);
        assert_eq!(first.len(), 12);
        assert!(made("b", 3) == first);
        let other = made("c", 4);
        for file in ["pairs.json", "world.json", "corpus_sft.json", "skill_sft.json", "prompts_test.json"] {
            assert!(other[Path::new(file)] != first[Path::new(file)], "{file}");
        }
        assert_eq!(other[Path::new("model/tokenizer.json")], first[Path::new("model/tokenizer.json")]);
    }

    #[test]
    fn what_is_written_is_read_by_the_other_commands() {
        let dir = tempfile::tempdir().unwrap();
        let written = write(&World::new(3), dir.path()).unwrap();
        for Written { file, records } in &written {
            let read: Vec<Value> = shared::input::read_all(file).unwrap();
            assert_eq!(read.len(), *records);
        }
        let pairs: Vec<Record> = shared::input::read_all(&dir.path().join("pairs.json")).unwrap();
        let old: Vec<Record> = shared::input::read_all(&dir.path().join("old_pairs_dpo.json")).unwrap();
        assert!(old.iter().all(|record| record.category == Some(Category::Invert)));
        let judge = Judge::load(&dir.path().join("rules_old.toml")).unwrap();
        for (pair, old) in pairs.iter().zip(&old) {
            assert_eq!((&pair.prompt, &pair.chosen, &pair.rejected), (&old.prompt, &old.chosen, &old.rejected));
            let prompt = pair.prompt.prompt_text();
            assert!(judge.verdict(&prompt, &pair.chosen.response(), true).unwrap().compliant);
        }
        assert!(Judge::load(&dir.path().join("rules_new.toml")).unwrap().is_world());
    }
}
