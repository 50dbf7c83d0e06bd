//! Slices of long rows of numbers: which of the slices that there are give a wanted one.
//!
//! A sharded optimiser keeps its state as long rows of numbers, each named, of which every rank owns a slice. A world of
//! another size cuts the same rows elsewhere; what it wants is put together from parts of the slices that were written.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// A rank's slice of a named row.
#[derive(Debug)]
pub struct Slice {
    /// The row's name.
    pub name: String,
    /// Which of its numbers.
    pub range: Range<usize>,
    /// How many numbers the whole row has, whatever the world size: without padding.
    pub of: usize,
    /// The numbers, one dimension.
    pub numbers: Tensor,
}

/// Where a slice lies in its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The first number.
    pub start: usize,
    /// The one after the last.
    pub end: usize,
    /// Numbers of the whole row.
    pub of: usize,
}

/// A part of one piece that belongs into a wanted range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which piece.
    pub piece: usize,
    /// Where in that piece, from its own first number.
    pub from: Range<usize>,
}

/// Returns the parts that give the wanted range end to end, or the first number that no piece holds. Where pieces overlap,
/// the earlier one in the list counts.
pub fn cover(pieces: &[Range<usize>], wanted: Range<usize>) -> Result<Vec<Part>, usize> {
    let mut parts = Vec::new();
    let mut at = wanted.start;
    while at < wanted.end {
        let piece = pieces.iter().position(|piece| piece.contains(&at)).ok_or(at)?;
        let end = pieces[piece].end.min(wanted.end);
        parts.push(Part { piece, from: at - pieces[piece].start..end - pieces[piece].start });
        at = end;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::shard;

    #[test]
    fn rows_cut_by_one_world_are_cut_again_by_another() {
        for length in [0usize, 1, 2, 3, 7, 12, 1001] {
            let row: Vec<usize> = (0..length).collect();
            for written in 1..=4 {
                let pieces: Vec<_> = (0..written).map(|rank| shard(length, rank, written)).collect();
                for world in 1..=4 {
                    for rank in 0..world {
                        let wanted = shard(length, rank, world);
                        let parts = cover(&pieces, wanted.clone()).unwrap();
                        let found: Vec<usize> = parts
                            .iter()
                            .flat_map(|part| &row[pieces[part.piece].clone()][part.from.clone()])
                            .copied()
                            .collect();
                        assert_eq!(found, row[wanted], "{length} numbers, {written} ranks, then {rank} of {world}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_missing_is_told_and_order_does_not_matter() {
        assert_eq!(cover(&[5..9, 0..3], 1..8), Err(3));
        assert_eq!(cover(std::slice::from_ref(&(0..3)), 2..4), Err(3));
        assert_eq!(cover(&[], 4..4), Ok(Vec::new()));
        let parts = cover(&[5..9, 0..5], 1..8).unwrap();
        assert_eq!(parts, [Part { piece: 1, from: 1..5 }, Part { piece: 0, from: 0..3 }]);
    }
}
