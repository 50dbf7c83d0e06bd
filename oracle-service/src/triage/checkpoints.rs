//! Checkpoint files under the reference's names (spec 1.3), for whoever reads along: the pairs finished so far.
//!
//! Resuming needs none of them, the ledger does it. A file is written at multiples of an interval, and only when the list
//! has grown by a tenth since the last one, so that all of them together cost a fixed multiple of the final list. The
//! lists grow in nameless files and are copied from there, so that none of it is kept in memory.

use std::path::{Path, PathBuf};

use serde::Serialize;
use shared::Result;
use shared::output::{AtomicFile, Spool};
use shared::record::Record;

pub(super) struct Checkpoints {
    folder: PathBuf,
    every: usize,
    last: usize,
    gold: Spool,
    labels: Spool,
}

impl Checkpoints {
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn new(folder: &Path, every: usize) -> Result<Checkpoints> {
        let (gold, labels) = (Spool::create(folder)?, Spool::create(folder)?);
        Ok(Checkpoints { folder: folder.to_owned(), every, last: 0, gold, labels })
    }

    /// Adds a labelled pair.
    pub(super) fn push(&mut self, gold: &Record, label: &impl Serialize) -> Result<()> {
        self.gold.push(gold)?;
        self.labels.push(label)
    }

    /// Takes note that so many pairs are done, labelled or not, and writes where it is time.
    pub(super) fn reached(&mut self, done: usize) -> Result<()> {
        if !is_due(done, self.last, self.every) {
            return Ok(());
        }
        self.last = done;
        for (name, list) in [("dpo_gold", &mut self.gold), ("triage", &mut self.labels)] {
            let mut file = AtomicFile::create(&self.folder.join(format!("{name}_checkpoint_{done:07}.json")))?;
            file.write(b"[")?;
            list.copy_to(b",", &mut file)?;
            file.write(b"]")?;
            file.finish()?;
        }
        Ok(())
    }
}

fn is_due(done: usize, last: usize, every: usize) -> bool {
    done.is_multiple_of(every) && done * 10 >= last * 11 && done > last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_at_multiples_and_after_a_tenth_more() {
        let mut last = 0;
        let mut written = Vec::new();
        for done in 1..=40_000 {
            if is_due(done, last, 1000) {
                last = done;
                written.push(done);
            }
        }
        assert_eq!(written[..4], [1000, 2000, 3000, 4000]);
        assert!(written.windows(2).all(|pair| pair[1] * 10 >= pair[0] * 11 && pair[1] % 1000 == 0));
        assert!(written.iter().sum::<usize>() < 12 * 40_000);
    }

    #[test]
    fn a_file_holds_the_finished_prefix_unindented() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("ckpt");
        let mut checkpoints = Checkpoints::new(&folder, 2).unwrap();
        let record: Record =
            serde_json::from_value(serde_json::json!({"prompt": "é", "chosen": "b", "rejected": "c"})).unwrap();
        checkpoints.push(&record, &"label").unwrap();
        checkpoints.reached(1).unwrap();
        checkpoints.reached(2).unwrap();
        let text = std::fs::read_to_string(folder.join("dpo_gold_checkpoint_0000002.json")).unwrap();
        assert_eq!(text, "[{\"prompt\":\"é\",\"chosen\":\"b\",\"rejected\":\"c\"}]");
        assert_eq!(std::fs::read_to_string(folder.join("triage_checkpoint_0000002.json")).unwrap(), "[\"label\"]");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    }
}
