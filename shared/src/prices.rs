//! What tokens cost: a small table with its date and source.

use std::path::Path;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

const OWN: &str = include_str!("../../deploy/prices.toml");

/// A price table.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    as_of: String,
    source: String,
    #[serde(default)]
    model: Vec<Price>,
}

/// USD per million tokens.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Price {
    name: String,
    prompt: f64,
    cached: f64,
    completion: f64,
    /// What a batch costs of the price of asking at once.
    #[serde(default = "half")]
    batch: f64,
}

fn half() -> f64 {
    0.5
}

/// Tokens of an answer, as the API reports them; `cached` ones are among the prompt's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of the question, `cached` ones included.
    pub prompt: u64,
    /// Of the prompt, those the API had in its cache.
    #[serde(default)]
    pub cached: u64,
    /// Of the answer.
    pub completion: u64,
}

impl Prices {
    /// Reads a table; the program's own where none is named.
    ///
    /// # Errors
    /// The file cannot be read, or holds a price below 0.
    pub fn load(file: Option<&Path>) -> Result<Prices> {
        let (text, name) = match file {
            Some(file) => {
                (std::fs::read_to_string(file).map_err(|source| Error::io("read", file, source))?, file.to_owned())
            }
            None => (OWN.to_owned(), Path::new("deploy/prices.toml").to_owned()),
        };
        let prices: Prices = toml::from_str(&text).map_err(|error| Error::file(&name, error.message().to_owned()))?;
        for price in &prices.model {
            for (field, value) in [
                ("prompt", price.prompt),
                ("cached", price.cached),
                ("completion", price.completion),
                ("batch", price.batch),
            ] {
                if !value.is_finite() || value < 0.0 {
                    let problem = format!("model {:?}: {field} is {value}; expected a price from 0", price.name);
                    return Err(Error::file(&name, problem));
                }
            }
        }
        Ok(prices)
    }

    /// Returns where the prices come from, for people.
    pub fn origin(&self) -> String {
        format!("{}, as of {}", self.source, self.as_of)
    }

    /// Returns the price of an answer in USD; none for a model that is not in the table. A dated snapshot
    /// (`gpt-4o-2024-08-06`) costs what its model does.
    pub fn cost(&self, model: &str, tokens: Tokens) -> Option<f64> {
        let price = self.price(model)?;
        let full = tokens.prompt.saturating_sub(tokens.cached) as f64;
        Some(
            (full * price.prompt + tokens.cached as f64 * price.cached + tokens.completion as f64 * price.completion)
                / 1e6,
        )
    }

    /// Returns the price of an answer that came with a batch, in USD; none for a model that is not in the table.
    pub fn batch_cost(&self, model: &str, tokens: Tokens) -> Option<f64> {
        Some(self.price(model)?.batch * self.cost(model, tokens)?)
    }

    fn price(&self, model: &str) -> Option<&Price> {
        let named = self.model.iter().filter(|price| model == price.name || is_snapshot(model, &price.name));
        named.max_by_key(|price| price.name.len())
    }
}

fn is_snapshot(model: &str, name: &str) -> bool {
    let rest = model.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit() || c == '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_costs_what_the_table_says() {
        let prices = Prices::load(None).unwrap();
        let tokens = Tokens { prompt: 1_000_000, cached: 400_000, completion: 100_000 };
        assert_eq!(prices.cost("gpt-4o", tokens), Some(1.5 + 0.5 + 1.0));
        assert_eq!(prices.cost("gpt-4o-2024-08-06", tokens), prices.cost("gpt-4o", tokens));
        assert!(prices.cost("gpt-4o-mini", tokens) < prices.cost("gpt-4o", tokens));
        assert_eq!(prices.cost("gpt-4o-audio", tokens), None);
        assert_eq!(prices.batch_cost("gpt-4o", tokens), Some(1.5));
    }

    #[test]
    fn a_negative_price_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        let text = "as_of = 'x'\nsource = 'y'\n[[model]]\nname = 'm'\nprompt = -1\ncached = 0\ncompletion = 0\n";
        std::fs::write(&file, text).unwrap();
        let error = Prices::load(Some(&file)).unwrap_err().to_string();
        assert!(error.contains("p.toml") && error.contains("\"m\"") && error.contains("prompt"), "{error}");
    }
}
