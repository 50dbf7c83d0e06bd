//! Full fine-tuning over ranks: every rank keeps the optimiser's moments and f32 masters of its own part of the weights.
//!
//! A pass sums the gradients of each unit over the ranks as soon as the unit's are known, while the next unit's are being
//! computed, and a rank keeps its own part of the sum. The update moves that part; then the parts are gathered. With the
//! weights shared out as well they are gathered unit by unit where a pass needs them, and dropped behind it.

mod lane;
mod share;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tch::{Kind, Tensor};

use self::lane::{Lane, Waits};
use self::share::{Row, Rows, part};
use super::checkpoint::slices::Slice;
use super::optim::{AdamW, AdamWSettings};
use crate::collective::{Collective, Op};
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::units::{Stream, Unit};
use crate::objective::step::Streams;

/// The optimiser of all weights of a decoder, shared out over ranks.
#[derive(Debug)]
pub struct Sharded {
    config: ModelConfig,
    rows: Rows,
    /// The frozen copy for π_ref, where its weights are shared out.
    reference: Option<Rows>,
    /// One slot a row: this rank's part of it.
    optimizer: AdamW,
    waits: Waits,
}

impl Sharded {
    /// Shares a decoder's weights out. `rounded` as in [`AdamW::new`]; with `is_spread` the weights of the decoder and of
    /// `reference` are gathered unit by unit from now on.
    pub fn new(
        settings: AdamWSettings,
        decoder: &Decoder,
        reference: Option<&Decoder>,
        rounded: bool,
        gang: &dyn Collective,
        is_spread: bool,
    ) -> Sharded {
        let (rank, world_size) = (gang.rank(), gang.world_size());
        let rows = Rows::of(decoder, rank, world_size, is_spread);
        for (_, weight) in decoder.named_parameters() {
            let _ = weight.set_requires_grad(true);
        }
        let slots = rows.rows.iter().enumerate().map(|(i, row)| (format!("row {i}"), row.own_part())).collect();
        let reference = reference.filter(|_| is_spread).map(|reference| Rows::of(reference, rank, world_size, true));
        let config = decoder.config.clone();
        Sharded {
            config,
            rows,
            reference,
            optimizer: AdamW::of_shares(settings, slots, rounded),
            waits: Waits::default(),
        }
    }

    /// Updates done.
    pub fn step(&self) -> u64 {
        self.optimizer.step
    }

    /// Lets `work` make a step's passes, the same on every rank, and takes the sum of their gradients.
    ///
    /// # Errors
    /// A member of the gang is gone, or what `work` reports.
    pub fn collect<T>(&mut self, gang: &mut dyn Collective, work: impl FnOnce(&Flow<'_>) -> Result<T>) -> Result<T> {
        let owns: Vec<_> = self.rows.rows.iter().map(|row| row.own.clone()).collect();
        let (done, sums) = lane::with(gang, &owns, &self.waits, |lane| {
            let of = |rows| RowStream::new(&self.config, rows, lane);
            work(&Flow { policy: of(&self.rows), reference: self.reference.as_ref().map(of) })
        })?;
        self.optimizer.give_gradients(sums);
        done
    }

    /// Returns the norm of the gradient over all ranks.
    ///
    /// # Errors
    /// A member of the gang is gone.
    pub fn gradient_norm(&self, gang: &mut dyn Collective) -> Result<f64> {
        let mut squares = [self.optimizer.gradient_norm().powi(2)];
        gang.all_reduce(squares.as_mut_slice().into(), Op::Sum)?;
        Ok(squares[0].sqrt())
    }

    /// Moves this rank's part, as [`AdamW::update`], and brings the others' where the weights are not shared out.
    ///
    /// # Errors
    /// A member of the gang is gone.
    pub fn update(&mut self, learning_rate: f64, factor: f64, gang: &mut dyn Collective) -> Result<()> {
        self.optimizer.update(learning_rate, factor);
        if self.rows.is_spread { Ok(()) } else { self.waits.of(|| self.rows.gather(gang)) }
    }

    /// Returns how long the computation has waited for calls.
    pub fn waited(&self) -> Duration {
        self.waits.total()
    }

    /// Brings all weights of policy and reference to every rank, for work outside of a step.
    ///
    /// # Errors
    /// A member of the gang is gone.
    pub fn gather(&self, gang: &mut dyn Collective) -> Result<()> {
        if self.rows.is_spread {
            for rows in std::iter::once(&self.rows).chain(&self.reference) {
                rows.gather(gang)?;
            }
        }
        Ok(())
    }

    /// Ends what [`Sharded::gather`] began.
    pub fn scatter(&self) {
        for rows in std::iter::once(&self.rows).chain(&self.reference) {
            rows.scatter();
        }
    }

    /// Returns this rank's slices of weights, moments and masters, under the names of [`AdamW::state`] and, with `parameter.` in
    /// front, [`AdamW::parameters`].
    pub fn slices(&self) -> Vec<Slice> {
        let mut slices = Vec::new();
        for (at, row) in self.rows.rows.iter().enumerate() {
            for piece in &row.pieces {
                let Some((range, within_part)) = row.overlap(piece) else { continue };
                for (kind, tensor) in self.optimizer.parts(at) {
                    slices.push(Slice {
                        name: format!("{kind}.{}", piece.name),
                        range: range.clone(),
                        of: piece.range.len(),
                        numbers: part(&tensor, &within_part),
                    });
                }
            }
        }
        slices
    }

    /// Restores this rank's slices; `read` gets a name, which numbers of it, and how many it has.
    ///
    /// # Errors
    /// What `read` reports, or a member of the gang is gone.
    pub fn restore(
        &mut self,
        step: u64,
        read: impl Fn(&str, Range<usize>, usize) -> Result<Tensor>,
        gang: &mut dyn Collective,
    ) -> Result<()> {
        for (at, row) in self.rows.rows.iter().enumerate() {
            for piece in &row.pieces {
                let Some((range, within_part)) = row.overlap(piece) else { continue };
                for (kind, tensor) in self.optimizer.parts(at) {
                    let stored = read(&format!("{kind}.{}", piece.name), range.clone(), piece.range.len())?;
                    tch::no_grad(|| part(&tensor, &within_part).copy_(&stored));
                }
            }
        }
        self.optimizer.step = step;
        if self.rows.is_spread { Ok(()) } else { self.rows.gather(gang) }
    }
}

/// The way of a step's weights and gradients.
pub struct Flow<'a> {
    policy: RowStream<'a>,
    reference: Option<RowStream<'a>>,
}

