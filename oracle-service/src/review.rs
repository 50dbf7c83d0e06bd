//! Verdicts by people: uncertain responses go to a file, its empty verdicts are filled in, and importing it keeps them in
//! the ledger's store, where they win over every model's.
//!
//! A verdict is of a response under a policy, by their texts, so it holds for every job and judge model. The file carries
//! these texts; an entry whose texts were changed is refused, since nobody would ever look it up.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::output::{ArrayWriter, sibling};
use shared::store::Change;

use crate::api::engine::now_ms;
use crate::api::ledger::Ledger;
use crate::api::reading::{Reading, read};
use crate::error::Result;
use crate::served::{self, Held};
use crate::{Outcome, table};

const REVIEWS: &str = "reviews";
/// Verdicts in one message to a service.
const SENT_AT_ONCE: usize = 10_000;

/// Imports verdicts that people gave
///
/// `triage` lists responses without a sure verdict in `<stem>_review.json`. Fill in "verdict" with COMPLIANT or
/// NON-COMPLIANT where you can tell, leave it empty elsewhere, and import the file; the next triage takes these verdicts
/// instead of asking. Importing another verdict for the same response replaces the earlier one. Where a service has the
/// folder, it stores them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Stores the verdicts of an edited review file in the ledger's folder
    Import(Import),
}

#[derive(Debug, clap::Args)]
struct Import {
    /// The edited file
    #[arg(long, value_name = "FILE")]
    review: PathBuf,
    /// Folder of the ledger
    #[arg(long, value_name = "DIR", default_value = "oracle-state")]
    state: PathBuf,
    /// Who decided, for the record
    #[arg(long, value_name = "NAME", env = "USER", default_value = "unknown")]
    by: String,
    /// File with the cluster's token, instead of TRACE_TOKEN, where a service has the folder
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// A person's verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Review {
    pub(crate) compliant: bool,
    pub(crate) by: String,
    /// When it was imported, in Unix milliseconds.
    pub(crate) at_ms: u64,
}

/// One response in a review file.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    item: String,
    /// Hash of the policy's text.
    policy: String,
    /// Of the record in the triage's input, from 0.
    #[serde(default)]
    index: usize,
    #[serde(default)]
    field: String,
    prompt: String,
    response: String,
    /// Why the judge's word is not taken.
    #[serde(default)]
    reason: String,
    /// Empty until someone decides.
    verdict: String,
}

#[derive(Debug, Serialize)]
struct Counts {
    imported: usize,
    /// Entries whose verdict is still empty.
    open: usize,
}

/// Names a response under a policy, whoever judges it.
pub(crate) fn item(policy: &str, prompt: &str, response: &str) -> String {
    item_of(&policy_hash(policy), prompt, response)
}

fn item_of(policy_hash: &str, prompt: &str, response: &str) -> String {
    let text = json!({"policy": policy_hash, "prompt": prompt, "response": response}).to_string();
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

fn policy_hash(policy: &str) -> String {
    blake3::hash(policy.as_bytes()).to_hex()[..32].to_owned()
}

/// Returns a person's verdict on an item.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn of(ledger: &Ledger, item: &str) -> shared::Result<Option<Review>> {
    ledger.store().get(REVIEWS, item)
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let Command::Import(args) = &args.command;
    let entries: Vec<Entry> = shared::input::read_all(&args.review)?;
    let (verdicts, open) = verdicts(&entries, &args.review)?;
    let counts = Counts { imported: verdicts.len(), open };
    match served::open(&args.state)? {
        Held::Open(ledger) => ledger.store().commit_blocking(changes(&verdicts, &args.by, now_ms()))?,
        Held::Served { url, problem } => send(&url, &problem, args, &verdicts)?,
    }
    if args.json {
        table::print_json(&counts)?;
    } else {
        println!("{} verdicts imported as given by {}, {} still open", counts.imported, args.by, counts.open);
    }
    Ok(Outcome::Complete)
}

/// Has the service that holds the ledger store verdicts.
fn send(url: &str, problem: &str, args: &Import, verdicts: &[proto::oracle::Review]) -> Result<()> {
    for some in verdicts.chunks(SENT_AT_ONCE) {
        let reviews = proto::oracle::Reviews { by: args.by.clone(), verdicts: some.to_vec() };
        served::call(url, problem, args.token_file.as_deref(), async |mut client| {
            client.import_reviews(reviews).await.map(drop)
        })?;
    }
    Ok(())
}

