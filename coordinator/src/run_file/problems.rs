//! Problems of a run file, all of them, each with its place; and the readers that find them.

use super::document::{Node, Place, Value};

/// Collects what is wrong.
pub(super) struct Problems<'a> {
    file: &'a str,
    set: &'a [String],
    found: Vec<(Place, String, String)>,
}

/// A table that is being read: its path for messages.
#[derive(Clone)]
pub(super) struct Table<'n> {
    pub(super) path: String,
    pub(super) node: &'n Node,
}

impl<'n> Table<'n> {
    /// Returns the full name of a key in it.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.node.get(key)
    }

    /// Returns where a key stands, or the table where it is missing.
    pub(super) fn place(&self, key: &str) -> Place {
        let entry = self.node.entries().and_then(|entries| entries.iter().find(|entry| entry.key == key));
        entry.map_or(self.node.place, |entry| entry.place)
    }
}

impl<'a> Problems<'a> {
    pub(super) fn new(file: &'a str, set: &'a [String]) -> Self {
        Problems { file, set, found: Vec::new() }
    }

    /// Adds a problem of a key (or of nothing in particular, where the name is empty).
    pub(super) fn add(&mut self, place: Place, key: &str, problem: impl Into<String>) {
        self.found.push((place, key.to_owned(), problem.into()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns the messages in the order of their places: `FILE:LINE: KEY: PROBLEM`.
    pub(super) fn into_messages(mut self) -> Vec<String> {
        self.found.sort_by_key(|(place, ..)| *place);
        let mut messages: Vec<String> = Vec::new();
        for (place, key, problem) in &self.found {
            let text = match place {
                Place::Line(line) if key.is_empty() => format!("{}:{line}: {problem}", self.file),
                Place::Line(line) => format!("{}:{line}: {key}: {problem}", self.file),
                Place::Set(index) => {
                    let option = self.set.get(*index).map_or("", String::as_str);
                    let is_named = option.split_once('=').is_some_and(|(named, _)| named.trim() == key);
                    if key.is_empty() || is_named {
                        format!("--set {option}: {problem}")
                    } else {
                        format!("--set {option}: {key}: {problem}")
                    }
                }
            };
            if !messages.contains(&text) {
                messages.push(text);
            }
        }
        messages
    }

    /// Adds a problem for every key of a table that is none of `known`.
    pub(super) fn unknown_keys(&mut self, table: &Table<'_>, known: &[&str]) {
        for entry in table.node.entries().unwrap_or_default() {
            if !known.contains(&entry.key.as_str()) {
                let problem = match nearest(&entry.key, known) {
                    Some(near) => format!("unknown key; did you mean {near}?"),
                    None => format!("unknown key; known here: {}", known.join(", ")),
                };
                self.add(entry.place, &table.name(&entry.key), problem);
            }
        }
    }

    /// Returns the table of a key; none where it is missing or no table.
    pub(super) fn table<'n>(&mut self, parent: &Table<'n>, key: &str) -> Option<Table<'n>> {
        let node = parent.get(key)?;
        let path = parent.name(key);
        if node.entries().is_some() {
            return Some(Table { path, node });
        }
        self.add(parent.place(key), &path, format!("expected a table, found {}", node.value.what()));
        None
    }

    /// Returns the tables of a key `[[key]]`.
    pub(super) fn tables<'n>(&mut self, parent: &Table<'n>, key: &str) -> Vec<Table<'n>> {
        let Some(node) = parent.get(key) else { return Vec::new() };
        let path = parent.name(key);
        let Value::Array(elements) = &node.value else {
            let problem = format!("expected [[{path}]], found {}", node.value.what());
            self.add(parent.place(key), &path, problem);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for element in elements {
            if element.entries().is_none() {
                self.add(
                    element.place,
                    &path,
                    format!("expected [[{path}]], found a list of {}", element.value.what()),
                );
                continue;
            }
            let named = match element.get("name").map(|name| &name.value) {
                Some(Value::String(name)) => format!("{path}.{name}"),
                _ => path.clone(),
            };
            tables.push(Table { path: named, node: element });
        }
        tables
    }

