//! What the mock says: our own questions by the rule file, in words or as JSON by a schema, a fixed sentence to anything
//! else. Pure.

use serde_json::{Map, Value};
use shared::keyed_random::KeyedRandom;
use shared::rules::Judge;

use crate::api::request::{Asked, asked};

/// What is said, before anything fails on plan.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said {
    pub(super) text: String,
    /// The same with the other verdict, where there is one.
    pub(super) other: Option<String>,
}

/// Returns what the rules say to a conversation, given by its first user message: verdicts and corrections in our own
/// layout (also where the question is asked again), a fixed sentence to anything else. A question that wants JSON is
/// answered by its schema.
pub(super) fn answer(judge: &Judge, user: &str, schema: Option<&Value>) -> Result<Said, String> {
    let question = asked(user);
    if let Some(schema) = schema {
        let json = |flip| structured(judge, question, schema, flip).map(|value| value.to_string());
        return Ok(Said { text: json(false)?, other: Some(json(true)?) });
    }
    match question {
        Some(Asked::Verdict { prompt, response }) => {
            let compliant = verdict(judge, prompt, response)?;
            Ok(Said { text: word(compliant).to_owned(), other: Some(word(!compliant).to_owned()) })
        }
        Some(Asked::Correction { prompt }) => {
            let text = judge.correct(prompt).ok_or("the rules offer no correction for this prompt")?;
            Ok(Said { text, other: None })
        }
        Some(Asked::Pair { .. }) | None => {
            Ok(Said { text: "This server answers the oracle's questions only.".to_owned(), other: None })
        }
    }
}

/// Answers one of our questions as JSON: the plainest instance of the schema whose verdicts are the rules'. A property is a
/// verdict where it is a boolean or an `enum` of our two words.
fn structured(judge: &Judge, question: Option<Asked<'_>>, schema: &Value, flip: bool) -> Result<Value, String> {
    // What a question asks, by the name of the property that answers it; a question with one verdict names none.
    let verdicts: Vec<(&str, bool)> = match question {
        Some(Asked::Verdict { prompt, response }) => vec![("", verdict(judge, prompt, response)?)],
        Some(Asked::Pair { prompt, a, b }) => {
            vec![("response_a", verdict(judge, prompt, a)?), ("response_b", verdict(judge, prompt, b)?)]
        }
        Some(Asked::Correction { .. }) | None => Vec::new(),
    };
    let of = |property: &str| verdicts.iter().find(|(name, _)| name.is_empty() || *name == property);
    Ok(instance(schema, &|property| of(property).is_none_or(|(_, compliant)| *compliant) != flip))
}

/// Returns the plainest instance of a schema, with verdicts where it has room for them.
fn instance(schema: &Value, verdict_of: &dyn Fn(&str) -> bool) -> Value {
    instance_of("", schema, verdict_of)
}

fn instance_of(name: &str, schema: &Value, verdict_of: &dyn Fn(&str) -> bool) -> Value {
    if let Some(choices) = schema["enum"].as_array() {
        let wanted = word(verdict_of(name));
        let found = choices.iter().find(|choice| choice.as_str() == Some(wanted)).or(choices.first());
        return found.cloned().unwrap_or_default();
    }
    // A type may be a list of types: `["string", "null"]`.
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match kind {
        Some("object") => {
            let properties = schema["properties"].as_object().into_iter().flatten();
            let filled = properties.map(|(name, schema)| (name.clone(), instance_of(name, schema, verdict_of)));
            Value::Object(filled.collect::<Map<_, _>>())
        }
        Some("array") => Value::Array(Vec::new()),
        Some("boolean") => verdict_of(name).into(),
        Some("integer" | "number") => 0.into(),
        Some("string") => "".into(),
        _ => Value::Null,
    }
}

fn verdict(judge: &Judge, prompt: &str, response: &str) -> Result<bool, String> {
    let verdict = judge.verdict(prompt, response, true).map_err(|unknown| format!("the prompt {unknown}"))?;
    Ok(verdict.compliant)
}

fn word(compliant: bool) -> &'static str {
    if compliant { "COMPLIANT" } else { "NON-COMPLIANT" }
}

/// Returns how sure the model is of what the rules say, above a half. Whether a question is a hard one depends on its
/// text alone, how sure the model is on the whole request, so that votes on a hard question differ.
pub(super) fn confidence(unsure_share: f64, seed: u64, user: &str, request: u64) -> f64 {
    let draw = KeyedRandom::new(&[seed, 0x5e2e, request]).uniform();
    let hard = unsure_share > 0.0 && KeyedRandom::new(&[seed, 0x6a1d, word_of(user)]).uniform() < unsure_share;
    if hard { 0.5 + 0.4 * draw } else { 0.97 + 0.0299 * draw }
}

fn word_of(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::request::Model;

    fn judge() -> Judge {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules.toml");
        let rules = "default = \"COMPLIANT\"\ncorrection = \"Kindly: {prompt}\"\n[[rule]]\npattern = \"bad\"\n\
                     applies_to = \"response\"\nverdict = \"NON-COMPLIANT\"\n";
        std::fs::write(&file, rules).unwrap();
        Judge::load(&file).unwrap()
    }

    fn user(response: &str) -> String {
        let model = Model { name: "m".into(), policy: "p".into(), completion_tokens_key: false };
        model.verdict("x", response, crate::api::request::Form::default()).body["messages"][1]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn verdicts_are_the_rules_and_know_their_opposite() {
        let said = answer(&judge(), &user("a bad one"), None).unwrap();
        assert_eq!((said.text.as_str(), said.other.as_deref()), ("NON-COMPLIANT", Some("COMPLIANT")));
        assert!(answer(&judge(), "Hello?", None).unwrap().text.contains("questions only"));
    }

    #[test]
    fn a_schema_is_filled_with_verdicts() {
        let schema = json!({"type": "object", "properties": {
            "verdict": {"type": "string", "enum": ["COMPLIANT", "NON-COMPLIANT"]}, "ok": {"type": "boolean"},
            "why": {"type": ["string", "null"]}, "notes": {"type": "array"}, "score": {"type": "number"},
        }});
        let said = answer(&judge(), &user("bad"), Some(&schema)).unwrap();
        let text: Value = serde_json::from_str(&said.text).unwrap();
        assert_eq!(text, json!({"verdict": "NON-COMPLIANT", "ok": false, "why": "", "notes": [], "score": 0}));
        let other: Value = serde_json::from_str(&said.other.unwrap()).unwrap();
        assert_eq!((&other["verdict"], &other["ok"]), (&json!("COMPLIANT"), &json!(true)));
        assert_eq!(answer(&judge(), "Hello?", Some(&json!(7))).unwrap().text, "null");
    }

    #[test]
    fn some_questions_are_hard_by_their_text() {
        let sure = |user: &str, request| confidence(0.3, 1, user, request);
        let hard = (0..1000).filter(|n| sure(&n.to_string(), 0) < 0.9).count();
        assert!((250..350).contains(&hard), "{hard}");
        let one = (0..1000).map(|n| n.to_string()).find(|user| sure(user, 0) < 0.9).unwrap();
        assert!((0..50).all(|request| (0.5..0.9).contains(&sure(&one, request))));
        assert_ne!(sure(&one, 1), sure(&one, 2));
        assert!((0..1000).all(|n| confidence(0.0, 1, &n.to_string(), 0) >= 0.97));
    }
}
