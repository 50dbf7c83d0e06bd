//! What a run will need before anything is started: questions to the oracle, their tokens and price, disk.
//!
//! An estimate, and said to be one: tokens are a quarter of the characters, every verdict takes two, a quarter of the pairs
//! is taken to be PUNISH, and nothing is known yet of what the ledger has already.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::prices::{Prices, Tokens};
use shared::record::Text;
use shared::{Error, Result, input};

use crate::run_file::{Located, RunFile, Source};

/// Instructions around prompt and response in a question, in characters.
const QUESTION_CHARS: u64 = 150;
const VERDICT_TOKENS: u64 = 2;
/// Of the object that answers for both responses of a pair.
const PAIR_TOKENS: u64 = 20;
/// Characters of a response that is not there yet: a correction, an answer of the model.
const RESPONSE_CHARS: u64 = 400;
const PUNISH_SHARE: f64 = 0.25;
/// Data files of a run per byte of pairs: labelled, corrected, scored, split, shards, journals.
const COPIES: u64 = 8;
/// Files of a full training per byte of its model: result, and in two checkpoints weights and two moments in f32.
const FULL_COPIES: u64 = 13;
/// Of an adapter's training per byte of its model.
const ADAPTER_SHARE: f64 = 0.15;

/// What a run needs, roughly. Unknown where its files are not there yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Estimate {
    pub(crate) pairs: Option<u64>,
    pub(crate) calls: Option<u64>,
    pub(crate) prompt_tokens: Option<u64>,
    pub(crate) completion_tokens: Option<u64>,
    /// None where the price table does not know the model.
    pub(crate) cost_usd: Option<f64>,
    pub(crate) prices: String,
    pub(crate) disk_bytes: Option<u64>,
}

/// Texts and their lengths in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Texts {
    count: u64,
    prompt_chars: u64,
    chosen_chars: u64,
    rejected_chars: u64,
}

