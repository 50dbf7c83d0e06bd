//! Loss curves by part, thinned to what a plot can show. Pure.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};
use shared::{Error, Result};
use std::collections::BTreeMap;

const MAX_POINTS: usize = 200;

/// A value a point and part: the mean of the steps the point stands for, null where none of them had that part.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Curves {
    /// How many steps a point stands for; the last point may stand for fewer.
    pub(super) steps_per_point: usize,
    /// The last step of each point.
    pub(super) step: Vec<u64>,
    /// `loss` and its parts: every metric whose name begins with "loss".
    #[serde(flatten)]
    pub(super) parts: BTreeMap<String, Vec<Option<f64>>>,
}

pub(super) fn of(metrics: &[Map<String, Value>], file: &Path) -> Result<Curves> {
    let mut steps = Vec::with_capacity(metrics.len());
    for (index, line) in metrics.iter().enumerate() {
        let wrong = |field: &str, problem| Error::field(file, index, field, problem);
        steps.push(line.get("step").and_then(Value::as_u64).ok_or_else(|| wrong("step", "is not a step number"))?);
        if !line.contains_key("loss") {
            return Err(wrong("loss", "is missing"));
        }
        if let Some((name, _)) = losses(line).find(|(_, value)| !value.is_number() && !value.is_null()) {
            return Err(wrong(name, "is neither a number nor null"));
        }
    }
    let mut names: Vec<&String> = metrics.iter().flat_map(|line| losses(line).map(|(name, _)| name)).collect();
    names.sort();
    names.dedup();

    let per_point = metrics.len().div_ceil(MAX_POINTS).max(1);
    let parts = names.into_iter().map(|name| {
        let points = metrics.chunks(per_point).map(|lines| {
            let values: Vec<f64> = lines.iter().filter_map(|line| line.get(name)?.as_f64()).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        });
        (name.clone(), points.collect())
    });
    let step = steps.chunks(per_point).filter_map(|steps| steps.last().copied()).collect();
    Ok(Curves { steps_per_point: per_point, step, parts: parts.collect() })
}

/// So many ranks computed the steps up to this one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Ranks {
    pub(super) ranks: u64,
    pub(super) last_step: u64,
}

/// Returns how many ranks computed which steps, where that could change within the training.
pub(super) fn ranks(metrics: &[Map<String, Value>]) -> Vec<Ranks> {
    let mut all: Vec<Ranks> = Vec::new();
    for line in metrics {
        let number = |name: &str| line.get(name).and_then(Value::as_u64);
        let (Some(ranks), Some(last_step)) = (number("world_size"), number("step")) else { continue };
        match all.last_mut().filter(|before| before.ranks == ranks) {
            Some(before) => before.last_step = last_step,
            None => all.push(Ranks { ranks, last_step }),
        }
    }
    all
}

fn losses(line: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    line.iter().filter(|(name, _)| name.starts_with("loss"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_told_where_they_could_change() {
        let line = |step: u64, ranks: Option<u64>| {
            let mut line = Map::from_iter([("step".to_owned(), step.into()), ("loss".to_owned(), 1.0.into())]);
            line.extend(ranks.map(|ranks| ("world_size".to_owned(), ranks.into())));
            line
        };
        let lines: Vec<_> = [2, 2, 1, 2].iter().zip(1..).map(|(&ranks, step)| line(step, Some(ranks))).collect();
        let told: Vec<(u64, u64)> = ranks(&lines).iter().map(|part| (part.ranks, part.last_step)).collect();
        assert_eq!(told, [(2, 2), (1, 3), (2, 4)]);
        assert_eq!(ranks(&[line(1, None)]), []);
    }
}
