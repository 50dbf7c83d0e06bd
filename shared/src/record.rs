//! Preference records: what is read, labelled, scored and trained on.
//!
//! A [`Record`] keeps fields it does not know, so that a file passes through every command without loss. Which fields
//! must be present depends on the command; [`Record`] itself demands only what its types say.

use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Side of the policy shift a pair falls on (spec 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Category {
    /// The old winner violates, the old loser complies. Stored swapped: `chosen` is the compliant old loser.
    Invert,
    /// Both violate.
    Punish,
    /// The old winner complies.
    Retain,
}

impl Category {
    /// All categories, in the order of the spec's tables and of the noise generator's candidates.
    pub const ALL: [Category; 3] = [Category::Invert, Category::Punish, Category::Retain];

    /// Returns the name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Category::Invert => "INVERT",
            Category::Punish => "PUNISH",
            Category::Retain => "RETAIN",
        }
    }

    /// Returns whether records of this category carry a weight (D_conflict = INVERT and PUNISH).
    pub fn is_conflict(self) -> bool {
        self != Category::Retain
    }
}

impl std::fmt::Display for Category {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How many records or pairs there are of each category.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CategoryCounts([usize; 3]);

impl CategoryCounts {
    /// Counts categories.
    pub fn of(categories: impl IntoIterator<Item = Category>) -> CategoryCounts {
        let mut counts = CategoryCounts::default();
        for category in categories {
            counts.0[category as usize] += 1;
        }
        counts
    }

    /// Returns how many there are of one.
    pub fn get(self, category: Category) -> usize {
        self.0[category as usize]
    }
}

/// As messages tell them: `3 INVERT, 0 PUNISH, 5 RETAIN`.
impl std::fmt::Display for CategoryCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [invert, punish, retain] = Category::ALL.map(|category| self.get(category));
        write!(f, "{invert} INVERT, {punish} PUNISH, {retain} RETAIN")
    }
}

impl std::str::FromStr for Category {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Category::ALL
            .into_iter()
            .find(|c| c.name() == name)
            .ok_or_else(|| format!("unknown category {name:?}; expected INVERT, PUNISH or RETAIN"))
    }
}

/// Written by hand: serde_json calls a number in the place of an enum's name a fault of the JSON.
impl<'de> Deserialize<'de> for Category {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct CategoryVisitor;

