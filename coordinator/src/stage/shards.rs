//! Cuts records into shards that cost about alike in computed tokens. Pure.
//!
//! The coordinator has no tokenizer: a text's tokens are estimated from its bytes. Only records and settings count, never
//! the number of workers, so that every restart cuts the same shards and the packs in them are the same.

use std::ops::Range;

use shared::record::{Category, Record};

use crate::run_file::Method;

/// Bytes that are taken for a token.
const BYTES_OF_A_TOKEN: u64 = 4;

/// Estimates the tokens computed for a record's score: its prompt once, and each response that its loss term holds; a
/// prompt with a response is cut at `max_length`.
pub(super) fn cost(record: &Record, method: Method, max_length: u64) -> u64 {
    let tokens = |text: &str| (text.len() as u64).div_ceil(BYTES_OF_A_TOKEN);
    // At least one token of a response is left, whatever the prompt.
    let prompt = tokens(&record.prompt.prompt_text()).min(max_length.saturating_sub(1));
    let response = |text: &str| tokens(text).clamp(1, (max_length - prompt).max(1));
    let chosen = || response(&record.chosen.response());
    let rejected = || record.rejected.as_ref().map_or(0, |text| response(&text.response()));
    let responses = match (method, record.category) {
        (Method::NoTriage, _) | (Method::U2a, Some(Category::Invert | Category::Retain)) => rejected(),
        (Method::OraclePunish, Some(Category::Punish)) => {
            chosen() + record.correction().map_or_else(rejected, response)
        }
        _ => chosen() + rejected(),
    };
    (prompt + responses).max(1)
}

/// Cuts records of these costs, each above 0, into shards of `mean_records` on average: ranges in order, none empty, that
/// hold each record once. A shard's cost differs from the mean by the cost of one record at most.
pub(super) fn cut(costs: &[u64], mean_records: usize) -> Vec<Range<usize>> {
    assert!(costs.iter().all(|cost| *cost > 0), "a record costs something");
    let shards = costs.len().div_ceil(mean_records) as u128;
    let total: u128 = costs.iter().map(|cost| u128::from(*cost)).sum();
    let (mut cut, mut before): (Vec<(u128, Range<usize>)>, u128) = (Vec::new(), 0);
    for (at, cost) in costs.iter().map(|cost| u128::from(*cost)).enumerate() {
        // A record belongs to the shard that its middle falls into.
        let shard = (2 * before + cost) * shards / (2 * total);
        match cut.last_mut() {
            Some((last, range)) if *last == shard => range.end = at + 1,
            _ => cut.push((shard, at..at + 1)),
        }
        before += cost;
    }
    cut.into_iter().map(|(_, range)| range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(costs: &[u64], mean_records: usize) -> Vec<usize> {
        cut(costs, mean_records).iter().map(ExactSizeIterator::len).collect()
    }

    #[test]
    fn equal_costs_make_shards_of_equal_numbers() {
        assert_eq!(lengths(&[7; 8], 3), [3, 2, 3]);
        assert_eq!(lengths(&[7; 9], 3), [3, 3, 3]);
        assert_eq!(lengths(&[7; 2], 128), [2]);
        assert!(cut(&[], 3).is_empty());
    }

    #[test]
    fn shards_cost_alike_to_one_record_and_hold_every_record_once_in_order() {
        let mut generator = shared::python_random::PythonRandom::new(5);
        for mean_records in [1, 2, 7, 64, 1000] {
            let lengths: Vec<u64> = (1..2000).collect();
            let costs: Vec<u64> = (0..500).map(|_| *generator.choice(&lengths).unwrap()).collect();
            let shards = cut(&costs, mean_records);
            let mut next = 0;
            let ideal = costs.iter().sum::<u64>() as f64 / costs.len().div_ceil(mean_records) as f64;
            for shard in &shards {
                assert!(shard.start == next && shard.end > next, "{shard:?}");
                next = shard.end;
                let cost: u64 = costs[shard.clone()].iter().sum();
                assert!((cost as f64 - ideal).abs() <= 2000.0, "{shard:?} costs {cost}, {ideal} is the mean");
            }
            assert_eq!(next, costs.len());
        }
    }

    #[test]
    fn one_record_that_costs_as_much_as_shards_is_one() {
        assert_eq!(lengths(&[1, 1, 1000, 1, 1, 1], 2), [2, 1, 3]);
        assert_eq!(lengths(&[1000, 1, 1, 1], 1), [1, 3]);
    }

    #[test]
    fn a_prompt_counts_once_and_what_is_cut_not_at_all() {
        let record = |category, prompt: usize, chosen: usize, rejected: usize| Record {
            prompt: "p".repeat(prompt).into(),
            chosen: "c".repeat(chosen).into(),
            rejected: Some("r".repeat(rejected).into()),
            category: Some(category),
            ..Record::default()
        };
        let short = record(Category::Invert, 40, 20, 8);
        assert_eq!(cost(&short, Method::Trace, 256), 10 + 5 + 2);
        assert_eq!(cost(&short, Method::U2a, 256), 10 + 2, "the violating response alone");
        assert_eq!(cost(&short, Method::Trace, 12), 10 + 2 + 2, "each response is cut");
        assert_eq!(cost(&record(Category::Invert, 4000, 20, 8), Method::Trace, 100), 99 + 1 + 1);
        let mut punish = record(Category::Punish, 40, 20, 8);
        punish.oracle_response = Some("y".repeat(80));
        assert_eq!(cost(&punish, Method::OraclePunish, 256), 10 + 5 + 20, "the correction instead of the rejected");
        assert_eq!(cost(&punish, Method::Trace, 256), 10 + 5 + 2);
    }
}
