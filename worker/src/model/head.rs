//! The LM head in closed form: log-probs, KL and their gradients into the hidden states, in chunks of rows.
//!
//! Nothing of size rows × vocabulary outlives a chunk. Every loss of the method is a function of summed log-probs or a
//! KL a position, so its gradient with respect to the hidden states h is, with logits z = h·Wᵀ and p = softmax(z):
//! for a log-prob of token y with coefficient c, `c·(onehot(y) − p)·W`; for KL(p_ref ‖ p) with coefficient c,
//! `c·(p − p_ref)·W`. With a trained head the same factors times h give dL/dW. A soft-cap makes the logits
//! c·tanh(z/c), and every factor then carries its derivative 1 − tanh²(z/c). Computed in f32.

use tch::{Kind, Tensor};

/// Rows × vocabulary of a chunk: 64 MiB of f32.
const CHUNK_ELEMENTS: i64 = 16 << 20;

fn chunks(rows: i64, vocabulary: i64) -> impl Iterator<Item = (i64, i64)> {
    let size = (CHUNK_ELEMENTS / vocabulary).max(1);
    (0..rows).step_by(size as usize).map(move |start| (start, size.min(rows - start)))
}

/// The LM head of a decoder.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// [vocabulary, d]
    pub weight: &'a Tensor,
    /// c in c·tanh(z/c) on the logits z = h·Wᵀ.
    pub softcap: Option<f64>,
}

impl Head<'_> {
    /// Returns the logits of hidden states [m, d]: [m, vocabulary], f32.
    pub fn logits(self, hidden: &Tensor) -> Tensor {
        self.wide().logits(hidden, (0, hidden.size()[0]))
    }

    fn wide(self) -> WideHead {
        WideHead { weight: self.weight.to_kind(Kind::Float), softcap: self.softcap }
    }
}

/// A head with its weight in f32.
struct WideHead {
    weight: Tensor,
    softcap: Option<f64>,
}

impl WideHead {
    fn logits(&self, hidden: &Tensor, (start, len): (i64, i64)) -> Tensor {
        let z = hidden.narrow(0, start, len).to_kind(Kind::Float).matmul(&self.weight.tr());
        match self.softcap {
            None => z,
            Some(cap) => (z / cap).tanh() * cap,
        }
    }

    /// From dL/dlogits and the logits themselves to dL/dz; both [len, vocabulary].
    fn before_cap(&self, factor: Tensor, logits: &Tensor) -> Tensor {
        match self.softcap {
            None => factor,
            Some(cap) => factor * (1.0 - (logits / cap).square()),
        }
    }
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

    /// `factor` = dL/dz of one chunk: [len, V].
    fn add(&mut self, factor: &Tensor, hidden: &Tensor, weight: &Tensor, (start, len): (i64, i64)) {
        self.hidden.narrow(0, start, len).copy_(&factor.matmul(weight));
        if let Some(gradient) = &mut self.weight {
            let _ = gradient.addmm_(&factor.tr(), &hidden.narrow(0, start, len).to_kind(Kind::Float));
        }
    }
}

/// Returns log p(target) of each row: hidden [m, d], targets [m] to [m], f32. No gradient is recorded.
pub fn log_probs(hidden: &Tensor, head: Head<'_>, targets: &Tensor) -> Tensor {
    tch::no_grad(|| {
        let head = head.wide();
        let parts: Vec<Tensor> = chunks(hidden.size()[0], head.weight.size()[0])
            .map(|chunk| {
                let z = head.logits(hidden, chunk);
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
    head: Head<'_>,
    targets: &Tensor,
    coefficients: &Tensor,
    train_head: bool,
) -> HeadGradient {
    tch::no_grad(|| {
        let head = head.wide();
        let mut gradient = HeadGradient::zeros(hidden, &head.weight, train_head);
        for chunk in chunks(hidden.size()[0], head.weight.size()[0]) {
            let c = coefficients.narrow(0, chunk.0, chunk.1).unsqueeze(1);
            let z = head.logits(hidden, chunk);
            let mut factor = z.softmax(1, Kind::Float) * c.neg();
            let _ = factor.scatter_add_(1, &targets.narrow(0, chunk.0, chunk.1).unsqueeze(1), &c);
            gradient.add(&head.before_cap(factor, &z), hidden, &head.weight, chunk);
        }
        gradient
    })
}

/// Returns KL(p_ref ‖ p) of each row: hidden and reference hidden [m, d] to [m], f32, in log space (spec 4.4).
pub fn kl(hidden: &Tensor, head: Head<'_>, ref_hidden: &Tensor, ref_head: Head<'_>) -> Tensor {
    tch::no_grad(|| {
        let (head, ref_head) = (head.wide(), ref_head.wide());
        let parts: Vec<Tensor> = chunks(hidden.size()[0], head.weight.size()[0])
            .map(|chunk| {
                let log_p = head.logits(hidden, chunk).log_softmax(1, Kind::Float);
                let log_ref = ref_head.logits(ref_hidden, chunk).log_softmax(1, Kind::Float);
                (log_ref.exp() * (log_ref - log_p)).sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
            })
            .collect();
        if parts.is_empty() { Tensor::zeros([0], (Kind::Float, hidden.device())) } else { Tensor::cat(&parts, 0) }
    })
}

/// Returns the gradient of Σ_m coefficients[m]·KL_m with respect to the policy's hidden states and head.
pub fn kl_gradient(
    hidden: &Tensor,
    head: Head<'_>,
    ref_hidden: &Tensor,
    ref_head: Head<'_>,
    coefficients: &Tensor,
    train_head: bool,
) -> HeadGradient {
    tch::no_grad(|| {
        let (head, ref_head) = (head.wide(), ref_head.wide());
        let mut gradient = HeadGradient::zeros(hidden, &head.weight, train_head);
        for chunk in chunks(hidden.size()[0], head.weight.size()[0]) {
            let z = head.logits(hidden, chunk);
            let p_ref = ref_head.logits(ref_hidden, chunk).softmax(1, Kind::Float);
            let factor = (z.softmax(1, Kind::Float) - p_ref) * coefficients.narrow(0, chunk.0, chunk.1).unsqueeze(1);
            gradient.add(&head.before_cap(factor, &z), hidden, &head.weight, chunk);
        }
        gradient
    })
}
