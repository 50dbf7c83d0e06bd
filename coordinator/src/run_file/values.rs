//! Reads single keys of a run file: options of the worker, paths, names.

use std::path::{Component, Path, PathBuf};

use super::Located;
use super::check::Named;
use super::keys::{self, Key, Kind, Options, Section, Setting};
use super::problems::{Problems, Table, expected_words};

/// Begins a path in the run's own folder.
pub(super) const RUN_PREFIX: &str = "run:";

/// Names that the run's folder uses itself.
const TAKEN: [&str; 7] = ["world", "data", "triage", "splits", "pretrain", "stages", "report"];

/// What is read so far: where relative paths start, problems, and the paths to be checked at the end.
pub(super) struct Reader<'r, 'p> {
    pub(super) folder: &'r Path,
    pub(super) problems: &'r mut Problems<'p>,
    pub(super) paths: Vec<Named<Located>>,
}

impl Reader<'_, '_> {
    /// Reads the keys of a section that are options of the worker; `own` are the other keys the table may hold.
    pub(super) fn options(&mut self, table: &Table<'_>, section: Section, own: &[&str]) -> Options {
        let known: Vec<&str> = own.iter().copied().chain(keys::of(section).map(|key| key.name)).collect();
        self.problems.unknown_keys(table, &known);
        let mut options = Options::default();
        for key in keys::of(section).filter(|key| table.get(key.name).is_some()) {
            if let Some(setting) = self.setting(table, key) {
                options.0.insert(key.name.to_owned(), setting);
            }
        }
        options
    }

    pub(super) fn setting(&mut self, table: &Table<'_>, key: &Key) -> Option<Setting> {
        let name = key.name;
        let text = match &key.kind {
            Kind::Flag => return self.problems.flag(table, name).map(Setting::Flag),
            Kind::File => return self.located(table, name, Expected::File).map(Setting::Path),
            Kind::Adapter => return self.located(table, name, Expected::Adapter).map(Setting::Path),
            Kind::Count(least) => self.problems.count(table, name, *least)?.to_string(),
            Kind::Number(range) => {
                let range = *range;
                self.problems.number(table, name, |value| range.holds(value), &range.expected())?.to_string()
            }
            Kind::Choice(words) => self.problems.choice(table, name, words)?,
            Kind::Words(words) => {
                let list = self.problems.strings(table, name)?;
                // One string with commas is what the command line takes.
                let list: Vec<String> =
                    list.iter().flat_map(|text| text.split(',')).map(|word| word.trim().to_owned()).collect();
                if let Some(other) = list.iter().find(|word| !words.contains(&word.as_str())) {
                    let problem = format!("holds {other:?}; {}", expected_words(other, words));
                    return self.problems.wrong(table, name, problem);
                }
                list.join(",")
            }
            Kind::Date => {
                let text = self.problems.string(table, name)?;
                let digits = |part: &str, n| part.len() == n && part.chars().all(|c| c.is_ascii_digit());
                let is_date = matches!(text.split('-').collect::<Vec<_>>()[..], [y, m, d] if digits(y, 4) && digits(m, 2) && digits(d, 2));
                if !is_date {
                    return self.problems.wrong(table, name, format!("is {text:?}; expected YYYY-MM-DD"));
                }
                text
            }
        };
        Some(Setting::Text(text))
    }

    /// Reads a path, which may be one of the run's own.
    pub(super) fn located(&mut self, table: &Table<'_>, key: &str, expected: Expected) -> Option<Located> {
        let text = self.problems.string(table, key)?;
        let located = match text.strip_prefix(RUN_PREFIX) {
            Some(inside) => {
                let inside = PathBuf::from(inside);
                if inside.as_os_str().is_empty()
                    || !inside.components().all(|part| matches!(part, Component::Normal(_)))
                {
                    let problem = format!("is {text:?}; expected a path in the run's folder, like run:world/model");
                    return self.problems.wrong(table, key, problem);
                }
                Located::Run(inside)
            }
            None => Located::Outside(self.folder.join(text)),
        };
        if let Located::Outside(path) = &located
            && let Some(problem) = expected.missing(path)
        {
            self.problems.wrong::<()>(table, key, problem);
        }
        self.paths.push(Named { place: table.place(key), name: table.name(key), value: located.clone() });
        Some(located)
    }

    pub(super) fn located_needed(&mut self, table: &Table<'_>, key: &str, what: &str) -> Option<Located> {
        match table.get(key) {
            Some(_) => self.located(table, key, Expected::File),
            None => self.missing(table, key, what),
        }
    }

    /// Reads a path of a file that no stage makes.
    pub(super) fn outside_file(&mut self, table: &Table<'_>, key: &str, expected: Expected) -> Option<PathBuf> {
        table.get(key)?;
        let path = self.folder.join(self.problems.string(table, key)?);
        if let Some(problem) = expected.missing(&path) {
            self.problems.wrong::<()>(table, key, problem);
        }
        Some(path)
    }

    pub(super) fn needed(&mut self, table: &Table<'_>, key: &str, what: &str) -> Option<String> {
        match table.get(key) {
            Some(_) => self.problems.string(table, key),
            None => self.missing(table, key, what),
        }
    }

    pub(super) fn missing<T>(&mut self, table: &Table<'_>, key: &str, what: &str) -> Option<T> {
        self.problems.wrong(table, key, format!("is missing: {what}"))
    }

    /// Checks a name that becomes a folder's.
    pub(super) fn folder_name(&mut self, table: &Table<'_>, key: &str, name: String) -> Option<String> {
        let is_plain =
            name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !name.starts_with(['.', '-']);
        if !is_plain {
            let problem = format!("is {name:?}; expected letters, digits, '-', '_' and '.'");
            return self.problems.wrong(table, key, problem);
        }
        if TAKEN.contains(&name.as_str()) && table.path.starts_with("variant") {
            return self.problems.wrong(table, key, format!("{name:?} is the name of another folder of the run"));
        }
        Some(name)
    }
}

/// What must be found at a path of the user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    File,
    /// A file with more than white space in it.
    Text,
    Model,
    Adapter,
}

impl Expected {
    /// Returns what is missing.
    fn missing(self, path: &Path) -> Option<String> {
        let folder_with = |file: &str| {
            (!path.join(file).is_file()).then(|| format!("{} is no folder with {file} in it", path.display()))
        };
        match self {
            Expected::File => (!path.is_file()).then(|| format!("there is no file {}", path.display())),
            Expected::Text => match std::fs::read_to_string(path) {
                _ if !path.is_file() => Some(format!("there is no file {}", path.display())),
                Err(error) => Some(format!("{} cannot be read: {error}", path.display())),
                Ok(text) if text.trim().is_empty() => Some(format!("{} is empty", path.display())),
                Ok(_) => None,
            },
            Expected::Model => folder_with("config.json"),
            Expected::Adapter => folder_with("adapter_config.json"),
        }
    }
}
