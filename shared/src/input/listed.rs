//! A file that is one JSON object with a long list in one of its fields: the list is streamed, the other fields are few.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{open, parse, scan, scan_error};
use crate::error::{Error, Result};
use scan::{Elements, Fields};

/// Opens a file that is one object; the iterator yields the elements of the field `list` in order and ends after the first
/// error. An object without that field is an error.
pub fn listed<T: DeserializeOwned>(path: &Path, list: &str) -> Result<Listed<T>> {
    let mut source = open(path)?;
    let (first, _) = scan::skip_space(&mut source).map_err(|error| super::compressed::read_error(path, error))?;
    match first {
        Some(b'{') => {}
        None => return Err(Error::file(path, "is empty")),
        Some(_) => return Err(Error::file(path, format!("expected a JSON object with the field {list:?}"))),
    }
    Ok(Listed {
        path: path.to_owned(),
        list: list.to_owned(),
        at: At::Fields(Fields::new(source)),
        index: 0,
        is_found: false,
        others: Map::new(),
        of: std::marker::PhantomData,
    })
}

/// The elements of a field of an object, in order.
pub struct Listed<T> {
    path: PathBuf,
    list: String,
    at: At,
    index: usize,
    is_found: bool,
    others: Map<String, Value>,
    of: std::marker::PhantomData<fn() -> T>,
}

enum At {
    Fields(Fields<Box<dyn BufRead>>),
    Elements(Elements<Box<dyn BufRead>>),
    End,
}

impl<T: DeserializeOwned> Listed<T> {
    /// Returns the other fields; all of them once the iterator has ended.
    pub fn into_others(self) -> Map<String, Value> {
        self.others
    }

    fn read_next(&mut self) -> Result<Option<T>> {
        loop {
            match std::mem::replace(&mut self.at, At::End) {
                At::Elements(mut elements) => {
                    let element = elements.next_element();
                    let element = element.map_err(|error| scan_error(&self.path, Some(self.index), error))?;
                    let Some(bytes) = element else {
                        self.at = At::Fields(elements.into_fields());
                        continue;
                    };
                    let element = parse(&self.path, Some(self.index), None, bytes)?;
                    self.at = At::Elements(elements);
                    self.index += 1;
                    return Ok(Some(element));
                }
                At::Fields(fields) => self.at = self.field(fields)?,
                At::End if self.is_found => return Ok(None),
                At::End => return Err(self.wrong("is missing")),
            }
            if matches!(self.at, At::End) && self.is_found {
                return Ok(None);
            }
        }
    }

    /// Reads one field; the list is only gone into.
    fn field(&mut self, mut fields: Fields<Box<dyn BufRead>>) -> Result<At> {
        let broken = |error| scan_error(&self.path, None, error);
        let Some(name) = fields.next_name().map_err(broken)? else { return Ok(At::End) };
        let name: String = parse(&self.path, None, None, name)?;
        if name == self.list {
            if std::mem::replace(&mut self.is_found, true) {
                return Err(self.wrong("is there twice"));
            }
            return match fields.is_array().map_err(broken)? {
                true => Ok(At::Elements(fields.into_elements())),
                false => Err(self.wrong("is no list")),
            };
        }
        let value = parse(&self.path, None, None, fields.value().map_err(broken)?)?;
        if self.others.contains_key(&name) {
            return Err(Error::file(&self.path, format!("the field {name:?} is there twice")));
        }
        self.others.insert(name, value);
        Ok(At::Fields(fields))
    }

    fn wrong(&self, problem: &str) -> Error {
        Error::Input {
            file: self.path.clone(),
            record: None,
            line: None,
            field: Some(self.list.clone()),
            problem: problem.into(),
        }
    }
}

impl<T: DeserializeOwned> Iterator for Listed<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        let next = self.read_next().transpose();
        if matches!(next, Some(Err(_))) {
            (self.at, self.is_found) = (At::End, true);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<(Vec<Value>, Map<String, Value>)> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        std::fs::write(&file, text).unwrap();
        let mut list = listed::<Value>(&file, "results")?;
        let found = list.by_ref().collect::<Result<Vec<_>>>()?;
        assert!(list.next().is_none(), "it goes on after its end");
        Ok((found, list.into_others()))
    }

    #[test]
    fn elements_and_other_fields_are_those_of_the_whole_document_wherever_the_list_stands() {
        for text in [
            r#"{"metadata": {"a": [1, {"b": "]}"}]}, "results": [{"x": 1}, "two, ]", [3]], "n": 1.5}"#,
            "\u{feff} {\"results\":[{\"x\":{}}] , \"metadata\": null}\n",
            r#"{"metadata":{"}":1},"results":[]}"#,
            r#"{"results" : [ 1 ]}"#,
            r#"{"re\u0073ults": ["\\"], "q\"uote": "a\"}b"}"#,
        ] {
            let mut whole: Map<String, Value> =
                serde_json::from_str(text.trim_start_matches('\u{feff}')).unwrap_or_else(|e| panic!("{text}: {e}"));
            let results = whole.shift_remove("results").unwrap();
            let (found, others) = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((Value::Array(found), others), (results, whole), "{text}");
        }
        assert_eq!(read(r#"{"results": [{"a": 0.1}]}"#).unwrap().0, [json!({"a": 0.1})]);
    }

    #[test]
    fn what_is_no_such_document_is_refused_and_never_panics() {
        for (text, named) in [
            ("", "is empty"),
            ("[]", "expected a JSON object"),
            (r#"{"metadata": {}}"#, "is missing"),
            (r#"{"results": null}"#, "is no list"),
            (r#"{"results": [], "results": []}"#, "twice"),
            (r#"{"a": 1, "a": 2, "results": []}"#, "twice"),
            (r#"{"results": [1, 2"#, "cut off"),
            (r#"{"results": [1], "metadata": {"#, "cut off"),
            (r#"{"results": [1]"#, "cut off"),
            (r#"{"results": [1]} x"#, "more text"),
            (r#"{"results": [1] "a": 2}"#, "comma"),
            (r#"{"results": [1, {"a" 2}]}"#, "record 1"),
            (r#"{"results": [1], }"#, ""),
            (r#"{results: [1]}"#, ""),
            (r#"{"a": tru, "results": [1]}"#, ""),
            (r#"{"a": , "results": [1]}"#, ""),
            (r#"{:"#, ""),
            (r#"{"a""#, "cut off"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("a.json") && error.contains(named), "{text}: {error}");
        }
    }
}
