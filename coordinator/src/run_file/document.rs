//! A run file as a tree that remembers where everything was written, and the overrides of `--set` in it.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where something was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// The override of this index.
    Set(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// A TOML value; dates are taken as their text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Array(Vec<Node>),
    Table(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Of the key.
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Value {
    /// Returns what it is, with an article.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

impl Node {
    /// Returns the entries of a table; none for other values.
    pub(super) fn entries(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }

    /// Returns the node of a key of a table.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()?.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }
}

/// Parses a file's text. All syntax errors are returned at once.
pub(super) fn parse(text: &str) -> Result<Node, Vec<(Place, String)>> {
    let lines = Lines::of(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let place = Place::Line(1);
        return Ok(Node { value: Value::Table(entries(table.into_inner(), &|span| lines.place(&span))), place });
    }
    Err(errors
        .into_iter()
        .map(|error| {
            let message = error.message().trim().replace('\n', ", ");
            (lines.place(&error.span().unwrap_or(0..0)), message)
        })
        .collect())
}

/// Applies one override `key=value`.
///
/// # Errors
/// The override has no key or no value, or names what is not there.
pub(super) fn set(root: &mut Node, text: &str, index: usize) -> Result<(), String> {
    let place = Place::Set(index);
    let Some((path, value)) = text.split_once('=') else {
        return Err("expected KEY=VALUE".into());
    };
    let path: Vec<&str> = path.trim().split('.').map(str::trim).collect();
    if path.iter().any(|key| key.is_empty()) {
        return Err("the key is empty; expected a path like train.beta".into());
    }
    let value = override_value(value.trim(), place)?;
    let (last, above) = path.split_last().ok_or("the key is empty")?;
    let mut node = root;
    for (depth, key) in above.iter().enumerate() {
        node = step(node, key, &path[..depth], place)?;
    }
    let Value::Table(entries) = &mut node.value else {
        return Err(format!("{} is {}, not a table", path[..path.len() - 1].join("."), node.value.what()));
    };
    let entry = Entry { key: (*last).to_owned(), place, node: value };
    match entries.iter_mut().find(|old| old.key == *last) {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
    Ok(())
}

/// Goes one key down: into a table, made where it is missing, or to the element of a list that has this name.
fn step<'n>(node: &'n mut Node, key: &str, above: &[&str], place: Place) -> Result<&'n mut Node, String> {
    match &mut node.value {
        Value::Table(entries) => {
            let at = match entries.iter().position(|entry| entry.key == key) {
                Some(at) => at,
                None => {
                    let node = Node { value: Value::Table(Vec::new()), place };
                    entries.push(Entry { key: key.to_owned(), place, node });
                    entries.len() - 1
                }
            };
            Ok(&mut entries[at].node)
        }
        Value::Array(elements) => {
            let named = |node: &Node| matches!(node.get("name").map(|name| &name.value), Some(Value::String(name)) if name == key);
            let names: Vec<String> = elements
                .iter()
                .filter_map(|element| match &element.get("name")?.value {
                    Value::String(name) => Some(name.clone()),
                    _ => None,
                })
                .collect();
            let missing = || format!("no [[{}]] is named {key:?}; there are: {}", above.join("."), names.join(", "));
            elements.iter_mut().find(|node| named(node)).ok_or_else(missing)
        }
        other => Err(format!("{} is {}, not a table", above.join("."), other.what())),
    }
}

/// Reads an override's value as TOML; what is none is taken as text, so that paths and names need no quotes.
pub(super) fn override_value(text: &str, place: Place) -> Result<Node, String> {
    let document = format!("value = {text}");
    match DeTable::parse(&document) {
        Ok(table) => entries(table.into_inner(), &|_| place)
            .into_iter()
            .find(|entry| entry.key == "value")
            .map(|entry| entry.node)
            .ok_or_else(|| "holds no value".to_owned()),
        Err(error) if text.is_empty() || text.starts_with(['[', '{', '"', '\'']) => {
            Err(format!("the value is no TOML: {}", error.message().trim()))
        }
        Err(_) => Ok(Node { value: Value::String(text.to_owned()), place }),
    }
}

fn entries(table: DeTable<'_>, place: &dyn Fn(Range<usize>) -> Place) -> Vec<Entry> {
    let mut entries: Vec<Entry> = table
        .into_iter()
        .map(|(key, value)| Entry {
            place: place(key.span()),
            key: key.into_inner().into_owned(),
            node: node(value, place),
        })
        .collect();
    entries.sort_by_key(|entry| entry.place);
    entries
}

fn node(value: Spanned<DeValue<'_>>, place: &dyn Fn(Range<usize>) -> Place) -> Node {
    let at = place(value.span());
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            // Too large for any key there is; as a float it is refused by its range.
            Err(_) => Value::Float(f64::INFINITY),
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(elements) => Value::Array(elements.into_iter().map(|element| node(element, place)).collect()),
        DeValue::Table(table) => Value::Table(entries(table, place)),
    };
    Node { value, place: at }
}

/// Offsets at which lines begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Lines {
        Lines(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    fn place(&self, span: &Range<usize>) -> Place {
        Place::Line(self.0.partition_point(|begin| *begin <= span.start).max(1))
    }
}
