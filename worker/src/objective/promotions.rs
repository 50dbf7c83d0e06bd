//! The responses that a recipe promotes in a set of records: figures for the summary, and a list of those that say nothing.

use std::path::Path;

use serde::Serialize;
use shared::quality::{Figures, Flaw};
use shared::record::Category;

use super::method::Recipe;
use crate::dataset::DataSet;
use crate::error::{Error, Result};

/// A promoted response with a flaw.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flawed {
    /// Index of its record in the file, from 0.
    pub record: usize,
    /// The record's category.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// The response's field.
    pub field: &'static str,
    /// What is wrong with it.
    pub flaw: Flaw,
    /// The response.
    pub text: String,
    /// The record's term: another than its promotion where the filter acts.
    pub term: String,
}

/// The promoted responses of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct Promotions {
    /// For the summary.
    pub figures: Figures,
    /// Those with a flaw, in the order of the file; empty with a filter that is off.
    pub flawed: Vec<Flawed>,
}

impl Promotions {
    /// Looks at all records of a set.
    ///
    /// # Errors
    /// The method needs a category and a record has none; it is named.
    pub fn of(recipe: &Recipe, set: &DataSet) -> Result<Promotions> {
        let (mut promoted, mut flawed) = (Vec::new(), Vec::new());
        for (record, &index) in set.records.iter().zip(&set.index) {
            let named = |problem: String| Error::record(&set.file, index, problem);
            let decision = recipe.decide(record).map_err(named)?;
            let Some(of) = decision.promoted else { continue };
            let text = of.part.of(record);
            if let Some(flaw) = of.flaw {
                let term = decision.term.map_or("none".to_owned(), |term| term.to_string());
                let field = of.part.field();
                flawed.push(Flawed { record: index, category: record.category, field, flaw, text: text.clone(), term });
            }
            promoted.push((text, of.over.of(record), of.flaw));
        }
        let mode = recipe.filter.mode;
        if mode == shared::quality::Mode::Off {
            flawed.clear();
        }
        Ok(Promotions { figures: Figures::of(mode, &promoted), flawed })
    }

    /// Writes the list; a list of an earlier run goes where there is nothing to list.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, file: &Path) -> Result<()> {
        if !self.flawed.is_empty() {
            return Ok(shared::output::write_json(file, &self.flawed)?);
        }
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::model(file, error.to_string())),
            _ => Ok(()),
        }
    }

    /// Says so, if there are any.
    pub fn warn(&self, file: &Path) {
        let Some(first) = self.flawed.first() else { return };
        let done = match self.figures.filtered {
            0 => "they are promoted all the same (--quality-filter on does otherwise)",
            _ => "they are not promoted",
        };
        tracing::warn!(
            "{}: {} of {} promoted responses say next to nothing, first: record {}; {done}",
            file.display(),
            self.flawed.len(),
            self.figures.promoted,
            first.record
        );
    }
}
