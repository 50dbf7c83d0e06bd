//! `worker logprobs`: summed log-probs of both responses of every record.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::control::Control;
use crate::dataset::{self, Truncated};
use crate::error::{Error, Result};
use crate::model::adapter_file;
use crate::model::pack::{Pack, Want};
use crate::objective::step;
use crate::options::{ModelArgs, TextArgs};
use crate::text::Sequence;
use shared::record::Record;

/// Computes log π(y|x) of the chosen and rejected response of every record.
///
/// Writes one JSON line a record, in order: chosen_logp, rejected_logp, chosen_tokens, rejected_tokens. A record with
/// an empty prompt or response gets a line with its reason under "error" and a warning; so does one whose log-probs are
/// not finite, and then the exit code is 3.
#[derive(Debug, Clone, Args)]
pub struct LogProbsCommand {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// An adapter folder to switch on.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Records {prompt, chosen, rejected}: JSON array or JSON lines, .gz and .xz too.
    #[arg(long, visible_alias = "dataset-json-path", value_name = "FILE")]
    pub records: PathBuf,
    /// Where the lines go.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Longest sequence in tokens.
    #[arg(long, default_value_t = 256)]
    pub max_length: usize,
    /// Adds the ids and log-probs of the scored tokens.
    #[arg(long)]
    pub per_token: bool,
    /// Tokens computed together at most.
    #[arg(long, default_value_t = dataset::PACK_TOKENS)]
    pub pack_tokens: usize,
    /// Prints the summary as JSON.
    #[arg(long)]
    pub json: bool,
    /// Text options.
    #[command(flatten)]
    pub text: TextArgs,
}

/// Runs the command. Returns a summary; `not_finite` in it counts the records whose numbers cannot be used.
///
/// # Errors
/// Model, adapter or records are unusable.
pub fn run(args: &LogProbsCommand, control: &Control) -> Result<Value> {
    shared::output::check_target("--out", &args.out)?;
    shared::output::check_spared("--out", &args.out, &[("--records", Some(&args.records))])?;
    let decoder = args.model.load()?;
    let encoder = args.text.encoder(&args.model.model_name_or_path, &decoder)?;
    let adapter = match &args.adapter {
        Some(dir) => Some(adapter_file::load(dir, &decoder.config, &decoder.fingerprint, decoder.device)?),
        None => None,
    };
    let records: Vec<Record> = shared::input::read_all(&args.records)?;
    let mut encoded: Vec<std::result::Result<Vec<(&str, Sequence)>, String>> = Vec::with_capacity(records.len());
    let mut truncated = Truncated::default();
    for (index, record) in records.iter().enumerate() {
        if let Some(field) = record.empty_field() {
            encoded.push(Err(format!("field {field:?} is empty")));
            continue;
        }
        let rejected = record.rejected.as_ref().map(|text| text.response());
        let mut parts = vec![("chosen", record.chosen.response())];
        parts.extend(rejected.map(|text| ("rejected", text)));
        let sequences = parts
            .into_iter()
            .map(|(name, text)| {
                let sequence = encoder.pair(&record.prompt, &text, args.max_length);
                sequence.map(|s| (name, s)).map_err(|e| Error::record(&args.records, index, e.of_field(name)))
            })
            .collect::<Result<Vec<_>>>()?;
        truncated.count(index, sequences.iter().map(|(_, sequence)| sequence));
        encoded.push(Ok(sequences));
    }
    truncated.warn(&args.records, args.max_length);
    let empty = encoded.iter().filter(|record| record.is_err()).count();
    if empty > 0 {
        tracing::warn!("{empty} records with an empty field have no numbers; \"error\" in their lines says why");
    }

    let mut out = shared::output::LinesWriter::create(&args.out)?;
    let bar = control.bar("log-probs", records.len() as u64);
    let (mut next, mut failed) = (0, 0);
    while next < encoded.len() {
        let (mut end, mut tokens) = (next, 0);
        let mut groups = Vec::new();
        while end < encoded.len() {
            let of_record: usize = encoded[end].iter().flatten().map(|(_, s)| s.tokens.len()).sum();
            if !groups.is_empty() && tokens + of_record > args.pack_tokens {
                break;
            }
            tokens += of_record;
            if let Ok(parts) = &encoded[end] {
                groups.push(parts.iter().map(|(_, s)| (s, Want::LOG_PROB)).collect());
            }
            end += 1;
        }
        let log_probs = if groups.is_empty() {
            Vec::new()
        } else {
            step::token_log_probs(&decoder, adapter.as_ref(), &Pack::new(&groups, decoder.device))
        };
        let mut rest = log_probs.as_slice();
        for record in &encoded[next..end] {
            let line = match record {
                Ok(parts) => line(parts, &mut rest, args.per_token),
                Err(reason) => Err(reason.clone()),
            };
            failed += usize::from(line.is_err());
            out.push(&line.map_or_else(|reason| json!({ "error": reason }), Value::Object))?;
        }
        bar.inc((end - next) as u64);
        next = end;
    }
    bar.finish_and_clear();
    let not_finite = failed - empty;
    if not_finite > 0 {
        tracing::warn!("{not_finite} records have log-probs that are not finite; \"error\" in their lines says which");
    }
    let written = out.finish()?;
    Ok(json!({
        "out": args.out.display().to_string(), "records": written, "set_aside": empty, "not_finite": not_finite,
        "truncated": truncated.records,
    }))
}

fn line(
    parts: &[(&str, Sequence)],
    rest: &mut &[f64],
    per_token: bool,
) -> std::result::Result<Map<String, Value>, String> {
    let mut line = Map::new();
    let mut tokens = Map::new();
    let own = parts.iter().map(|(_, sequence)| {
        let (own, tail) = rest.split_at(sequence.scored.len());
        *rest = tail;
        own
    });
    // All parts are taken from the pack's numbers, also where the first of them cannot be used.
    let own: Vec<&[f64]> = own.collect();
    for ((name, sequence), own) in parts.iter().zip(own) {
        if let Some(bad) = own.iter().find(|value| !value.is_finite()) {
            return Err(format!(
                "field {name:?}: a token's log-prob is {bad}; the model's weights are damaged, or --dtype is too narrow \
                 for it"
            ));
        }
        line.insert(format!("{name}_logp"), json!(own.iter().sum::<f64>()));
        tokens.insert(format!("{name}_tokens"), json!(own.len()));
        if per_token {
            let ids: Vec<i64> = sequence.scored.iter().map(|&t| sequence.tokens[t]).collect();
            tokens.insert(format!("{name}_token_ids"), json!(ids));
            tokens.insert(format!("{name}_token_logps"), json!(own));
        }
    }
    line.extend(tokens);
    Ok(line)
}