/// Estimates a run.
///
/// # Errors
/// A price table or a policy cannot be read. Data that is not there only leaves gaps.
pub(crate) fn of(file: &RunFile) -> Result<Estimate> {
    let pairs = pairs(file);
    let prices = Prices::load(file.oracle.prices.as_deref())?;
    let policy = match &file.oracle.policy {
        Some(path) => chars(&std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?),
        None => 0,
    };
    let usage = pairs.map(|pairs| usage(file, pairs, policy));
    let bytes = pairs.map(|pairs| COPIES * (pairs.prompt_chars + pairs.chosen_chars + pairs.rejected_chars));
    Ok(Estimate {
        pairs: pairs.map(|pairs| pairs.count),
        calls: usage.map(|usage| usage.calls),
        prompt_tokens: usage.map(|usage| usage.prompt_tokens),
        completion_tokens: usage.map(|usage| usage.completion_tokens),
        cost_usd: usage.and_then(|usage| prices.cost(&file.oracle.model, usage.tokens())),
        prices: prices.origin(),
        disk_bytes: bytes.and_then(|bytes| Some(bytes + model_disk(file)?)),
    })
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Usage {
    calls: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Usage {
    fn tokens(self) -> Tokens {
        Tokens { prompt: self.prompt_tokens, cached: 0, completion: self.completion_tokens }
    }

    fn ask(&mut self, calls: u64, chars: u64, completion_tokens: u64) {
        self.calls += calls;
        self.prompt_tokens += chars.div_ceil(4);
        self.completion_tokens += completion_tokens;
    }
}

fn usage(file: &RunFile, pairs: Texts, policy_chars: u64) -> Usage {
    let around = policy_chars + QUESTION_CHARS;
    let mut usage = Usage::default();
    let n = pairs.count;
    let judging = &file.oracle.judging;
    // Every verdict is asked for in each wording by each vote.
    let forms = u64::from(judging.votes.max(1)) * if judging.swap_wording { 2 } else { 1 };
    let part = |value: u64, share: f64| (value as f64 * share) as u64;
    let first = pairs.prompt_chars + pairs.chosen_chars + n * around;
    if judging.one_call_per_pair {
        usage.ask(forms * n, forms * (first + pairs.rejected_chars), forms * n * PAIR_TOKENS);
    } else {
        usage.ask(forms * n, forms * first, forms * n * VERDICT_TOKENS);
        // Without `both` the second question is asked where the first answer violates; half is a guess on the safe side.
        let second = if file.oracle.both { 1.0 } else { 0.5 };
        let chars = part(pairs.prompt_chars + pairs.rejected_chars + n * around, second);
        usage.ask(forms * part(n, second), forms * chars, forms * part(n, second) * VERDICT_TOKENS);
    }
    if file.corrects() {
        let punish = part(n, PUNISH_SHARE);
        let prompts = part(pairs.prompt_chars, PUNISH_SHARE);
        let written = prompts + part(pairs.chosen_chars, PUNISH_SHARE) + punish * around;
        usage.ask(punish, written, punish * RESPONSE_CHARS / 4);
        let chars = prompts + punish * (RESPONSE_CHARS + around);
        usage.ask(forms * punish, forms * chars, forms * punish * VERDICT_TOKENS);
    }
    for variant in &file.variants {
        let (count, chars) = prompts(file, variant, pairs);
        let chars = chars + count * (RESPONSE_CHARS + around);
        usage.ask(forms * count, forms * chars, forms * count * VERDICT_TOKENS);
    }
    usage
}

/// Returns number and characters of the prompts that a variant's responses are judged on.
fn prompts(file: &RunFile, variant: &crate::run_file::Variant, pairs: Texts) -> (u64, u64) {
    let mean = |count: u64| (count, count * pairs.prompt_chars / pairs.count.max(1));
    let known = match &variant.eval.prompts {
        Located::Outside(path) => count_prompts(path),
        // As `coordinator data policy-shift` writes them.
        Located::Run(path) if path.starts_with("world") => Some(mean(1160)),
        Located::Run(path) if path.starts_with("splits") => {
            let train1 = file.data.split.as_ref().map_or(0, |split| split.train1_size);
            Some(mean(pairs.count.saturating_sub(train1)))
        }
        Located::Run(_) => Some((pairs.count, pairs.prompt_chars)),
    };
    let (count, chars) = known.unwrap_or((0, 0));
    match variant.eval.sample_size {
        Some(size) if size < count => (size, chars * size / count),
        _ => (count, chars),
    }
}

fn count_prompts(path: &Path) -> Option<(u64, u64)> {
    let mut counted = (0, 0);
    input::for_each(path, |_, item: Map<String, Value>| {
        let prompt = item.get("prompt").and_then(|prompt| Text::deserialize(prompt).ok());
        counted.0 += 1;
        counted.1 += prompt.map_or(0, |prompt| chars(&prompt.prompt_text()));
        Ok(())
    })
    .ok()?;
    Some(counted)
}

fn pairs(file: &RunFile) -> Option<Texts> {
    match &file.data.source {
        Source::PolicyShift => {
            let world = shared::policy_shift::World::new(file.run.seed);
            let sets = shared::policy_shift::data_sets::DataSets::of(&world);
            let texts = sets.pairs.iter().filter_map(|pair| serde_json::to_value(pair).ok());
            let mut all = Texts::default();
            for pair in texts {
                let length = |field: &str| pair[field].as_str().map_or(0, chars);
                all.add(length("prompt"), length("chosen"), length("rejected"));
            }
            Some(all)
        }
        Source::Input { files, num_samples } => rows(files, num_samples.unwrap_or(u64::MAX)),
    }
}

/// Counts plain pairs exactly. PKU-SafeRLHF rows count by their own fields; Parquet is not opened for an estimate.
fn rows(files: &[PathBuf], limit: u64) -> Option<Texts> {
    let mut all = Texts::default();
    for file in files {
        for row in input::records::<Map<String, Value>>(file).ok()? {
            if all.count == limit {
                break;
            }
            let row = row.ok()?;
            let length = |fields: [&str; 2]| {
                let text =
                    fields.iter().find_map(|field| row.get(*field)).and_then(|text| Text::deserialize(text).ok());
                text.map_or(0, |text| chars(&text.response()))
            };
            all.add(length(["prompt", ""]), length(["chosen", "response_0"]), length(["rejected", "response_1"]));
        }
    }
    Some(all)
}

impl Texts {
    fn add(&mut self, prompt: u64, chosen: u64, rejected: u64) {
        self.count += 1;
        self.prompt_chars += prompt;
        self.chosen_chars += chosen;
        self.rejected_chars += rejected;
    }
}

fn chars(text: &str) -> u64 {
    text.chars().count() as u64
}

/// Returns the disk that models, adapters and checkpoints take; none where the model is not there yet.
fn model_disk(file: &RunFile) -> Option<u64> {
    let model = match &file.model.path {
        Located::Outside(folder) => {
            let entries = std::fs::read_dir(folder).ok()?;
            let weights =
                entries.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "safetensors"));
            weights.filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).sum()
        }
        // The example world's: 0.37 million parameters in f32.
        Located::Run(_) => 1_500_000,
    };
    let mut bytes = file.base.len() as u64 * FULL_COPIES * model;
    for variant in file.variants.iter().filter(|variant| variant.method.is_some()) {
        bytes += match variant.train.options.is_on("full") {
            true => FULL_COPIES * model,
            false => (ADAPTER_SHARE * model as f64) as u64,
        };
        bytes += if variant.is_merged() { model } else { 0 };
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_calls_and_price_follow_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("model")).unwrap();
        std::fs::write(dir.path().join("model/config.json"), "{}").unwrap();
        std::fs::write(dir.path().join("model/model.safetensors"), vec![0; 1000]).unwrap();
        let pair = "{\"prompt\": \"pppp\", \"chosen\": \"cccccccc\", \"rejected\": \"rrrr\"}\n";
        std::fs::write(dir.path().join("pairs.jsonl"), pair.repeat(10)).unwrap();
        std::fs::write(dir.path().join("policy.txt"), "x".repeat(50)).unwrap();
        let text = "[run]\nname = \"r\"\n[model]\npath = \"model\"\n[data]\ninput = \"pairs.jsonl\"\nnum_samples = 8\n\
                    [oracle]\npolicy = \"policy.txt\"\n[eval]\nprompts = \"pairs.jsonl\"\nsample_size = 5\n\
                    [[variant]]\nname = \"dpo\"\n";
        let file = crate::run_file::parse(text, "r.toml", dir.path(), &[]).unwrap();
        let estimate = of(&file).unwrap();
        assert_eq!((estimate.pairs, estimate.calls), (Some(8), Some(8 + 8 + 5)));
        // (12 + 200) · 8, (8 + 200) · 8, 5 · (4 + 600) characters.
        assert_eq!(estimate.prompt_tokens, Some(424 + 416 + 755));
        assert_eq!(estimate.completion_tokens, Some(2 * 21));
        let cost = estimate.cost_usd.unwrap();
        assert!((cost - (1595.0 * 2.5 + 42.0 * 10.0) / 1e6).abs() < 1e-12, "{cost}");
        assert_eq!(estimate.disk_bytes, Some(8 * 16 * 8 + 150));
    }

    #[test]
    fn what_is_not_known_is_left_open() {
        let text = include_str!("../../deploy/examples/quickstart.toml");
        let file = crate::run_file::parse(text, "q.toml", Path::new("/"), &["oracle.model=other".into()]).unwrap();
        let estimate = of(&file).unwrap();
        assert_eq!(estimate.pairs, Some(1200));
        assert_eq!(estimate.cost_usd, None);
    }
}
