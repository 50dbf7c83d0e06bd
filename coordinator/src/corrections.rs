//! How many PUNISH records got a correction that the judge accepted. Training punishes both responses of the others, which
//! is no error but should be known.

use std::path::Path;

use serde::Deserialize;
use shared::record::Category;
use shared::{Result, input};

/// Counts of `corrected.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Corrections {
    pub(crate) punish: usize,
    pub(crate) missing: usize,
}

/// Counts the corrections in a file.
///
/// # Errors
/// It cannot be read or holds other than records.
pub(crate) fn count(file: &Path) -> Result<Corrections> {
    #[derive(Deserialize)]
    struct Record {
        category: Option<Category>,
        oracle_response: Option<String>,
    }
    let mut counts = Corrections::default();
    input::for_each(file, |_, record: Record| {
        if record.category == Some(Category::Punish) {
            counts.punish += 1;
            counts.missing += usize::from(record.oracle_response.is_none_or(|text| text.is_empty()));
        }
        Ok(())
    })?;
    Ok(counts)
}

impl Corrections {
    /// Says what is missing; nothing where nothing is.
    pub(crate) fn warning(self) -> Option<String> {
        (self.missing > 0).then(|| {
            format!(
                "{} of {} PUNISH pairs have no accepted correction; both their responses are punished",
                self.missing, self.punish
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_and_absent_corrections_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("corrected.json");
        let records = r#"[{"category": "PUNISH", "oracle_response": "no"}, {"category": "PUNISH", "oracle_response": ""},
                          {"category": "RETAIN", "oracle_response": ""}, {"category": "PUNISH"}]"#;
        std::fs::write(&file, records).unwrap();
        let counts = count(&file).unwrap();
        assert_eq!(counts, Corrections { punish: 3, missing: 2 });
        assert!(counts.warning().unwrap().starts_with("2 of 3 PUNISH pairs have no accepted correction"));
        assert_eq!(Corrections { punish: 3, missing: 0 }.warning(), None);
    }
}
