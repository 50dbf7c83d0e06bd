//! The forward pass of a pack whose gradient is wanted, in two modes.
//!
//! Plain: the graph of the whole pass is kept. Recomputed: only the input of every layer is kept; the backward pass goes
//! from the last layer to the first, computes each layer once more with a graph of its own and sends the gradient
//! through it. The same operations on the same numbers, so the same gradients to the bit, for one more forward pass and
//! the memory of one layer.

use tch::{Kind, Tensor};

use super::decoder::{Decoder, Extras, PackAttention};
use super::pack::Pack;

/// A forward pass that is waiting for its gradient.
pub struct Pass<'a> {
    /// Hidden states after the final norm: [n, d]
    pub hidden: Tensor,
    decoder: &'a Decoder,
    extras: Extras<'a>,
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
    /// Computes the hidden states of a pack.
    pub fn forward(decoder: &'a Decoder, pack: &'a Pack, extras: Extras<'a>, recompute: bool) -> Self {
        if !recompute {
            return Pass { hidden: decoder.forward(pack, extras), decoder, extras, kept: None };
        }
        let attention = decoder.attention_of(pack);
        let (inputs, hidden) = tch::no_grad(|| {
            let mut inputs = vec![decoder.embed(&pack.tokens)];
            for layer in 0..decoder.config.layers {
                let attend = &mut |layer, q, k, v| attention.apply(decoder, layer, q, k, v);
                inputs.push(decoder.block(layer, &inputs[layer], extras, attend));
            }
            let hidden = decoder.finish(&inputs[decoder.config.layers]);
            (inputs, hidden)
        });
        let hidden = hidden.set_requires_grad(true);
        Pass { hidden, decoder, extras, kept: Some(Kept { pack, attention, inputs }) }
    }

    /// Adds the gradient of `scalar`, a function of the hidden states and of weights, to whatever requires one.
    pub fn backward(self, scalar: &Tensor) {
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
}

/// Computes f(x) with a graph, sends a gradient through it and returns what arrives at x.
fn through(x: Tensor, gradient: &Tensor, f: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
    let x = x.set_requires_grad(true);
    inject(&f(&x), gradient).backward();
    x.grad()
}

/// A scalar whose gradient with respect to `tensor` is `gradient`.
pub fn inject(tensor: &Tensor, gradient: &Tensor) -> Tensor {
    (tensor.to_kind(Kind::Float) * gradient.to_kind(Kind::Float)).sum(Kind::Float)
}
