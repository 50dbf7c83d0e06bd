//! Which gold pairs pull a record's score, and how much: ⟨g_j, g_i⟩ for every gold pair j and one record i.
//!
//! g_J is the sum of the g_j, so these are the parts a score is made of. The product is symmetric: one backward pass gives
//! the record's own gradient, and one forward pass along it the products with all gold pairs at once. With a curvature
//! matrix, which is symmetric too, the record's own gradient is what is solved for.

use shared::gold::GoldPair;
use shared::record::Record;

use super::point::Point;
use super::vector::Vector;
use crate::dataset;
use crate::objective::step::{Item, Settings};

/// Returns ⟨g_j, v⟩ of every gold item j with a vector v, a record's own gradient. The gold items must have their
/// reference log-probs where the point's adapter computes something.
pub fn along(point: Point<'_>, v: &Vector, gold: &[Item], settings: &Settings, pack_tokens: usize) -> Vec<f64> {
    let packs = dataset::packs(gold.iter(), pack_tokens);
    packs.iter().flat_map(|pack| point.scores(v, pack, settings).raw).collect()
}

/// Returns the gold pairs that were made of a record: its prompt, and one of its own responses as the one to avoid.
pub fn own_pairs(record: &Record, gold: &[GoldPair]) -> Vec<usize> {
    let responses = [Some(record.chosen.response()), record.rejected.as_ref().map(|text| text.response())];
    let is_own = |pair: &GoldPair| {
        pair.prompt == record.prompt && responses.iter().flatten().any(|response| *response == pair.rejected)
    };
    gold.iter().enumerate().filter(|(_, pair)| is_own(pair)).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_a_records_own_by_its_text() {
        let record = Record { prompt: "p".into(), chosen: "a".into(), rejected: Some("b".into()), ..Record::default() };
        let pair = |prompt: &str, rejected: &str| GoldPair {
            prompt: prompt.into(),
            chosen: "c".into(),
            rejected: rejected.into(),
            origin: None,
        };
        let gold = [pair("q", "a"), pair("p", "b"), pair("p", "c"), pair("p", "a")];
        assert_eq!(own_pairs(&record, &gold), [1, 3]);
    }
}
