//! A point in parameter space at which records are scored, with the derivatives taken there.

use super::direction::{self, PackScores};
use super::vector::Vector;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::model::pack::Pack;
use crate::objective::step::{self, Item, NotFinite, Settings};

/// A model at which records are scored.
#[derive(Clone, Copy)]
pub struct Point<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// θ
    pub adapter: &'a Lora,
    /// B = 0 everywhere.
    pub is_fresh: bool,
}

impl Point<'_> {
    /// Returns the items' summed loss and its gradient; `rows` items are computed together, and `beat` is called after
    /// them.
    ///
    /// # Errors
    /// A loss that is not finite.
    pub fn gradient(
        self,
        items: &[Item],
        settings: &Settings,
        rows: usize,
        beat: &mut dyn FnMut(),
    ) -> Result<(f64, Vector), NotFinite> {
        let (sum, gradient) = direction::gradient(self.decoder, self.adapter, items, settings, rows, beat)?;
        Ok((sum, Vector::Adapter(gradient)))
    }

    /// Returns the origin of the space that gradients are vectors of.
    pub fn zeros(self) -> Vector {
        Vector::Adapter(self.adapter.zeros_like())
    }

    /// Returns the gradient of Σ slopes·s, s the summed log-probs of all sequences of the items.
    pub fn log_prob_gradient(self, items: &[&Item], slopes: &[f64]) -> Vector {
        Vector::Adapter(direction::log_prob_gradient(self.decoder, self.adapter, items, slopes))
    }

    /// Returns the derivatives of the items' losses along a direction, and their log π_ref.
    pub fn scores(self, along: &Vector, items: &[&Item], settings: &Settings) -> PackScores {
        let Vector::Adapter(along) = along;
        direction::pack_scores(self.decoder, self.adapter, along, items, settings, self.is_fresh)
    }

    /// Returns the summed log-probs of all sequences of the items.
    pub fn log_prob_sums(self, items: &[&Item]) -> Vec<f64> {
        step::log_prob_sums(self.decoder, Some(self.adapter), &self.pack(items))
    }

    fn pack(self, items: &[&Item]) -> Pack {
        Pack::new(&items.iter().map(|item| item.group()).collect::<Vec<_>>(), self.decoder.device)
    }

    /// Returns the derivatives along a direction of the summed log-probs of all sequences of the items.
    pub fn moved(self, along: &Vector, items: &[&Item]) -> Vec<f64> {
        let Vector::Adapter(along) = along;
        direction::moved_log_probs(self.decoder, self.adapter, along, &self.pack(items), self.is_fresh).1
    }
}
