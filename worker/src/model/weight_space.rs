//! Directions in the space of a model's own weights: one tensor for each parameter that moves.
//!
//! They are kept in f32 whatever the weights are, since a gradient is a sum over many packs. What a move of a weight does to
//! hidden states is in `tangent.rs`, what a move of the head does to log-probs in `head.rs`.

use std::collections::BTreeSet;

use tch::{Kind, Tensor};

use super::config::ModelConfig;
use super::decoder::Decoder;
use super::lora::Module;
use super::parameters::{Layer, Parameters};

/// Which of a model's own weights move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Space {
    /// The weight matrices [out, in] of these linear layers of every block: what an adapter on them would change.
    Targets(BTreeSet<Module>),
    /// Every parameter: embedding, norms, weights and biases of linear layers, final norm, head.
    Full,
}

impl Space {
    /// Returns whether the parameter of this name in checkpoints is in the space.
    fn holds(&self, name: &str) -> bool {
        match self {
            Space::Targets(modules) => {
                modules.iter().any(|module| name.ends_with(&format!(".{}.weight", module.path())))
            }
            Space::Full => true,
        }
    }
}

/// The moves of one block's parameters; none does not move.
pub(super) type LayerMove = Layer<Option<Tensor>>;

/// A direction in the space of a decoder's weights, or a gradient by them: tensors of the shapes of the parameters.
#[derive(Debug)]
pub struct Weights {
    config: ModelConfig,
    moves: Parameters<Option<Tensor>>,
}

impl Weights {
    /// Returns the zero of a space, f32.
    pub fn of(decoder: &Decoder, space: Space) -> Self {
        let moves = decoder.parameters().map(&decoder.config, |name, weight| {
            space.holds(name).then(|| Tensor::zeros(weight.size(), (Kind::Float, decoder.device)))
        });
        Weights { config: decoder.config.clone(), moves }
    }

    /// Returns what moves with its name in checkpoints, in the order of [`Decoder::named_parameters`].
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let moving = |(name, moved): (String, &Option<Tensor>)| Some((name, moved.as_ref()?.shallow_clone()));
        self.moves.named().into_iter().filter_map(moving).collect()
    }

    /// Returns the zero of the same space, in the same type.
    pub fn zeros_like(&self) -> Self {
        self.map(Tensor::zeros_like)
    }

    /// Returns the direction in another type: with that of a decoder's products, nothing is converted for each pack.
    pub fn to_kind(&self, kind: Kind) -> Self {
        self.map(|moved| moved.to_kind(kind))
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        let moves = self.moves.map(&self.config, |_, moved| moved.as_ref().map(&f));
        Weights { config: self.config.clone(), moves }
    }

    /// Returns the move of the embedding: [vocabulary, d].
    pub(super) fn embed(&self) -> Option<&Tensor> {
        self.moves.embed.as_ref()
    }

    /// Returns the moves of a block.
    pub(super) fn layer(&self, index: usize) -> &LayerMove {
        &self.moves.layers[index]
    }

    /// Returns the move of the final norm: [d].
    pub(super) fn final_norm(&self) -> Option<&Tensor> {
        self.moves.norm.as_ref()
    }

    /// Returns the move of the LM head, which is the embedding's where the two are tied: [vocabulary, d].
    pub fn head(&self) -> Option<&Tensor> {
        self.moves.head().as_ref()
    }
}
