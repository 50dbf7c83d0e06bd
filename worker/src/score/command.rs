//! `worker score`: records in, records with `raw_score` and `impact_score` out.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::json;
use shared::spread::Spread;

use super::directions::{self, Gold};
use super::options::Curvature;
use super::{Raw, ScoreArgs, ScoreSettings, Setup, explain};
use crate::control::Control;
use crate::dataset::{DataSet, GoldFile};
use crate::error::{Error, Result};
use crate::journal;
use crate::measure;
use crate::model::adapter_file;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::objective::method::{Method, Recipe};
use crate::objective::promotions::Promotions;
use crate::options::{LoraArgs, ModelArgs, QualityArgs, TextArgs};
use crate::text::Encoder;

/// Scores triaged records: how far a step on each one also lowers the loss on the gold batch (spec 5).
///
/// Writes the records with raw_score and impact_score, and the gold batch beside them. An interrupted run goes on when
/// the same command is given again. Records with an empty prompt or response are set aside in <out>_quarantine.json with
/// a warning; the exit code is 0 all the same.
#[derive(Debug, Clone, Args)]
#[command(allow_negative_numbers = true)]
pub struct ScoreCommand {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Triaged records: JSON array or JSON lines, .gz and .xz too.
    #[arg(long, visible_alias = "records", value_name = "FILE", required_unless_present = "gold_only")]
    pub dataset_json_path: Option<PathBuf>,
    /// Where the scored records go.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["gold_only", "explain"])]
    pub out: Option<PathBuf>,
    /// Where the gold batch goes [default: gold.json beside --out].
    #[arg(long, value_name = "FILE")]
    pub gold_out: Option<PathBuf>,
    /// An adapter folder at which to score instead of a fresh adapter.
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
    /// Whose loss terms are scored: trace (no-kl has the same), oracle-punish, no-triage or u2a.
    #[arg(long, value_enum, default_value = "trace")]
    pub method: Method,
    /// β of the losses.
    #[arg(long, default_value_t = 0.3)]
    pub beta: f64,
    /// Longest sequence in tokens.
    #[arg(long, default_value_t = 256)]
    pub max_length: usize,
    /// Seed of the fresh adapter: the score is a projection along its random A (spec 5.6).
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Scores a part of a file along a gold batch that is given: writes the records with raw_score alone and normalises
    /// nothing, since weights need all parts.
    #[arg(long, requires = "gold")]
    pub raw_only: bool,
    /// Computes the gradient of a gold batch that is given, keeps it in --gold-gradient, and scores nothing.
    #[arg(long, requires = "gold", requires = "gold_gradient", conflicts_with_all = ["raw_only", "dataset_json_path", "out"])]
    pub gold_only: bool,
    /// Scores the one record of this index in the file (from 0) along a gold batch that is given, and prints which of its
    /// pairs pull the score most; writes nothing.
    #[arg(long, value_name = "RECORD", requires = "gold", conflicts_with_all = ["out", "raw_only", "gold_only"])]
    pub explain: Option<usize>,
    /// Gold pairs that --explain prints; 0 for all.
    #[arg(long, default_value_t = 10, requires = "explain")]
    pub top: usize,
    /// Prints the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// Text options.
    #[command(flatten)]
    pub text: TextArgs,
    /// Adapter options.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Score options.
    #[command(flatten)]
    pub score: ScoreArgs,
    /// Options of the quality filter.
    #[command(flatten)]
    pub quality: QualityArgs,
}

