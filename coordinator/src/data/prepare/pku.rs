//! What becomes of one row: the decision table of spec 1.2, and which kind of row it is.

use serde_json::Value;
use shared::{Error, Result};

use crate::data::row::{Place, Row, kind, required, text_is_empty};

/// The two kinds of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Two responses with safety labels (spec 1.1).
    SafeRlhf,
    /// A pair already: prompt, chosen, rejected.
    Plain,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::SafeRlhf => "a PKU-SafeRLHF row",
            Kind::Plain => "a plain pair",
        }
    }

    fn is_marked(self, row: &Row) -> bool {
        let markers: &[&str] = match self {
            Kind::SafeRlhf => &["response_0", "response_1", "safer_response_id"],
            Kind::Plain => &["chosen", "rejected"],
        };
        markers.iter().any(|field| row.contains_key(*field))
    }
}

/// Tells a row's kind by its fields; a file keeps the kind of its first row.
pub(super) fn kind_of(row: &Row, place: Place<'_>, file_kind: Option<Kind>) -> Result<Kind> {
    if let Some(kind) = file_kind.filter(|kind| kind.is_marked(row)) {
        return Ok(kind);
    }
    let found = [Kind::SafeRlhf, Kind::Plain].into_iter().find(|kind| kind.is_marked(row));
    match (found, file_kind) {
        (Some(found), None) => Ok(found),
        (Some(found), Some(before)) => Err(Error::record(
            place.file,
            place.index,
            format!("is {}, but the file starts with {}; give each kind its own file", found.name(), before.name()),
        )),
        (None, _) => Err(Error::record(
            place.file,
            place.index,
            "has neither chosen and rejected (a plain pair) nor response_0, response_1 and safer_response_id (a \
             PKU-SafeRLHF row)",
        )),
    }
}

/// How many of the two responses are safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Safety {
    OneSafe,
    BothSafe,
    BothUnsafe,
}