        impl Visitor<'_> for CategoryVisitor {
            type Value = Category;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"INVERT\", \"PUNISH\" or \"RETAIN\"")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Category, E> {
                name.parse().map_err(E::custom)
            }
        }

        source.deserialize_str(CategoryVisitor)
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user` or `assistant`; templates may know others.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A text field: a plain string or a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Text {
    /// A plain string.
    Plain(String),
    /// A list of chat turns.
    Turns(Vec<Turn>),
}

impl Default for Text {
    fn default() -> Self {
        Text::Plain(String::new())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Text::Plain(text.to_owned())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Text::Plain(text)
    }
}

impl Text {
    /// Returns the text of a response field: a string as it is; from turns the last assistant turn, else all contents
    /// joined by one space (spec 1.7, training side).
    pub fn response(&self) -> String {
        match self {
            Text::Plain(text) => text.clone(),
            Text::Turns(turns) => match turns.iter().rev().find(|turn| turn.role == "assistant") {
                Some(turn) => turn.content.clone(),
                None => joined(turns),
            },
        }
    }

    /// Returns what is asked where a model answers a prompt: a string as it is; from turns the first user turn, else all
    /// contents joined by one space (spec 1.7, evaluation side).
    pub fn question(&self) -> String {
        match self {
            Text::Plain(text) => text.clone(),
            Text::Turns(turns) => match turns.iter().find(|turn| turn.role == "user") {
                Some(turn) => turn.content.clone(),
                None => joined(turns),
            },
        }
    }

    /// Returns the turns a prompt is rendered from: a plain string is one user turn, a conversation is kept whole.
    pub fn turns(&self) -> Vec<Turn> {
        match self {
            Text::Plain(text) => vec![Turn { role: "user".into(), content: text.clone() }],
            Text::Turns(turns) => turns.clone(),
        }
    }

    /// Returns the prompt as one string for people, judges and keys: a string as it is; one user turn as its content;
    /// a longer conversation as `role: content` lines.
    pub fn prompt_text(&self) -> String {
        match self {
            Text::Plain(text) => text.clone(),
            Text::Turns(turns) if turns.len() == 1 => turns[0].content.clone(),
            Text::Turns(turns) => {
                turns.iter().map(|turn| format!("{}: {}", turn.role, turn.content)).collect::<Vec<_>>().join("\n")
            }
        }
    }

    /// Returns whether there is nothing in it but white space: in the string, or in every turn.
    pub fn is_empty(&self) -> bool {
        match self {
            Text::Plain(text) => text.trim().is_empty(),
            Text::Turns(turns) => turns.iter().all(|turn| turn.content.trim().is_empty()),
        }
    }

    /// Returns whether there is nothing but white space in its response; a conversation can hold turns and still none.
    pub fn has_no_response(&self) -> bool {
        self.response().trim().is_empty()
    }
}

/// Written by hand so that an error says what was found; serde's untagged enums only say that nothing matched.
impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or a list of chat turns")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text::Plain(text.to_owned()))
            }

            fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Text, E> {
                Ok(Text::Plain(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, turns: A) -> Result<Text, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(turns)).map(Text::Turns)
            }
        }

        source.deserialize_any(TextVisitor)
    }
}

fn joined(turns: &[Turn]) -> String {
    turns.iter().map(|turn| turn.content.as_str()).collect::<Vec<_>>().join(" ")
}

/// One preference record (spec 1.2, 1.3, 1.6).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// x
    pub prompt: Text,
    /// The preferred response; in an SFT record the only one.
    pub chosen: Text,
    /// The dispreferred response; absent in an SFT record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Text>,
    /// Absent before triage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// Indices of the policies that `chosen` violates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_violations: Option<Vec<i64>>,
    /// Indices of the policies that `rejected` violates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_violations: Option<Vec<i64>>,
    /// The oracle's corrective response y_c; "" and absent both mean there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oracle_response: Option<String>,
    /// ⟨g_J, g_i⟩ before γ, clamp and normalisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_score: Option<f64>,
    /// The weight used in the update; 0 for RETAIN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impact_score: Option<f64>,
    /// Fields this program does not know, kept in their order.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Record {
    /// Returns the oracle's correction where there is a non-empty one.
    pub fn correction(&self) -> Option<&str> {
        self.oracle_response.as_deref().filter(|text| !text.is_empty())
    }

    /// Returns whether `rejected` is known to violate the policy by its own verdict, whatever the category says.
    pub fn rejected_violates(&self) -> bool {
        self.rejected_violations.as_ref().is_some_and(|list| !list.is_empty())
    }

    /// Returns the name of the first of prompt, chosen and rejected that is there but holds no text: nothing, or white
    /// space alone. Every program sets such a record aside, so that all of them count the same records.
    pub fn empty_field(&self) -> Option<&'static str> {
        if self.prompt.is_empty() {
            Some("prompt")
        } else if self.chosen.has_no_response() {
            Some("chosen")
        } else if self.rejected.as_ref().is_some_and(Text::has_no_response) {
            Some("rejected")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: &str, content: &str) -> Turn {
        Turn { role: role.into(), content: content.into() }
    }

    #[test]
    fn a_question_is_the_first_user_turn_and_a_response_the_last_assistant_turn() {
        let turns = [turn("system", "s"), turn("user", "one"), turn("assistant", "a"), turn("user", "two")];
        let text = Text::Turns(turns.to_vec());
        assert_eq!((text.question(), text.response()), ("one".into(), "a".into()));
        let text = Text::Turns(vec![turn("system", "s"), turn("tool", "t")]);
        assert_eq!((text.question(), text.response()), ("s t".into(), "s t".into()));
        assert_eq!(Text::from("x").question(), "x");
    }

    #[test]
    fn white_space_is_no_text() {
        let record = |prompt: &str, chosen: &str, rejected: Option<&str>| Record {
            prompt: prompt.into(),
            chosen: chosen.into(),
            rejected: rejected.map(Text::from),
            ..Record::default()
        };
        assert_eq!(record(" \n", "a", None).empty_field(), Some("prompt"));
        assert_eq!(record("x", "\t", None).empty_field(), Some("chosen"));
        assert_eq!(record("x", "a", Some(" ")).empty_field(), Some("rejected"));
        assert_eq!(record("x", "a", Some(" b ")).empty_field(), None);
        let mut turns = record("x", "a", None);
        turns.chosen = Text::Turns(vec![turn("user", "x"), turn("assistant", " ")]);
        assert_eq!(turns.empty_field(), Some("chosen"), "turns, and no response among them");
    }

    #[test]
    fn a_category_of_another_type_is_told_from_bad_json() {
        let error = serde_json::from_str::<Category>("1").unwrap_err();
        assert!(error.is_data(), "{error}");
        assert!(error.to_string().contains("expected \"INVERT\", \"PUNISH\" or \"RETAIN\""), "{error}");
        let error = serde_json::from_str::<Category>("\"MAYBE\"").unwrap_err().to_string();
        assert!(error.starts_with("unknown category \"MAYBE\"; expected INVERT, PUNISH or RETAIN"), "{error}");
        assert_eq!(serde_json::from_str::<Category>("\"PUNISH\"").unwrap(), Category::Punish);
    }
}