/// Runs the command. Returns a summary.
///
/// # Errors
/// Options, model, records or numbers are unusable.
pub fn run(args: &ScoreCommand, control: &Control) -> Result<serde_json::Value> {
    let started = Instant::now();
    args.score.validate(args.init_adapter.is_some())?;
    args.quality.validate()?;
    if !args.beta.is_finite() || args.beta <= 0.0 {
        return Err(Error::Config(format!("--beta is {}; expected a positive number", args.beta)));
    }
    let files = match (&args.dataset_json_path, &args.out) {
        (Some(records), Some(out)) => Some(Files::checked(args, records, out)?),
        _ => None,
    };
    if !args.method.is_weighted() {
        return Err(Error::Config(format!(
            "method {} has no impact weights; score with trace, oracle-punish, no-kl, no-triage or u2a",
            args.method.name()
        )));
    }
    let loaded = Loaded::of(args)?;
    if let Some(index) = args.explain {
        return explain::run(args, index, &loaded, control);
    }
    let (key, settings) = (loaded.context(args)?, &loaded.settings);
    let setup = loaded.setup(&key, control);
    let Some(Files { set, out, gold_out }) = &files else {
        let file = args.score.gold.as_deref().unwrap_or(Path::new(""));
        let mut gold = Gold::new(setup, shared::gold::read(file)?, GoldFile::Given(file))?;
        let (more, mut sample) = (setup.more_adapters(), directions::sample(setup, None)?);
        let made = directions::make(setup, &setup.points(&more), &mut gold, sample.as_mut(), &mut || Ok(()))?;
        let kept = args.score.gold_gradient.as_deref().map(|file| file.display().to_string());
        return Ok(json!({
            "gold_gradient": kept, "gold_pairs": gold.pairs.len(), "curvature": made.curvature,
            "seconds": started.elapsed().as_secs_f64(),
            "peak_rss_gib": measure::peak_rss_gib(), "threads": tch::get_num_threads(),
        }));
    };
    let journal = journal::beside(out);
    let scores = super::score(setup, set, &journal, &mut || Ok(()))?;
    scores.journal.check()?;
    // A gold batch that was given stays as it is.
    if args.score.gold.is_none() {
        shared::output::write_json(gold_out, &scores.gold)?;
    }
    set.set_aside(out)?;
    match args.raw_only {
        true => super::write_raw(out, set, &scores)?,
        false => super::write_weighted(out, set, &settings.recipe, &scores)?,
    }
    let promotions = Promotions::of(&settings.recipe, set)?;
    if !args.raw_only {
        set.warn_of_clamped(&scores.raw_scores());
        promotions.keep(&shared::output::sibling(out, "_quality"))?;
        promotions.warn(&set.file);
    }
    scores.truncated.warn(&set.file, settings.max_length);
    scores.journal.remove()?;

    let scored: Vec<&Raw> = scores.raw.iter().flatten().collect();
    let clamped = scored.iter().filter(|raw| raw.score <= 0.0).count();
    let seconds = started.elapsed().as_secs_f64();
    let mut summary = json!({
        "out": out.display().to_string(), "gold": args.score.gold.as_ref().unwrap_or(gold_out).display().to_string(),
        "records": set.records.len(), "set_aside": set.quarantine.len(), "truncated": scores.truncated.records,
        "scored": scored.len(), "clamped": clamped,
        "clamped_share": 100.0 * clamped as f64 / scored.len().max(1) as f64, "promoted": promotions.figures, "seconds": seconds,
        "peak_rss_gib": measure::peak_rss_gib(), "threads": tch::get_num_threads(),
    });
    if args.score.curvature == Curvature::Cg {
        summary["curvature"] = json!(scores.curvature);
    }
    if args.score.score_seeds > 1 {
        summary["seeds"] = json!(Spread::of(&scored.iter().map(|raw| &raw.by_seed[..]).collect::<Vec<_>>()));
    }
    Ok(summary)
}

/// What the options name, ready to score.
pub(super) struct Loaded {
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) adapter: Lora,
    /// B = 0: an adapter that computes nothing yet, wherever it came from.
    pub(super) is_fresh: bool,
    pub(super) settings: ScoreSettings,
}

