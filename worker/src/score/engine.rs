//! Scores of packs of records along directions that are made: scaled, averaged over adapters, taken apart by layer.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::direction::NoGradient;
use super::options::{Scale, ScoreSettings};
use super::point::Point;
use super::vector::Vector;
use crate::objective::step::{Item, NotFinite, Settings};

/// Points, directions at them, and how a score is made of the derivatives.
pub struct Engine<'a> {
    sides: Vec<Side<'a>>,
    settings: &'a ScoreSettings,
    objective: Settings,
    /// The gold items that do not count for a record, by its index in the file.
    left_out: HashMap<usize, Vec<Item>>,
}

/// One adapter.
struct Side<'a> {
    point: Point<'a>,
    /// g_J, or what the curvature makes of it.
    direction: Vector,
    /// The same as passes take it, where that is another type.
    along: Option<Vector>,
    norm: f64,
}

impl Side<'_> {
    fn along(&self) -> &Vector {
        self.along.as_ref().unwrap_or(&self.direction)
    }
}

/// What scoring finds out about the items of one pack.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PackScores {
    /// The score of every item: the mean over the adapters.
    pub raw: Vec<f64>,
    /// log π_ref of every sequence, item by item.
    pub reference: Vec<f64>,
    /// The scores of every item at each adapter, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_seed: Vec<Vec<f64>>,
    /// What every layer adds to the score of every item, where that is asked for; the last is what is outside of layers,
    /// where the space has such parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Vec<f64>>,
}

impl PackScores {
    /// Returns the first item of the pack with a number that is not finite.
    pub fn first_not_finite(&self, items: &[&Item]) -> Option<usize> {
        let mut reference = self.reference.iter();
        items.iter().zip(&self.raw).position(|(item, raw)| {
            let own = reference.by_ref().take(item.sequences.len());
            // All parts are taken, also where the score itself is not finite.
            own.filter(|logp| !logp.is_finite()).count() > 0 || !raw.is_finite()
        })
    }
}

/// One item at one adapter.
pub struct ItemScore {
    /// The derivative, scaled.
    pub score: f64,
    /// What the derivative was divided by.
    pub size: f64,
    /// What every layer adds to the score, where that is asked for.
    pub layers: Vec<f64>,
}

impl<'a> Engine<'a> {
    /// Makes an engine of points and the directions at them. `left_out` are the gold items that do not count for a record,
    /// by its index in the file; they have their reference log-probs.
    pub fn new(
        points: &[Point<'a>],
        directions: Vec<Vector>,
        settings: &'a ScoreSettings,
        left_out: HashMap<usize, Vec<Item>>,
    ) -> Self {
        let side = |(point, direction): (&Point<'a>, Vector)| Side {
            point: *point,
            along: point.for_passes(&direction),
            norm: direction.norm(),
            direction,
        };
        let sides = points.iter().zip(directions).map(side).collect();
        Engine { sides, settings, objective: settings.objective(), left_out }
    }

    /// Returns the scores of a pack.
    ///
    /// # Errors
    /// An item's own gradient, where it is needed, is not finite.
    pub fn scores(&self, pack: &[&Item]) -> Result<PackScores, NoGradient> {
        let mut scores = PackScores::default();
        let mut by_seed = vec![Vec::with_capacity(self.sides.len()); pack.len()];
        for side in &self.sides {
            let found = side.point.scores(side.along(), pack, &self.objective);
            let mut reference = found.reference.iter();
            for (at, item) in pack.iter().enumerate() {
                let mut item = (*item).clone();
                item.reference = reference.by_ref().take(item.sequences.len()).copied().collect();
                let one = self.one(side, &item, found.raw[at])?;
                by_seed[at].push(one.score);
                if self.settings.args.score_layers {
                    add(&mut scores.layers, at, &one.layers, 1.0 / self.sides.len() as f64);
                }
            }
            scores.reference = found.reference;
        }
        scores.raw = by_seed.iter().map(|scores| scores.iter().sum::<f64>() / scores.len() as f64).collect();
        if self.sides.len() > 1 {
            scores.by_seed = by_seed;
        }
        Ok(scores)
    }

    /// Makes the score of an item that has its reference log-probs from its derivative along the direction of all gold
    /// pairs.
    fn one(&self, side: &Side<'a>, item: &Item, derivative: f64) -> Result<ItemScore, NoGradient> {
        let point = side.point;
        let own_direction = match self.left_out.get(&item.record) {
            Some(gold) => {
                let mut others = side.direction.copy();
                others.add(
                    -1.0,
                    &point.gradient(gold, &self.objective, self.settings.args.pa_batch_size, &mut || Ok(()))?.1,
                );
                Some(others)
            }
            None => None,
        };
        let (direction, norm) = match &own_direction {
            Some(direction) => (direction, direction.norm()),
            None => (&side.direction, side.norm),
        };
        let derivative = match &own_direction {
            Some(direction) => point.scores(direction, &[item], &self.objective).raw[0],
            None => derivative,
        };
        if !self.settings.needs_own_gradients() {
            let size = size(self.settings.args.score_scale, item, norm, 0.0);
            return Ok(ItemScore { score: derivative / size, size, layers: Vec::new() });
        }
        let (_, own) = point.gradient(std::slice::from_ref(item), &self.objective, 1, &mut || Ok(()))?;
        let own_norm = own.norm();
        if !own_norm.is_finite() {
            return Err(NotFinite { record: item.record, term: item.term }.into());
        }
        let size = size(self.settings.args.score_scale, item, norm, own_norm);
        let mut layers = Vec::new();
        if self.settings.args.score_layers {
            layers = own.dot_by_layer(direction, point.decoder.config.layers);
            layers.iter_mut().for_each(|part| *part /= size);
        }
        Ok(ItemScore { score: derivative / size, size, layers })
    }

    /// Returns the scores of one item at each adapter, beside the point.
    ///
    /// # Errors
    /// As [`Engine::scores`].
    pub fn taken_apart(&self, item: &Item) -> Result<Vec<(Point<'a>, ItemScore)>, NoGradient> {
        let one = |side: &Side<'a>| {
            let found = side.point.scores(side.along(), &[item], &self.objective);
            Ok((side.point, self.one(side, item, found.raw[0])?))
        };
        self.sides.iter().map(one).collect()
    }
}

/// Returns what a derivative is divided by. A gradient that is zero gives a score of 0.
fn size(scale: Scale, item: &Item, direction: f64, own: f64) -> f64 {
    let size = match scale {
        Scale::Raw => 1.0,
        Scale::Length => item.sequences.iter().map(|sequence| sequence.scored.len()).sum::<usize>() as f64,
        Scale::Cosine => direction * own,
    };
    if size == 0.0 { 1.0 } else { size }
}

/// Adds `factor` times numbers to the row of a table that may not be there yet.
fn add(table: &mut Vec<Vec<f64>>, row: usize, numbers: &[f64], factor: f64) {
    if table.len() <= row {
        table.resize(row + 1, Vec::new());
    }
    table[row].resize(numbers.len(), 0.0);
    table[row].iter_mut().zip(numbers).for_each(|(sum, number)| *sum += factor * number);
}