/// Returns what to store.
pub(crate) fn changes(verdicts: &[proto::oracle::Review], by: &str, at_ms: u64) -> Vec<Change> {
    let stored = verdicts.iter().map(|verdict| {
        let review = Review { compliant: verdict.compliant, by: by.to_owned(), at_ms };
        Change::put(REVIEWS, &verdict.item, &review)
    });
    stored.collect()
}

/// Returns whether a name can be that of an item.
pub(crate) fn is_item(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns the verdicts that were filled in, and how many entries are still open; one bad entry refuses the file.
fn verdicts(entries: &[Entry], file: &Path) -> Result<(Vec<proto::oracle::Review>, usize)> {
    let mut verdicts = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if entry.verdict.trim().is_empty() {
            continue;
        }
        let wrong = |field: &str, problem: &str| Err(shared::Error::field(file, index, field, problem).into());
        let compliant = match read(&entry.verdict) {
            Reading::Compliant => true,
            Reading::Violates => false,
            Reading::Unclear => {
                let problem = format!("is {:?}; expected COMPLIANT, NON-COMPLIANT or nothing", entry.verdict);
                return wrong("verdict", &problem);
            }
        };
        if entry.item != item_of(&entry.policy, &entry.prompt, &entry.response) {
            return wrong("item", "does not belong to policy, prompt and response; edit nothing but \"verdict\"");
        }
        verdicts.push(proto::oracle::Review { item: entry.item.clone(), compliant });
    }
    let open = entries.len() - verdicts.len();
    Ok((verdicts, open))
}

/// Writes a review file beside an output, or removes that of an earlier run where there is nothing to review.
pub(crate) struct ReviewFile {
    path: PathBuf,
    writer: ArrayWriter,
}

impl ReviewFile {
    /// # Errors
    /// The disk.
    pub(crate) fn create(output: &Path) -> Result<ReviewFile> {
        let path = sibling(output, "_review");
        Ok(ReviewFile { writer: ArrayWriter::create(&path)?, path })
    }

    /// Adds a response without a sure verdict.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn push(
        &mut self,
        (index, field): (usize, &str),
        policy: &str,
        prompt: &str,
        response: &str,
        reason: &str,
    ) -> Result<()> {
        let policy = policy_hash(policy);
        self.writer.push(&Entry {
            item: item_of(&policy, prompt, response),
            policy,
            index,
            field: field.to_owned(),
            prompt: prompt.to_owned(),
            response: response.to_owned(),
            reason: reason.to_owned(),
            verdict: String::new(),
        })?;
        Ok(())
    }

    /// # Errors
    /// The disk.
    pub(crate) fn finish(self) -> Result<()> {
        if self.writer.count() == 0 {
            return crate::triage::remove(&self.path);
        }
        self.writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(verdict: &str) -> Entry {
        let policy = policy_hash("Be kind.");
        Entry {
            item: item_of(&policy, "p", "r"),
            policy,
            index: 3,
            field: "chosen".into(),
            prompt: "p".into(),
            response: "r".into(),
            reason: String::new(),
            verdict: verdict.into(),
        }
    }

    fn import(entries: &[Entry]) -> Result<(Vec<Change>, usize)> {
        let (verdicts, open) = verdicts(entries, Path::new("a_review.json"))?;
        assert!(verdicts.iter().all(|verdict| is_item(&verdict.item)));
        Ok((changes(&verdicts, "ann", 5), open))
    }

    #[test]
    fn filled_in_verdicts_are_stored_with_who_and_when() {
        let (changes, open) = import(&[entry("non-compliant"), entry(" "), entry("COMPLIANT")]).unwrap();
        assert_eq!(open, 1);
        let stored = |compliant| {
            let review = Review { compliant, by: "ann".into(), at_ms: 5 };
            Change::put(REVIEWS, item("Be kind.", "p", "r"), &review)
        };
        assert_eq!(changes, [stored(false), stored(true)]);
    }

    #[test]
    fn a_bad_entry_refuses_the_file_and_is_named() {
        let error = import(&[entry(""), entry("perhaps")]).unwrap_err().to_string();
        assert!(error.contains("a_review.json: record 1: field \"verdict\"") && error.contains("perhaps"), "{error}");
        let edited = Entry { response: "another".into(), ..entry("COMPLIANT") };
        let error = import(&[edited]).unwrap_err().to_string();
        assert!(error.contains("field \"item\"") && error.contains("edit nothing but"), "{error}");
    }

    #[test]
    fn a_verdict_belongs_to_policy_prompt_and_response() {
        let base = item("a", "b", "c");
        for other in [item("x", "b", "c"), item("a", "x", "c"), item("a", "b", "x"), item("a", "bc", "")] {
            assert_ne!(other, base);
        }
    }
}
