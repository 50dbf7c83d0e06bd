//! The LM head in closed form: log-probs, KL and their gradients into the hidden states, in chunks of rows.
//!
//! Nothing of size rows × vocabulary outlives a chunk. Every loss of the method is a function of summed log-probs or a
//! KL a position, so its gradient with respect to the hidden states h is, with logits z = h·Wᵀ and p = softmax(z):
//! for a log-prob of token y with coefficient c, `c·(onehot(y) − p)·W`; for KL(p_ref ‖ p) with coefficient c,
//! `c·(p − p_ref)·W`. With a trained head the same factors times h give dL/dW. Computed in f32.

use tch::{Kind, Tensor};

/// Rows × vocabulary of a chunk: 64 MiB of f32.
const CHUNK_ELEMENTS: i64 = 16 << 20;

fn chunks(rows: i64, vocabulary: i64) -> impl Iterator<Item = (i64, i64)> {
    let size = (CHUNK_ELEMENTS / vocabulary).max(1);
    (0..rows).step_by(size as usize).map(move |start| (start, size.min(rows - start)))
}

fn logits(hidden: &Tensor, weight: &Tensor, (start, len): (i64, i64)) -> Tensor {
    hidden.narrow(0, start, len).to_kind(Kind::Float).matmul(&weight.tr())
}

/// Gradients of a scalar with respect to hidden states and, where the head is trained, its weight.
#[derive(Debug)]
pub struct HeadGradient {
    /// [m, d], f32
    pub hidden: Tensor,
    /// [V, d], f32
    pub weight: Option<Tensor>,
}

impl HeadGradient {
    fn zeros(hidden: &Tensor, weight: &Tensor, train_head: bool) -> Self {
        HeadGradient {
            hidden: hidden.zeros_like().to_kind(Kind::Float),
            weight: train_head.then(|| weight.zeros_like()),
        }
    }

    /// `factor` = dL/dlogits of one chunk: [len, V].
    fn add(&mut self, factor: &Tensor, hidden: &Tensor, weight: &Tensor, (start, len): (i64, i64)) {
        self.hidden.narrow(0, start, len).copy_(&factor.matmul(weight));
        if let Some(gradient) = &mut self.weight {
            let _ = gradient.addmm_(&factor.tr(), &hidden.narrow(0, start, len).to_kind(Kind::Float));
        }
    }
}

/// Returns log p(target) of each row: hidden [m, d], weight [V, d], targets [m] to [m], f32. No gradient is recorded.
pub fn log_probs(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Tensor {
    tch::no_grad(|| {
        let weight = weight.to_kind(Kind::Float);
        let parts: Vec<Tensor> = chunks(hidden.size()[0], weight.size()[0])
            .map(|chunk| {
                let z = logits(hidden, &weight, chunk);
                let at = z.gather(1, &targets.narrow(0, chunk.0, chunk.1).unsqueeze(1), false).squeeze_dim(1);
                at - z.logsumexp([1i64].as_slice(), false)
            })
            .collect();
        if parts.is_empty() { Tensor::zeros([0], (Kind::Float, hidden.device())) } else { Tensor::cat(&parts, 0) }
    })
}

/// Returns the gradient of Σ_m coefficients[m]·log p(targets[m]). Rows with coefficient 0 cost the same as others.
pub fn log_prob_gradient(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    coefficients: &Tensor,
    train_head: bool,
) -> HeadGradient {
    tch::no_grad(|| {
        let weight = weight.to_kind(Kind::Float);
        let mut gradient = HeadGradient::zeros(hidden, &weight, train_head);
        for chunk in chunks(hidden.size()[0], weight.size()[0]) {
            let c = coefficients.narrow(0, chunk.0, chunk.1).unsqueeze(1);
            let mut factor = logits(hidden, &weight, chunk).softmax(1, Kind::Float) * c.neg();
            let _ = factor.scatter_add_(1, &targets.narrow(0, chunk.0, chunk.1).unsqueeze(1), &c);
            gradient.add(&factor, hidden, &weight, chunk);
        }
        gradient
    })
}

/// Returns KL(p_ref ‖ p) of each row: hidden and reference hidden [m, d] to [m], f32, in log space (spec 4.4).
pub fn kl(hidden: &Tensor, weight: &Tensor, ref_hidden: &Tensor, ref_weight: &Tensor) -> Tensor {
    tch::no_grad(|| {
        let (weight, ref_weight) = (weight.to_kind(Kind::Float), ref_weight.to_kind(Kind::Float));
        let parts: Vec<Tensor> = chunks(hidden.size()[0], weight.size()[0])
            .map(|chunk| {
                let log_p = logits(hidden, &weight, chunk).log_softmax(1, Kind::Float);
                let log_ref = logits(ref_hidden, &ref_weight, chunk).log_softmax(1, Kind::Float);
                (log_ref.exp() * (log_ref - log_p)).sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
            })
            .collect();
        if parts.is_empty() { Tensor::zeros([0], (Kind::Float, hidden.device())) } else { Tensor::cat(&parts, 0) }
    })
}

/// Returns the gradient of Σ_m coefficients[m]·KL_m with respect to the policy's hidden states and head.
pub fn kl_gradient(
    hidden: &Tensor,
    weight: &Tensor,
    ref_hidden: &Tensor,
    ref_weight: &Tensor,
    coefficients: &Tensor,
    train_head: bool,
) -> HeadGradient {
    tch::no_grad(|| {
        let (weight, ref_weight) = (weight.to_kind(Kind::Float), ref_weight.to_kind(Kind::Float));
        let mut gradient = HeadGradient::zeros(hidden, &weight, train_head);
        for chunk in chunks(hidden.size()[0], weight.size()[0]) {
            let p = logits(hidden, &weight, chunk).softmax(1, Kind::Float);
            let p_ref = logits(ref_hidden, &ref_weight, chunk).softmax(1, Kind::Float);
            let factor = (p - p_ref) * coefficients.narrow(0, chunk.0, chunk.1).unsqueeze(1);
            gradient.add(&factor, hidden, &weight, chunk);
        }
        gradient
    })
}
