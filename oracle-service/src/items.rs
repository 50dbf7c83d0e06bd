//! What a job asks about, item by item, for commands that look at a job without doing it.

use std::path::Path;

use serde::Serialize;
use shared::record::{Category, Record, Text};
use shared::rules::Judge;

use crate::error::Result;
use crate::judge;

/// The commands that ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Work {
    Triage,
    Correct,
    Judge,
}

/// One thing that is asked about.
pub(crate) enum Item {
    Pair { prompt: String, chosen: String, rejected: String },
    Correction { prompt: String, violating: String },
    Response { prompt: String, response: String },
}

impl Work {
    /// Names its items.
    pub(crate) fn items(self) -> &'static str {
        match self {
            Work::Triage => "pairs",
            Work::Correct => "PUNISH records",
            Work::Judge => "responses",
        }
    }
}

/// Returns a job's items in order; none for a record that nothing is asked about. Responses that a world tells by itself
/// are none.
///
/// # Errors
/// The input cannot be opened.
pub(crate) fn items<'a>(
    work: Work,
    input: &'a Path,
    world: Option<&'a Judge>,
) -> Result<Box<dyn Iterator<Item = Result<Option<Item>>> + 'a>> {
    if work == Work::Judge {
        let questions = judge::questions(input, world)?;
        return Ok(Box::new(
            questions.map(|question| Ok(question?.map(|(prompt, response)| Item::Response { prompt, response }))),
        ));
    }
    let records = shared::input::records::<Record>(input)?.enumerate();
    Ok(Box::new(records.map(move |(index, record)| {
        let record = record?;
        let (prompt, chosen) = (record.prompt.prompt_text(), record.chosen.response());
        if work == Work::Triage {
            let rejected = record.rejected.as_ref().map(Text::response);
            let rejected = rejected.ok_or_else(|| shared::Error::field(input, index, "rejected", "is missing"))?;
            return Ok(Some(Item::Pair { prompt, chosen, rejected }));
        }
        match record.category {
            Some(Category::Punish) => Ok(Some(Item::Correction { prompt, violating: chosen })),
            Some(_) => Ok(None),
            None => {
                let problem = "is missing; triage the records first";
                Err(shared::Error::field(input, index, "category", problem).into())
            }
        }
    })))
}
