//! Chat templates, rendered as the transformers library renders them.
//!
//! Same whitespace rules (`trim_blocks`, `lstrip_blocks`), same helpers (`raise_exception`, `strftime_now`, a `tojson`
//! that escapes nothing), same variables, Python's string and dict methods. What differs: the date is an argument, so
//! that a run does not change at midnight, and `generation` blocks (marks for trainers) are rendered as their content.

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use shared::record::Turn;

use super::error::TextError;

const NAME: &str = "chat_template";

/// A calendar day, given to templates that print one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: u32,
    month: u32,
    day: u32,
}

impl Default for Date {
    /// Returns 26 July 2024, the day that Llama 3's own template falls back to.
    fn default() -> Self {
        Date { year: 2024, month: 7, day: 26 }
    }
}

impl std::str::FromStr for Date {
    type Err = String;

    /// Reads `YYYY-MM-DD`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a date; write it as 2024-07-26");
        let parts: Vec<&str> = text.split('-').collect();
        let [year, month, day] = parts[..] else { return Err(wrong()) };
        let number = |part: &str, digits: usize| -> Result<u32, String> {
            if part.len() != digits || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(wrong());
            }
            part.parse().map_err(|_| wrong())
        };
        let date = Date { year: number(year, 4)?, month: number(month, 2)?, day: number(day, 2)? };
        if date.year == 0 || !(1..=12).contains(&date.month) || !(1..=date.days_in_month()).contains(&date.day) {
            return Err(wrong());
        }
        Ok(date)
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Date {
    fn days_in_month(self) -> u32 {
        let leap = self.year.is_multiple_of(4) && !self.year.is_multiple_of(100) || self.year.is_multiple_of(400);
        match self.month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    /// Returns the day of the week, 0 = Sunday: years count from March, so that the leap day is a year's last.
    fn weekday(self) -> usize {
        let years = if self.month < 3 { self.year - 1 } else { self.year };
        let march_based = (self.month + 9) % 12;
        let days_before_month = (153 * march_based + 2) / 5;
        ((years + years / 4 - years / 100 + years / 400 + days_before_month + self.day + 2) % 7) as usize
    }

    /// Formats the day, at midnight, by a `strftime` pattern; an error for a directive that has no agreed meaning here.
    fn format(self, pattern: &str) -> Result<String, String> {
        let month = MONTHS[self.month as usize - 1];
        let weekday = WEEKDAYS[self.weekday()];
        let mut out = String::new();
        let mut rest = pattern.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = rest.next();
            let bare = directive == Some('-');
            if bare {
                directive = rest.next();
            }
            match (directive, bare) {
                (Some('d'), false) => out += &format!("{:02}", self.day),
                (Some('d'), true) => out += &self.day.to_string(),
                (Some('m'), false) => out += &format!("{:02}", self.month),
                (Some('m'), true) => out += &self.month.to_string(),
                (Some('Y'), false) => out += &format!("{:04}", self.year),
                (Some('y'), false) => out += &format!("{:02}", self.year % 100),
                (Some('B'), false) => out += month,
                (Some('b'), false) => out += &month[..3],
                (Some('A'), false) => out += weekday,
                (Some('a'), false) => out += &weekday[..3],
                (Some('H' | 'M' | 'S'), false) => out += "00",
                (Some('%'), false) => out.push('%'),
                _ => return Err(format!("strftime_now: pattern {pattern:?} has a directive that is not supported")),
            }
        }
        Ok(out)
    }
}

/// Special tokens as text, under the names templates know them by.
pub(super) type TokenNames = Vec<(&'static str, String)>;

/// A compiled chat template with its fixed variables.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Vec<(String, Value)>,
}

impl ChatTemplate {
    /// Compiles a template; the error says what and in which line.
    pub(super) fn compile(source: &str, tokens: &TokenNames, date: Date) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |pattern: String| {
            date.format(&pattern).map_err(|reason| minijinja::Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|error| format!("the chat template does not compile: {error}"))?;
        let tokens = tokens.iter().map(|(name, text)| ((*name).to_owned(), Value::from(text.as_str()))).collect();
        Ok(ChatTemplate { environment, tokens })
    }

    /// Renders a conversation.
    pub(super) fn render(&self, messages: &[Turn], add_generation_prompt: bool) -> Result<String, TextError> {
        let fixed = Value::from_iter(self.tokens.iter().cloned());
        let variables = context! {
            messages, add_generation_prompt, tools => Value::from(()), documents => Value::from(()), ..fixed
        };
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(variables))
            .map_err(|error| TextError::Render(error.detail().map_or_else(|| error.to_string(), str::to_owned)))
    }
}

/// Replaces `{% generation %}` … `{% endgeneration %}` by a condition that always holds; whitespace marks stay.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (inner, after) = (&rest[start + 2..start + length], &rest[start + length + 2..]);
        out.push_str(&rest[..start]);
        out.push_str("{%");
        match inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&inner.replace("generation", "if true")),
            "endgeneration" => out.push_str(&inner.replace("endgeneration", "endif")),
            _ => out.push_str(inner),
        }
        out.push_str("%}");
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`: nothing escaped for HTML, a space after `,` and `:`.
fn tojson(value: Value, arguments: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    if arguments.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson: ensure_ascii=true is not supported"));
    }
    arguments.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonSpacing)),
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
    };
    written.map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    String::from_utf8(out).map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
}

struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests;
