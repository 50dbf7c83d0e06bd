//! Units: the parts of a decoder whose weights are used together, and come and go together where ranks share them out.

use tch::Tensor;

use super::config::ModelConfig;
use super::decoder::Decoder;

/// A part of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// The embedding, which is the head too where the two are tied.
    Embedding,
    /// One layer.
    Layer(usize),
    /// The final norm, and the head where it has a weight of its own.
    Last,
}

impl Unit {
    /// Returns all units of a decoder, in the order of the forward pass.
    pub fn all(config: &ModelConfig) -> Vec<Unit> {
        let layers = (0..config.layers).map(Unit::Layer);
        std::iter::once(Unit::Embedding).chain(layers).chain([Unit::Last]).collect()
    }

    /// Returns its place among [`Unit::all`].
    pub fn index(self, config: &ModelConfig) -> usize {
        match self {
            Unit::Embedding => 0,
            Unit::Layer(layer) => 1 + layer,
            Unit::Last => 1 + config.layers,
        }
    }

    /// Returns the unit that a weight belongs to, by its name in checkpoints.
    pub fn of(name: &str) -> Unit {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        match layer {
            Some(layer) => Unit::Layer(layer),
            None if name.starts_with("model.embed_tokens.") => Unit::Embedding,
            None => Unit::Last,
        }
    }
}

impl Decoder {
    /// Returns a unit's weights with their names, in the order of [`Decoder::named_parameters`].
    pub fn unit(&self, unit: Unit) -> Vec<(String, Tensor)> {
        self.named_parameters().into_iter().filter(|(name, _)| Unit::of(name) == unit).collect()
    }
}

/// Who shares the weights of a decoder out over ranks. A pass tells it which unit it comes to and which gradients it has; every rank
/// says the same in the same order, whatever it computes, since each word may be a call of the gang. A call that fails is
/// told when the pass is over; until then numbers may be wrong.
pub trait Stream {
    /// Brings the weights of a unit, and begins to bring those of the next.
    fn fetch(&self, unit: Unit, next: Option<Unit>);

    /// The weights of a unit are not needed until they are fetched again.
    fn release(&self, unit: Unit);

    /// Takes the gradients of a unit's weights, in the order of [`Decoder::unit`]; none counts as 0.
    fn reduce(&self, unit: Unit, gradients: Vec<Tensor>);
}

/// Fetches what stays for a whole pass: what lies before and after the layers, and the head with it.
pub(crate) fn fetch_ends(stream: &dyn Stream) {
    stream.fetch(Unit::Embedding, Some(Unit::Last));
    stream.fetch(Unit::Last, None);
}

/// Releases what [`fetch_ends`] fetched.
pub(crate) fn release_ends(stream: &dyn Stream) {
    stream.release(Unit::Embedding);
    stream.release(Unit::Last);
}

/// Calls `work` for every layer on the way forward, its weights there.
pub(crate) fn forward(stream: Option<&dyn Stream>, layers: usize, mut work: impl FnMut(usize)) {
    for layer in 0..layers {
        let next = (layer + 1 < layers).then_some(Unit::Layer(layer + 1));
        visit(stream, layer, next, &mut work);
    }
}

/// Calls `work` for every layer on the way back, its weights there.
pub(super) fn backward(stream: Option<&dyn Stream>, layers: usize, mut work: impl FnMut(usize)) {
    for layer in (0..layers).rev() {
        visit(stream, layer, layer.checked_sub(1).map(Unit::Layer), &mut work);
    }
}

fn visit(stream: Option<&dyn Stream>, layer: usize, next: Option<Unit>, work: &mut impl FnMut(usize)) {
    if let Some(stream) = stream {
        stream.fetch(Unit::Layer(layer), next);
    }
    work(layer);
    if let Some(stream) = stream {
        stream.release(Unit::Layer(layer));
    }
}
