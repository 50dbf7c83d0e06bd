//! How the weights of a decoder are laid out and shared: every unit is one row of numbers, of which each rank owns a part.
//!
//! The decoder's tensors become views of these rows. Where the weights themselves are shared out a row is there only while
//! its unit is in use; in between the decoder's tensors are empty and the rank keeps its own part alone.

use std::cell::RefCell;
use std::ops::Range;

use tch::{Kind, Tensor};

use crate::collective::{self, Collective, Numbers};
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::units::Unit;

/// A weight's place in the row of its unit.
#[derive(Debug)]
pub struct Piece {
    /// Its name in checkpoints.
    pub name: String,
    /// Its numbers in the row.
    pub range: Range<usize>,
    shape: Vec<i64>,
    /// The decoder's tensor.
    weight: RefCell<Tensor>,
}

/// The row of one unit.
#[derive(Debug)]
pub struct Row {
    /// The weights in it, in the order of the decoder's.
    pub pieces: Vec<Piece>,
    /// Numbers in the row.
    pub length: usize,
    /// This rank's part.
    pub own: Range<usize>,
    kind: Kind,
    device: tch::Device,
    /// All numbers, while they are there: [length]
    whole: RefCell<Option<Tensor>>,
    /// This rank's numbers, where the others are not always there: [own.len()]
    kept: Option<Tensor>,
}

impl Row {
    /// Returns this rank's numbers, in memory that the weights are made from.
    pub fn own_part(&self) -> Tensor {
        match (&self.kept, &*self.whole.borrow()) {
            (Some(kept), _) => kept.shallow_clone(),
            (None, Some(whole)) => part(whole, &self.own),
            (None, None) => unreachable!("a row that is not shared out is always there"),
        }
    }

    /// Returns whether the weights are there.
    pub fn is_present(&self) -> bool {
        self.whole.borrow().is_some()
    }

    /// Returns room for the whole row with this rank's part in it.
    pub fn begun(&self) -> Tensor {
        let whole = Tensor::empty([self.length as i64], (self.kind, self.device));
        part(&whole, &self.own).copy_(&self.own_part());
        whole
    }

    /// Makes the decoder's tensors views of a whole row.
    pub fn put(&self, whole: Tensor) {
        for piece in &self.pieces {
            piece.weight.borrow_mut().set_data(&part(&whole, &piece.range).view(piece.shape.as_slice()));
        }
        self.whole.replace(Some(whole));
    }

    /// Leaves the decoder's tensors empty, where this rank's part is kept elsewhere.
    pub fn drop_whole(&self) {
        if self.kept.is_some() && self.whole.take().is_some() {
            for piece in &self.pieces {
                piece.weight.borrow_mut().set_data(&Tensor::empty([0], (self.kind, self.device)));
            }
        }
    }

    /// Returns where a piece and this rank's part have numbers in common: within the piece, and within the part.
    pub fn overlap(&self, piece: &Piece) -> Option<(Range<usize>, Range<usize>)> {
        let (start, end) = (piece.range.start.max(self.own.start), piece.range.end.min(self.own.end));
        let within = |from: usize| start - from..end - from;
        (start < end).then(|| (within(piece.range.start), within(self.own.start)))
    }
}

/// Returns numbers of a row, in its memory.
pub fn part(row: &Tensor, range: &Range<usize>) -> Tensor {
    row.narrow(0, range.start as i64, range.len() as i64)
}

/// A decoder whose weights are laid out in rows.
#[derive(Debug)]
pub struct Rows {
    /// One a unit, in the order of [`Unit::all`].
    pub rows: Vec<Row>,
    /// The weights are shared out, too.
    pub is_spread: bool,
}

impl Rows {
    /// Lays a decoder's weights out for a rank. With `is_spread` only its own part is kept until a unit is fetched.
    pub fn of(decoder: &Decoder, rank: usize, world_size: usize, is_spread: bool) -> Rows {
        tch::no_grad(|| {
            let row = |unit: Unit| {
                let mut length = 0;
                let (pieces, parts): (Vec<Piece>, Vec<Tensor>) = decoder
                    .unit(unit)
                    .into_iter()
                    .map(|(name, weight)| {
                        let (from, numbers) = (length, weight.numel());
                        length += numbers;
                        let (flat, shape) = (weight.detach().reshape([-1]), weight.size());
                        (Piece { name, range: from..length, shape, weight: RefCell::new(weight) }, flat)
                    })
                    .unzip();
                let whole = Tensor::cat(&parts, 0);
                let own = collective::shard(length, rank, world_size);
                let kept = is_spread.then(|| part(&whole, &own).copy());
                let (kind, device) = (whole.kind(), whole.device());
                let row = Row { pieces, length, own, kind, device, whole: RefCell::new(None), kept };
                row.put(whole);
                row.drop_whole();
                row
            };
            Rows { rows: Unit::all(&decoder.config).into_iter().map(row).collect(), is_spread }
        })
    }

    /// Makes all weights of the decoder those of all ranks' parts, and leaves them there.
    ///
    /// # Errors
    /// A member of the gang is gone.
    pub fn gather(&self, gang: &mut dyn Collective) -> Result<()> {
        for row in &self.rows {
            if row.kept.is_none() {
                let whole = row.whole.borrow();
                let mut whole = whole.as_ref().expect("it is always there").shallow_clone();
                gang.all_gather(Numbers::of(&mut whole))?;
            } else if !row.is_present() {
                let mut whole = row.begun();
                gang.all_gather(Numbers::of(&mut whole))?;
                row.put(whole);
            }
        }
        Ok(())
    }

    /// Leaves each rank with its own part, where the weights are shared out.
    pub fn scatter(&self) {
        self.rows.iter().for_each(Row::drop_whole);
    }
}
