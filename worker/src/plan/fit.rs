//! What fits into a memory: the largest token budget of a pack.

use super::memory::{Fixed, Setting, Work};
use super::pack::{PackShape, pair_tokens};

/// Share of the memory that is planned with; the rest is for what is not counted.
pub const PLANNED_SHARE: f64 = 0.9;

/// Budgets are multiples of so many tokens.
pub const STEP: usize = 64;

/// No budget is larger.
pub const LARGEST: usize = 1 << 20;

/// What an update has, and how much of it the process takes before a model is loaded, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Memory of the device.
    pub memory: f64,
    /// Libraries, tokenizer and the like.
    pub process: f64,
    /// What a checkpoint's copy takes of it, in bytes.
    pub snapshot: f64,
    /// What the allocator leaves unused.
    pub holes: Holes,
}

/// Memory between tensors that an allocator holds and cannot use, as a share of tensors that come and go, and of those that
/// are made among them and stay.
#[derive(Debug, Clone, Copy)]
pub struct Holes {
    /// For each byte of activations.
    pub of_activations: f64,
    /// For each byte of gradients.
    pub of_gradients: f64,
    /// For each byte of a chunk's logits, which come and go on top of the activations.
    pub of_logits: f64,
    /// For each byte of weights that come and go layer by layer.
    pub of_gathered: f64,
}

impl Holes {
    /// None.
    pub const NONE: Holes = Holes { of_activations: 0.0, of_gradients: 0.0, of_logits: 0.0, of_gathered: 0.0 };

    /// The C library's heap, which holds tensors below 32 MiB: from peaks measured with it and without
    /// (docs/performance.md).
    pub const HEAP: Holes = Holes { of_activations: 0.35, of_gradients: 0.4, of_logits: 2.2, of_gathered: 1.0 };
}

impl Room {
    /// Returns what an update takes at its peak, in bytes.
    pub fn taken(&self, fixed: &Fixed, work: &Work) -> f64 {
        self.process + fixed.total() + work.total() + self.holes(fixed, work)
    }

    /// Returns what the process takes at its peak, a checkpoint's copy included: in an update, or in the forward pass of a
    /// validation with all weights gathered.
    pub fn peak(&self, fixed: &Fixed, work: &Work) -> f64 {
        self.taken(fixed, work).max(self.while_gathered(fixed, work)) + self.snapshot
    }

    /// Returns what is taken while all weights are gathered, in bytes; 0 where they are never shared out.
    pub fn while_gathered(&self, fixed: &Fixed, work: &Work) -> f64 {
        match fixed.while_gathered() {
            Some(fixed) => self.process + fixed + work.activations + work.head,
            None => 0.0,
        }
    }

    /// Returns whether that fits.
    pub fn holds(&self, fixed: &Fixed, work: &Work) -> bool {
        self.peak(fixed, work) <= self.memory * PLANNED_SHARE
    }

    /// Returns what the allocator leaves unused, in bytes.
    pub fn holes(&self, fixed: &Fixed, work: &Work) -> f64 {
        let Holes { of_activations, of_gradients, of_logits, of_gathered } = self.holes;
        let of_work = of_activations * work.activations + of_logits * work.logits;
        of_work + of_gradients * fixed.gradients + of_gathered * fixed.gathered
    }

    /// Returns the largest budget of tokens that fits, for sequences of at most `max_length`; none where not even one pair
    /// does. A budget below the largest pair is one all the same: such a pair gets a pack to itself.
    pub fn largest_budget(
        &self,
        setting: &Setting<'_>,
        max_length: usize,
        has_anchors: bool,
        is_recomputed: bool,
    ) -> Option<usize> {
        let fixed = Fixed::of(setting);
        let fits = |budget: usize| {
            let pack = PackShape::largest(budget, max_length, has_anchors);
            self.holds(&fixed, &Work::of(setting, &pack, is_recomputed))
        };
        let smallest = pair_tokens(max_length);
        if !fits(smallest) {
            return None;
        }
        // All memory grows with the budget: halve the range in which it stops to fit.
        let (mut fit, mut too_large) = (smallest / STEP, LARGEST / STEP);
        while too_large > fit + 1 {
            let middle = fit.midpoint(too_large);
            if fits(middle * STEP) { fit = middle } else { too_large = middle }
        }
        Some((fit * STEP).max(smallest))
    }
}
