//! The forward pass of a pack whose gradient is wanted, in two modes.
//!
//! Plain: the graph of the whole pass is kept. Recomputed: only the input of every layer is kept; the backward pass goes
//! from the last layer to the first, computes each layer once more with a graph of its own and sends the gradient
//! through it. The same operations on the same numbers, so the same gradients to the bit, for one more forward pass and
//! the memory of one layer.
//!
//! Gradients are added to the `.grad` of whatever requires one. Where a [`Stream`] shares the decoder's weights out over ranks
//! they go to it instead, unit by unit as they become known, from the last to the first, and are kept nowhere here.

use tch::{Kind, Tensor};

use super::decoder::{Decoder, Extras, PackAttention};
use super::pack::Pack;
use super::units::{self, Stream, Unit};

/// A forward pass that is waiting for its gradient.
pub struct Pass<'a> {
    /// Hidden states after the final norm: [n, d]
    pub hidden: Tensor,
    decoder: &'a Decoder,
    extras: Extras<'a>,
    stream: Option<&'a dyn Stream>,
    kept: Option<Kept<'a>>,
}

/// What the recomputed mode keeps.
struct Kept<'a> {
    pack: &'a Pack,
    attention: PackAttention,
    /// x before each layer, and after the last: [n, d] each
    inputs: Vec<Tensor>,
}

impl<'a> Pass<'a> {
    /// Computes the hidden states of a pack. A stream brings the weights, all at once for the plain mode; they stay until
    /// the gradient has passed.
    pub fn forward(
        decoder: &'a Decoder,
        pack: &'a Pack,
        extras: Extras<'a>,
        recompute: bool,
        stream: Option<&'a dyn Stream>,
    ) -> Self {
        if let Some(stream) = stream {
            units::fetch_ends(stream);
        }
        if !recompute {
            return Pass { hidden: decoder.forward(pack, extras), decoder, extras, stream, kept: None };
        }
        let attention = decoder.attention_of(pack);
        let (inputs, hidden) = tch::no_grad(|| {
            let mut inputs = vec![decoder.embed(&pack.tokens)];
            units::forward(stream, decoder.config.layers, |layer| {
                let attend = &mut |layer, q, k, v| attention.apply(decoder, layer, q, k, v);
                inputs.push(decoder.block(layer, &inputs[layer], extras, attend));
            });
            let hidden = decoder.finish(&inputs[decoder.config.layers]);
            (inputs, hidden)
        });
        let hidden = hidden.set_requires_grad(true);
        Pass { hidden, decoder, extras, stream, kept: Some(Kept { pack, attention, inputs }) }
    }

    /// Sends the gradient of `scalar`, a function of the hidden states and of the head's weight, to whatever requires one.
    pub fn backward(self, scalar: &Tensor) {
        match self.stream {
            None => self.into_grads(scalar),
            Some(stream) => {
                self.into_stream(scalar, stream);
                units::release_ends(stream);
            }
        }
    }

    fn into_grads(self, scalar: &Tensor) {
        scalar.backward();
        let Some(mut kept) = self.kept else { return };
        let last = kept.inputs.pop().expect("there is an input of the final norm");
        let mut gradient = through(last, &self.hidden.grad(), |x| self.decoder.finish(x));
        for layer in (0..self.decoder.config.layers).rev() {
            let input = kept.inputs.pop().expect("every layer has an input");
            let attention = &kept.attention;
            gradient = through(input, &gradient, |x| {
                let attend = &mut |layer, q, k, v| attention.apply(self.decoder, layer, q, k, v);
                self.decoder.block(layer, x, self.extras, attend)
            });
        }
        let embedded = self.decoder.embed(&kept.pack.tokens);
        if embedded.requires_grad() {
            inject(&embedded, &gradient).backward();
        }
    }