impl Loaded {
    fn of(args: &ScoreCommand) -> Result<Loaded> {
        let decoder = args.model.load()?;
        let encoder = args.text.encoder(&args.model.model_name_or_path, &decoder)?;
        let adapter = match &args.init_adapter {
            Some(dir) => {
                let mut adapter = adapter_file::load(dir, &decoder.config, &decoder.fingerprint, decoder.device)?;
                args.lora.apply_to(&mut adapter.config)?;
                adapter
            }
            None => Lora::fresh(args.lora.fresh(&decoder.config)?, &decoder.config, args.seed, decoder.device),
        };
        let is_fresh = adapter.iter().all(|(_, _, f)| f.b.count_nonzero(None).int64_value(&[]) == 0);
        let recipe = Recipe { method: args.method, alpha_kl: 0.0, filter: args.quality.filter() };
        let max_length = args.text.score_length(args.max_length);
        let settings = args.score.settings(recipe, args.beta, args.seed, max_length);
        let settings = ScoreSettings { raw_only: args.raw_only, ..settings };
        Ok(Loaded { decoder, encoder, adapter, is_fresh, settings })
    }

    /// Returns what scores depend on besides records, gold batch and settings.
    pub(super) fn context(&self, args: &ScoreCommand) -> Result<serde_json::Value> {
        let model_dir = &args.model.model_name_or_path;
        super::context(&self.decoder, model_dir, &args.text, &args.lora, args.seed, args.init_adapter.as_deref())
    }

    pub(super) fn setup<'a>(&'a self, key: &'a serde_json::Value, control: &'a Control) -> Setup<'a> {
        let Loaded { decoder, encoder, adapter, is_fresh, settings } = self;
        Setup { decoder, adapter, is_fresh: *is_fresh, encoder, settings, key, control }
    }
}

/// The files of a scoring, checked before anything is computed.
struct Files<'a> {
    set: DataSet,
    out: &'a Path,
    gold_out: PathBuf,
}

impl<'a> Files<'a> {
    fn checked(args: &ScoreCommand, records: &Path, out: &'a Path) -> Result<Files<'a>> {
        let out_dir = match out.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let gold_out = args.gold_out.clone().unwrap_or_else(|| out_dir.join("gold.json"));
        let inputs = [
            ("--dataset-json-path", Some(records)),
            ("--gold", args.score.gold.as_deref()),
            ("--curvature-json-path", args.score.cg.curvature_json_path.as_deref()),
        ];
        shared::output::check_target("--out", out)?;
        shared::output::check_spared("--out", out, &inputs)?;
        if args.score.gold.is_none() {
            shared::output::check_target("--gold-out", &gold_out)?;
            shared::output::check_spared("--gold-out", &gold_out, &inputs)?;
            shared::output::check_spared("--gold-out", &gold_out, &[("--out", Some(out))])?;
        }
        std::fs::create_dir_all(&out_dir).map_err(|e| Error::model(&out_dir, e.to_string()))?;
        if args.score.gold.is_none() {
            spare_records(&gold_out)?;
        }
        Ok(Files { set: DataSet::read(records, args.method)?, out, gold_out })
    }
}

/// Refuses to put the gold batch over a file of records: triage output is often called gold.json too.
fn spare_records(gold_out: &Path) -> Result<()> {
    if !gold_out.exists() {
        return Ok(());
    }
    // Only a batch that was drawn says where its pairs come from: one made by hand is not replaced.
    let is_gold = |pair: &serde_json::Map<String, serde_json::Value>| pair.contains_key("origin");
    match shared::input::read_all::<serde_json::Map<String, serde_json::Value>>(gold_out) {
        Ok(pairs) if pairs.iter().all(is_gold) => Ok(()),
        _ => Err(Error::model(
            gold_out,
            "is there already and is no gold batch that was drawn (to use it, give it as --gold); name another file by --gold-out, or another folder by --out",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_records_is_not_taken_for_an_old_gold_batch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gold.json");
        assert!(spare_records(&path).is_ok());
        let by_hand = json!({"prompt": "p", "chosen": "a", "rejected": "b"});
        let (mut drawn, mut record) = (by_hand.clone(), by_hand.clone());
        drawn["origin"] = json!({"category": "INVERT", "record": 3});
        record["category"] = json!("INVERT");
        shared::output::write_json(&path, &json!([drawn])).unwrap();
        assert!(spare_records(&path).is_ok());
        for other in [by_hand, record] {
            shared::output::write_json(&path, &json!([drawn, other])).unwrap();
            assert!(spare_records(&path).unwrap_err().to_string().contains("--gold-out"));
        }
    }
}