/// What becomes of a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A pair of the two named fields.
    Pair { safety: Safety, chosen: &'static str, rejected: &'static str },
    /// A pair as it is.
    Plain,
    /// Nothing to learn from.
    Unused { reason: &'static str },
    /// A field without text.
    Empty { field: &'static str },
}

/// Judges a PKU-SafeRLHF row. The label is tested first; then the safety flags win over it where they differ.
pub(super) fn judge(row: &Row, place: Place<'_>) -> Result<Verdict> {
    const RESPONSES: [&str; 2] = ["response_0", "response_1"];
    let label = label(row, place)?;
    let safe = [boolean(row, place, "is_response_0_safe")?, boolean(row, place, "is_response_1_safe")?];
    let mut empty = None;
    for field in ["prompt", RESPONSES[0], RESPONSES[1]] {
        if text_is_empty(row, place, field)? && empty.is_none() {
            empty = Some(field);
        }
    }
    let Some(safer) = label else {
        return Ok(Verdict::Unused { reason: "no_preference_label" });
    };
    if let Some(field) = empty {
        return Ok(Verdict::Empty { field });
    }
    let (safety, winner) = match safe {
        [true, false] => (Safety::OneSafe, 0),
        [false, true] => (Safety::OneSafe, 1),
        [true, true] => (Safety::BothSafe, safer),
        [false, false] => (Safety::BothUnsafe, safer),
    };
    Ok(Verdict::Pair { safety, chosen: RESPONSES[winner], rejected: RESPONSES[1 - winner] })
}

/// The response that was labelled safer, `None` for null and for numbers other than 0 and 1.
fn label(row: &Row, place: Place<'_>) -> Result<Option<usize>> {
    let field = "safer_response_id";
    match required(row, place, field)? {
        Value::Null => Ok(None),
        Value::Number(number) => match number.as_i64() {
            Some(0) => Ok(Some(0)),
            Some(1) => Ok(Some(1)),
            Some(_) => Ok(None),
            None => Err(place.error(field, format!("is {number}, expected a whole number"))),
        },
        other => Err(place.error(field, format!("is {}, expected a whole number", kind(other)))),
    }
}

fn boolean(row: &Row, place: Place<'_>, field: &str) -> Result<bool> {
    match required(row, place, field)? {
        Value::Bool(value) => Ok(*value),
        other => Err(place.error(field, format!("is {}, expected true or false", kind(other)))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn place() -> Place<'static> {
        Place { index: 3, file: Path::new("") }
    }

    fn row(safe_0: bool, safe_1: bool, safer: i64) -> Row {
        let row = json!({"prompt": "p", "response_0": "a", "response_1": "b", "is_response_0_safe": safe_0,
            "is_response_1_safe": safe_1, "safer_response_id": safer, "better_response_id": 1 - safer});
        row.as_object().unwrap().clone()
    }

    #[test]
    fn the_decision_table_of_the_spec() {
        let pair = |safety, winner: usize| {
            let names = ["response_0", "response_1"];
            Verdict::Pair { safety, chosen: names[winner], rejected: names[1 - winner] }
        };
        for (safe_0, safe_1, safer, expected) in [
            (true, false, 0, pair(Safety::OneSafe, 0)),
            (true, false, 1, pair(Safety::OneSafe, 0)),
            (false, true, 0, pair(Safety::OneSafe, 1)),
            (false, true, 1, pair(Safety::OneSafe, 1)),
            (true, true, 0, pair(Safety::BothSafe, 0)),
            (true, true, 1, pair(Safety::BothSafe, 1)),
            (false, false, 0, pair(Safety::BothUnsafe, 0)),
            (false, false, 1, pair(Safety::BothUnsafe, 1)),
            (true, false, -1, Verdict::Unused { reason: "no_preference_label" }),
            (false, false, 2, Verdict::Unused { reason: "no_preference_label" }),
        ] {
            assert_eq!(judge(&row(safe_0, safe_1, safer), place()).unwrap(), expected, "{safe_0} {safe_1} {safer}");
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        for (field, value, problem) in [
            ("is_response_1_safe", json!("yes"), "is a string, expected true or false"),
            ("safer_response_id", json!(0.5), "is 0.5, expected a whole number"),
            ("safer_response_id", json!(true), "is a boolean, expected a whole number"),
            ("response_0", json!(5), "invalid type: integer `5`, expected a string or a list of chat turns"),
        ] {
            let mut row = row(true, true, 0);
            row.insert(field.into(), value);
            let message = judge(&row, place()).unwrap_err().to_string();
            assert_eq!(message, format!(": record 3: field \"{field}\": {problem}"));
        }
        let mut row = row(true, true, 0);
        row.remove("is_response_0_safe");
        let message = judge(&row, place()).unwrap_err().to_string();
        assert_eq!(message, ": record 3: field \"is_response_0_safe\": is missing");
    }

    #[test]
    fn an_empty_response_is_quarantined_unless_the_row_is_unused_anyway() {
        let mut empty = row(true, false, 0);
        empty.insert("response_1".into(), json!(""));
        assert_eq!(judge(&empty, place()).unwrap(), Verdict::Empty { field: "response_1" });
        empty.insert("safer_response_id".into(), Value::Null);
        assert_eq!(judge(&empty, place()).unwrap(), Verdict::Unused { reason: "no_preference_label" });
    }

    #[test]
    fn a_file_keeps_the_kind_of_its_first_row() {
        let object = |value: Value| value.as_object().unwrap().clone();
        let plain = object(json!({"prompt": "p", "chosen": "c"}));
        assert_eq!(kind_of(&row(true, true, 0), place(), None).unwrap(), Kind::SafeRlhf);
        assert_eq!(kind_of(&plain, place(), None).unwrap(), Kind::Plain);
        let message = kind_of(&plain, place(), Some(Kind::SafeRlhf)).unwrap_err().to_string();
        assert!(
            message.contains("record 3: is a plain pair, but the file starts with a PKU-SafeRLHF row"),
            "{message}"
        );
        assert!(kind_of(&object(json!({"prompt": "p"})), place(), Some(Kind::Plain)).is_err());
    }
}