    fn into_stream(self, scalar: &Tensor, stream: &dyn Stream) {
        let decoder = self.decoder;
        let weights = |unit| decoder.unit(unit).into_iter().map(|(_, weight)| weight).collect::<Vec<_>>();
        let Some(mut kept) = self.kept else {
            let order: Vec<Unit> = Unit::all(&decoder.config).into_iter().rev().collect();
            let mut all =
                gradients(scalar, &order.iter().flat_map(|&unit| weights(unit)).collect::<Vec<_>>()).into_iter();
            for unit in order {
                stream.reduce(unit, all.by_ref().take(weights(unit).len()).collect());
            }
            return;
        };
        let head = decoder.head().weight.shallow_clone();
        let [of_hidden, of_head] = two(gradients(scalar, &[self.hidden.shallow_clone(), head]));
        let last = kept.inputs.pop().expect("there is an input of the final norm");
        let norm = weights(Unit::Last).swap_remove(0);
        let [mut gradient, of_norm] = two(through_weights(last, &of_hidden, &[norm], |x| decoder.finish(x)));
        // The head is a weight of the last unit, or the embedding itself.
        let is_tied = decoder.config.tie_word_embeddings;
        let (of_last, of_embedding) =
            if is_tied { (vec![of_norm], Some(of_head)) } else { (vec![of_norm, of_head], None) };
        stream.reduce(Unit::Last, of_last);
        units::backward(Some(stream), decoder.config.layers, |layer| {
            let input = kept.inputs.pop().expect("every layer has an input");
            let attention = &kept.attention;
            let mut found = through_weights(input, &gradient, &weights(Unit::Layer(layer)), |x| {
                let attend = &mut |layer, q, k, v| attention.apply(decoder, layer, q, k, v);
                decoder.block(layer, x, self.extras, attend)
            });
            gradient = found.remove(0);
            stream.reduce(Unit::Layer(layer), found);
        });
        let embedded = decoder.embed(&kept.pack.tokens);
        let looked_up = gradients(&inject(&embedded, &gradient), &weights(Unit::Embedding)).swap_remove(0);
        let of_embedding = match of_embedding {
            Some(of_head) => looked_up + of_head,
            None => looked_up,
        };
        stream.reduce(Unit::Embedding, vec![of_embedding]);
    }

    /// Says to a stream what a pass of another rank says to its own, without computing anything; `between` is called
    /// between the way forward and the way back.
    pub fn idle(decoder: &Decoder, recompute: bool, stream: &dyn Stream, between: impl FnOnce()) {
        let layers = decoder.config.layers;
        units::fetch_ends(stream);
        if recompute {
            units::forward(Some(stream), layers, |_| {});
        }
        between();
        if !recompute {
            Unit::all(&decoder.config).into_iter().rev().for_each(|unit| stream.reduce(unit, Vec::new()));
        } else {
            stream.reduce(Unit::Last, Vec::new());
            units::backward(Some(stream), layers, |layer| stream.reduce(Unit::Layer(layer), Vec::new()));
            stream.reduce(Unit::Embedding, Vec::new());
        }
        units::release_ends(stream);
    }
}

/// Computes f(x) with a graph, sends a gradient through it and returns what arrives at x.
fn through(x: Tensor, gradient: &Tensor, f: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
    let x = x.set_requires_grad(true);
    inject(&f(&x), gradient).backward();
    x.grad()
}

/// As [`through`], and returns what arrives at x and at each of the weights, which keep nothing of it.
fn through_weights(x: Tensor, gradient: &Tensor, weights: &[Tensor], f: impl FnOnce(&Tensor) -> Tensor) -> Vec<Tensor> {
    let x = x.set_requires_grad(true);
    let scalar = inject(&f(&x), gradient);
    let inputs: Vec<&Tensor> = std::iter::once(&x).chain(weights).collect();
    Tensor::run_backward(&[scalar], &inputs, false, false)
}

/// Returns the gradients of a scalar with respect to tensors, which keep nothing of it.
fn gradients(scalar: &Tensor, inputs: &[Tensor]) -> Vec<Tensor> {
    Tensor::run_backward(&[scalar], inputs, false, false)
}

fn two(found: Vec<Tensor>) -> [Tensor; 2] {
    found.try_into().expect("two gradients were asked for")
}

/// A scalar whose gradient with respect to `tensor` is `gradient`.
pub fn inject(tensor: &Tensor, gradient: &Tensor) -> Tensor {
    (tensor.to_kind(Kind::Float) * gradient.to_kind(Kind::Float)).sum(Kind::Float)
}
