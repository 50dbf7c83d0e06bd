//! The files beside a triage's output that tell what its labels rest on and what people should look at.

use std::path::Path;

use shared::record::{Record, Text};

use crate::error::Result;
use crate::judging::PairJudged;
use crate::judging::provenance::{Line, Lines};
use crate::oracle::{Decision, Oracle};
use crate::review::ReviewFile;

/// `<stem>_provenance.jsonl` and `<stem>_review.json`; rules need neither.
pub(super) struct Beside<'a> {
    policy: Option<&'a str>,
    provenance: Lines,
    review: ReviewFile,
}

impl<'a> Beside<'a> {
    pub(super) fn create(output: &Path, oracle: &'a Oracle) -> Result<Beside<'a>> {
        let policy = match oracle {
            Oracle::Rules { .. } => None,
            Oracle::Model(asker) => Some(asker.model.policy.as_str()),
        };
        let provenance = Lines::create(output, policy.is_some())?;
        Ok(Beside { policy, provenance, review: ReviewFile::create(output)? })
    }

    /// Adds what was found about a pair.
    pub(super) fn push(&mut self, index: usize, record: &Record, rejected: &Text, judged: &PairJudged) -> Result<()> {
        let Some(policy) = self.policy else { return Ok(()) };
        let named =
            [("chosen", &record.chosen, Some(&judged.chosen)), ("rejected", rejected, judged.rejected.as_ref())];
        for (field, text, judged) in named {
            let Some(judged) = judged else { continue };
            self.provenance.push(&Line::new(index, field, judged))?;
            if let Decision::Uncertain(reason) = &judged.decision {
                self.review.push((index, field), policy, &record.prompt.prompt_text(), &text.response(), reason)?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<()> {
        self.provenance.finish()?;
        self.review.finish()
    }
}
