//! A point in parameter space at which records are scored, with the derivatives taken there.

use tch::Kind;

use super::direction::{self, NoGradient, PackScores};
use super::options::ScoreSpace;
use super::vector::Vector;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::model::pack::Pack;
use crate::model::weight_space::{Space, Weights};
use crate::objective::step::{self, Item, Settings};

/// A model at which records are scored.
#[derive(Clone, Copy)]
pub struct Point<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// θ
    pub adapter: &'a Lora,
    /// B = 0 everywhere.
    pub is_fresh: bool,
    /// What gradients are taken by.
    pub space: ScoreSpace,
}

impl Point<'_> {
    /// Returns the items' summed loss and its gradient; `rows` items are computed together, and `beat` is called after
    /// them.
    ///
    /// # Errors
    /// A loss that is not finite, or what `beat` says.
    pub fn gradient(
        self,
        items: &[Item],
        settings: &Settings,
        rows: usize,
        beat: &mut dyn FnMut() -> Result<()>,
    ) -> std::result::Result<(f64, Vector), NoGradient> {
        let Point { decoder, adapter, .. } = self;
        Ok(match self.weights() {
            None => {
                let (sum, gradient) = direction::gradient(decoder, adapter, items, settings, rows, beat)?;
                (sum, Vector::Adapter(gradient))
            }
            Some(space) => {
                let (sum, gradient) =
                    direction::weight_gradient(decoder, adapter, &space, items, settings, rows, beat)?;
                (sum, Vector::Weights(Box::new(gradient)))
            }
        })
    }

    /// Returns the origin of the space that gradients are vectors of.
    pub fn zeros(self) -> Vector {
        match self.weights() {
            None => Vector::Adapter(self.adapter.zeros_like()),
            Some(space) => Vector::Weights(Box::new(Weights::of(self.decoder, space))),
        }
    }

    /// Returns the gradient of Σ slopes·s, s the summed log-probs of all sequences of the items.
    pub fn log_prob_gradient(self, items: &[&Item], slopes: &[f64]) -> Vector {
        let Point { decoder, adapter, .. } = self;
        match self.weights() {
            None => Vector::Adapter(direction::log_prob_gradient(decoder, adapter, items, slopes)),
            Some(space) => {
                let gradient = direction::log_prob_weight_gradient(decoder, adapter, &space, items, slopes);
                Vector::Weights(Box::new(gradient))
            }
        }
    }

    /// Returns a direction in the type of the model's products, so that nothing is converted for each pack; none where that
    /// is no other.
    pub fn for_passes(self, along: &Vector) -> Option<Vector> {
        let kind = self.decoder.head().weight.kind();
        match along {
            Vector::Weights(weights) if kind != Kind::Float => Some(Vector::Weights(Box::new(weights.to_kind(kind)))),
            _ => None,
        }
    }

    /// Returns the derivatives of the items' losses along a direction, and their log π_ref.
    pub fn scores(self, along: &Vector, items: &[&Item], settings: &Settings) -> PackScores {
        direction::pack_scores(self.decoder, self.adapter, along.direction(), items, settings, self.is_fresh)
    }

    /// Returns the summed log-probs of all sequences of the items.
    pub fn log_prob_sums(self, items: &[&Item]) -> Vec<f64> {
        step::log_prob_sums(self.decoder, Some(self.adapter), &self.pack(items))
    }

    /// The model's own weights that gradients are taken by; none where they are taken by the adapter.
    fn weights(self) -> Option<Space> {
        match self.space {
            ScoreSpace::Adapter => None,
            ScoreSpace::Targets => Some(Space::Targets(self.adapter.config.targets.clone())),
            ScoreSpace::Full => Some(Space::Full),
        }
    }

    fn pack(self, items: &[&Item]) -> Pack {
        Pack::new(&items.iter().map(|item| item.group()).collect::<Vec<_>>(), self.decoder.device)
    }

    /// Returns the derivatives along a direction of the summed log-probs of all sequences of the items.
    pub fn moved(self, along: &Vector, items: &[&Item]) -> Vec<f64> {
        direction::moved_log_probs(self.decoder, self.adapter, along.direction(), &self.pack(items), self.is_fresh).1
    }
}