    pub(super) fn string(&mut self, table: &Table<'_>, key: &str) -> Option<String> {
        match &table.get(key)?.value {
            Value::String(text) if text.is_empty() => self.wrong(table, key, "is empty"),
            Value::String(text) => Some(text.clone()),
            other => self.wrong(table, key, format!("expected a string, found {}", other.what())),
        }
    }

    /// Reads a string or a list of them.
    pub(super) fn strings(&mut self, table: &Table<'_>, key: &str) -> Option<Vec<String>> {
        let Value::Array(elements) = &table.get(key)?.value else {
            return self.string(table, key).map(|text| vec![text]);
        };
        let mut texts = Vec::new();
        for element in elements {
            match &element.value {
                Value::String(text) if !text.is_empty() => texts.push(text.clone()),
                other => {
                    self.add(element.place, &table.name(key), format!("expected strings, found {}", other.what()));
                    return None;
                }
            }
        }
        if texts.is_empty() {
            return self.wrong(table, key, "is an empty list");
        }
        Some(texts)
    }

    pub(super) fn flag(&mut self, table: &Table<'_>, key: &str) -> Option<bool> {
        match &table.get(key)?.value {
            Value::Boolean(value) => Some(*value),
            other => self.wrong(table, key, format!("expected true or false, found {}", other.what())),
        }
    }

    /// Reads a whole number from `least`.
    pub(super) fn count(&mut self, table: &Table<'_>, key: &str, least: u64) -> Option<u64> {
        match &table.get(key)?.value {
            Value::Integer(value) => match u64::try_from(*value) {
                Ok(value) if value >= least => Some(value),
                _ => self.wrong(table, key, format!("is {value}; expected a whole number from {least}")),
            },
            other => self.wrong(table, key, format!("expected a whole number, found {}", other.what())),
        }
    }

    /// Reads a number in a range given as a test and its description.
    pub(super) fn number(
        &mut self,
        table: &Table<'_>,
        key: &str,
        is_in: impl Fn(f64) -> bool,
        expected: &str,
    ) -> Option<f64> {
        let value = match &table.get(key)?.value {
            Value::Float(value) => *value,
            Value::Integer(value) => *value as f64,
            other => return self.wrong(table, key, format!("expected a number, found {}", other.what())),
        };
        if value.is_finite() && is_in(value) {
            return Some(value);
        }
        self.wrong(table, key, format!("is {value}; expected {expected}"))
    }

    /// Reads one of some words.
    pub(super) fn choice(&mut self, table: &Table<'_>, key: &str, words: &[&str]) -> Option<String> {
        let text = self.string(table, key)?;
        if words.contains(&text.as_str()) {
            return Some(text);
        }
        self.wrong(table, key, format!("is {text:?}; {}", expected_words(&text, words)))
    }

    /// Adds a problem of a key's value.
    pub(super) fn wrong<T>(&mut self, table: &Table<'_>, key: &str, problem: impl Into<String>) -> Option<T> {
        self.add(table.place(key), &table.name(key), problem);
        None
    }
}

/// Returns what was expected instead of a word, the nearest one first.
pub(super) fn expected_words(found: &str, words: &[&str]) -> String {
    match nearest(found, words) {
        Some(near) => format!("did you mean {near:?}? known: {}", words.join(", ")),
        None => format!("expected one of {}", words.join(", ")),
    }
}

/// Returns the name that is nearest to a misspelt one, if it is near.
pub(super) fn nearest<'w>(found: &str, words: &[&'w str]) -> Option<&'w str> {
    let simple = |text: &str| text.to_lowercase().replace('-', "_");
    let found = simple(found);
    let (near, steps) = words.iter().map(|word| (*word, distance(&found, &simple(word)))).min_by_key(|(_, n)| *n)?;
    (steps <= (found.chars().count() / 3).max(1)).then_some(near)
}

/// Returns the number of single-character changes between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