impl Flow<'_> {
    /// Returns whether a call has failed: see [`Lane::check`].
    ///
    /// # Errors
    /// One has.
    pub fn check(&self) -> Result<()> {
        self.policy.lane.check()
    }

    /// Returns what a pass takes; `has_anchors` says whether any rank's pack has some.
    pub fn of_pass(&self, has_anchors: bool) -> Streams<'_> {
        let reference = self.reference.as_ref().map(|reference| reference as &dyn Stream);
        Streams { policy: &self.policy, reference, has_anchors }
    }
}

/// The rows of one decoder, as a pass sees them.
struct RowStream<'a> {
    config: &'a ModelConfig,
    rows: &'a Rows,
    lane: &'a Lane<'a>,
    /// Rows that were asked for.
    coming: RefCell<Vec<Option<Receiver<Tensor>>>>,
}

impl<'a> RowStream<'a> {
    fn new(config: &'a ModelConfig, rows: &'a Rows, lane: &'a Lane<'a>) -> Self {
        RowStream { config, rows, lane, coming: RefCell::new(rows.rows.iter().map(|_| None).collect()) }
    }

    fn ask(&self, at: usize) {
        let row = &self.rows.rows[at];
        let coming = &mut self.coming.borrow_mut()[at];
        if !row.is_present() && coming.is_none() {
            *coming = Some(self.lane.gather(tch::no_grad(|| row.begun())));
        }
    }
}

impl Stream for RowStream<'_> {
    fn fetch(&self, unit: Unit, next: Option<Unit>) {
        for unit in std::iter::once(unit).chain(next) {
            self.ask(unit.index(self.config));
        }
        let at = unit.index(self.config);
        if let Some(coming) = self.coming.borrow_mut()[at].take() {
            let row = &self.rows.rows[at];
            // Of a gang that failed nothing comes; the pass ends with some numbers, and the failure is told then.
            let whole = self.lane.wait(&coming).unwrap_or_else(|| tch::no_grad(|| row.begun().zero_()));
            tch::no_grad(|| row.put(whole));
        }
    }

    fn release(&self, unit: Unit) {
        tch::no_grad(|| self.rows.rows[unit.index(self.config)].drop_whole());
    }

    fn reduce(&self, unit: Unit, gradients: Vec<Tensor>) {
        let at = unit.index(self.config);
        self.lane.reduce(at, tch::no_grad(|| flat(&self.rows.rows[at], gradients)));
    }
}

/// Returns gradients end to end as f32: [row.length]; 0 where there is none.
fn flat(row: &Row, gradients: Vec<Tensor>) -> Tensor {
    let device = row.own_part().device();
    let flat = Tensor::zeros([row.length as i64], (Kind::Float, device));
    for (piece, gradient) in row.pieces.iter().zip(gradients) {
        if gradient.defined() {
            part(&flat, &piece.range).copy_(&gradient.reshape([-1]));
        }
    }
    flat
}
