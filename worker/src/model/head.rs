//! The LM head in closed form: log-probs, KL and their gradients into the hidden states, in chunks of rows.
//!
//! Nothing of size rows × vocabulary outlives a chunk. Every loss of the method is a function of summed log-probs or of a
//! KL a position. With logits z = h·Wᵀ and p = softmax(z), the gradient of a log-prob of token y with respect to h is
//! `W[y] − p·W`, and that of KL(p_ref ‖ p) is `(p − p_ref)·W`. Neither depends on the loss, so one pass over the head
//! gives the value of every row and its *pull*, the gradient of that value; the loss's slopes are factors of rows later.
//! Only a trained head needs the distributions once more: dL/dW is Σ slope·(onehot − p)ᵀ·h.
//!
//! Products are computed in the type of the weight, sums and losses in f32. bf16 logits are rounded relative to the
//! target's own logit, which is computed in f32 and subtracted inside the product: what is rounded is the log-ratio to
//! the target, small where it matters. A soft-cap makes the logits c·tanh(z/c), computed in f32, and every factor of W
//! then carries the derivative 1 − tanh²(z/c).

use tch::{Kind, Tensor};

/// Bytes of a chunk's logits. Smaller ones read the weight more often, larger ones are given back to the system.
pub(crate) const CHUNK_BYTES: i64 = 24 << 20;

fn chunks(rows: i64, vocabulary: i64, kind: Kind) -> impl Iterator<Item = (i64, i64)> {
    let bytes_of_row = vocabulary * kind.elt_size_in_bytes() as i64;
    let size = (CHUNK_BYTES / bytes_of_row).max(1);
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
    /// Returns the logits of hidden states [m, d] in f32 products: [m, vocabulary].
    pub fn logits(self, hidden: &Tensor) -> Tensor {
        self.capped(hidden.to_kind(Kind::Float).matmul(&self.weight.to_kind(Kind::Float).tr()))
    }

    /// Cuts rows such that a chunk's logits, f32 where they are capped, are of the size wanted.
    fn chunks(self, hidden: &Tensor) -> impl Iterator<Item = (i64, i64)> {
        let kind = if self.softcap.is_some() { Kind::Float } else { self.weight.kind() };
        chunks(hidden.size()[0], self.weight.size()[0], kind)
    }

    /// f32 logits before the cap to those after it.
    fn capped(self, z: Tensor) -> Tensor {
        match self.softcap {
            None => z,
            Some(cap) => (z / cap).tanh() * cap,
        }
    }

    /// The cap's derivative at capped logits, of their shape; none without a cap.
    fn slope(self, capped: &Tensor) -> Option<Tensor> {
        self.softcap.map(|cap| 1.0 - (capped / cap).square())
    }
}

/// One value a row, and the gradient of each row's value with respect to its hidden state.
#[derive(Debug)]
pub struct Pulled {
    /// [m], f32
    pub values: Tensor,
    /// [m, d], f32
    pub pulls: Tensor,
}

impl Pulled {
    fn join(parts: Vec<(Tensor, Tensor)>, hidden: &Tensor) -> Self {
        let (values, pulls): (Vec<Tensor>, Vec<Tensor>) = parts.into_iter().unzip();
        if values.is_empty() {
            let empty = |size: &[i64]| Tensor::zeros(size, (Kind::Float, hidden.device()));
            return Pulled { values: empty(&[0]), pulls: empty(&[0, hidden.size()[1]]) };
        }
        Pulled { values: Tensor::cat(&values, 0), pulls: Tensor::cat(&pulls, 0) }
    }
}

/// The distributions of a chunk of rows, up to a factor a row.
struct Chunk {
    /// exp(z − largest z): [len, V], in the weight's type
    unnormalised: Tensor,
    /// With a soft-cap, its derivative: [len, V], f32
    slope: Option<Tensor>,
    /// Sum of each row: [len, 1], f32
    sums: Tensor,
    /// log p(target): [len], f32
    log_probs: Tensor,
    /// The target's logit by h, W[target] without a soft-cap: [len, d], f32
    target_weights: Tensor,
    /// The same by W[target], as a factor of h: [len, 1], f32; 1 without a soft-cap
    target_slope: Option<Tensor>,
}

impl Chunk {
    fn compute(hidden: &Tensor, head: Head<'_>, targets: &Tensor, (start, len): (i64, i64)) -> Self {
        let weight = head.weight;
        let (h, y) = (hidden.narrow(0, start, len), targets.narrow(0, start, len));
        let target_weights = weight.index_select(0, &y).to_kind(Kind::Float);
        let exact = Tensor::linalg_vecdot(&h.to_kind(Kind::Float), &target_weights, -1).unsqueeze(1);
        let shift = -exact.to_kind(weight.kind());
        let expanded = shift.expand([len, weight.size()[0]], false);
        let z = expanded.addmm(&h.to_kind(weight.kind()), &weight.tr());
        if head.softcap.is_none() {
            // What rounding the shift has left of the target's logit.
            let of_target = exact + shift.to_kind(Kind::Float);
            return Self::of_logits(z, of_target, &y, target_weights);
        }
        let z = head.capped(z.to_kind(Kind::Float) - shift.to_kind(Kind::Float));
        let of_target = head.capped(exact);
        let (slope, target_slope) = (head.slope(&z), head.slope(&of_target));
        let target_weights = target_weights * target_slope.as_ref().expect("there is a cap");
        Chunk { slope, target_slope, ..Self::of_logits(z, of_target, &y, target_weights) }
    }

    /// From logits [len, V], which are overwritten, and the targets' own, more exact: [len, 1], f32.
    fn of_logits(mut z: Tensor, of_target: Tensor, targets: &Tensor, target_weights: Tensor) -> Self {
        let largest = z.amax([1i64].as_slice(), true);
        let mut unnormalised = z.g_sub_(&largest).exp_();
        let of_target = of_target - largest.to_kind(Kind::Float);
        let column = targets.unsqueeze(1);
        let _ = unnormalised.scatter_(1, &column, &of_target.exp().to_kind(unnormalised.kind()));
        let rounded = unnormalised.gather(1, &column, false).to_kind(Kind::Float);
        let sums = unnormalised.sum_dim_intlist([1i64].as_slice(), true, Kind::Float) - rounded + of_target.exp();
        let log_probs = (of_target - sums.log()).squeeze_dim(1);
        Chunk { unnormalised, slope: None, sums, log_probs, target_weights, target_slope: None }
    }

    /// The rows' factors of W, before they are divided by the sums: [len, V], in the weight's type.
    fn factors(&self, kind: Kind) -> Tensor {
        match &self.slope {
            None => self.unnormalised.shallow_clone(),
            Some(slope) => (&self.unnormalised * slope).to_kind(kind),
        }
    }

    /// Returns Σ_v p_v·s_v·rows[v] of rows [V, d], s_v the cap's derivative, 1 without one: [len, d], f32.
    fn mean(&self, rows: &Tensor) -> Tensor {
        self.factors(rows.kind()).matmul(rows).to_kind(Kind::Float) / &self.sums
    }
}

/// Returns log p(target) of each row: hidden [m, d], targets [m] to [m], f32. No gradient is recorded.
pub fn log_probs(hidden: &Tensor, head: Head<'_>, targets: &Tensor) -> Tensor {
    tch::no_grad(|| {
        let parts: Vec<Tensor> =
            head.chunks(hidden).map(|chunk| Chunk::compute(hidden, head, targets, chunk).log_probs).collect();
        if parts.is_empty() { Tensor::zeros([0], (Kind::Float, hidden.device())) } else { Tensor::cat(&parts, 0) }
    })
}

/// Returns log p(target) of each row and its gradient with respect to the row's hidden state.
pub fn pulled_log_probs(hidden: &Tensor, head: Head<'_>, targets: &Tensor) -> Pulled {
    tch::no_grad(|| {
        let parts = head
            .chunks(hidden)
            .map(|chunk| {
                let chunk = Chunk::compute(hidden, head, targets, chunk);
                let pulls = &chunk.target_weights - chunk.mean(head.weight);
                (chunk.log_probs, pulls)
            })
            .collect();
        Pulled::join(parts, hidden)
    })
}

/// Returns log p(target) of each row, hidden [m, d], and its derivative where the hidden states move by `tangent` [m, d]
/// and W by `moved` [V, d], if it moves: [m] each, f32. With s the slope of a soft-cap, 1 without one, the derivative is
/// ḣ·(s_y·W[y] − Σ_v p_v·s_v·W[v]) + h·(s_y·Ẇ[y] − Σ_v p_v·s_v·Ẇ[v]).
pub fn log_probs_along(
    hidden: &Tensor,
    tangent: &Tensor,
    head: Head<'_>,
    moved: Option<&Tensor>,
    targets: &Tensor,
) -> (Tensor, Tensor) {
    tch::no_grad(|| {
        // The target's row is rounded as the rows of the mean are, from which it hardly differs where p(target) is near 1.
        let moved = moved.map(|moved| moved.to_kind(head.weight.kind()));
        let (values, derivatives): (Vec<Tensor>, Vec<Tensor>) = head
            .chunks(hidden)
            .map(|(start, len)| {
                let chunk = Chunk::compute(hidden, head, targets, (start, len));
                let rows = |x: &Tensor| x.narrow(0, start, len).to_kind(Kind::Float);
                let dot = |a: &Tensor, b: Tensor| (a * b).sum_dim_intlist(-1, false, Kind::Float);
                let mut derivative = dot(&rows(tangent), &chunk.target_weights - chunk.mean(head.weight));
                if let Some(moved) = &moved {
                    let target = moved.index_select(0, &targets.narrow(0, start, len)).to_kind(Kind::Float);
                    let target = chunk.target_slope.as_ref().map_or(target.shallow_clone(), |slope| &target * slope);
                    derivative += dot(&rows(hidden), target - chunk.mean(moved));
                }
                (chunk.log_probs, derivative)
            })
            .unzip();
        if values.is_empty() {
            let empty = Tensor::zeros([0], (Kind::Float, hidden.device()));
            return (empty.shallow_clone(), empty);
        }
        (Tensor::cat(&values, 0), Tensor::cat(&derivatives, 0))
    })
}

/// Returns dL/dW of L = Σ_m slopes[m]·log p(targets[m]): [V, d], f32.
pub fn log_prob_weight_gradient(hidden: &Tensor, head: Head<'_>, targets: &Tensor, slopes: &Tensor) -> Tensor {
    let weight = head.weight;
    tch::no_grad(|| {
        let mut gradient = Tensor::zeros(weight.size(), (Kind::Float, weight.device()));
        for chunk in head.chunks(hidden) {
            let (start, len) = chunk;
            let slopes = slopes.narrow(0, start, len).unsqueeze(1);
            let h = hidden.narrow(0, start, len).to_kind(Kind::Float);
            let chunk = Chunk::compute(hidden, head, targets, chunk);
            // The factor 1 / sum goes with the rows of h, which are short.
            let pushed = (&h * (&slopes / &chunk.sums)).to_kind(weight.kind());
            let _ = gradient.g_sub_(&chunk.factors(weight.kind()).tr().matmul(&pushed));
            let of_target = match &chunk.target_slope {
                None => h * slopes,
                Some(slope) => h * slopes * slope,
            };
            let _ = gradient.index_add_(0, &targets.narrow(0, start, len), &of_target);
        }
        gradient
    })
}

/// p and p_ref of a chunk of rows, in f32, with the log of each.
struct ChunkPair {
    log_p: Tensor,
    log_ref: Tensor,
    /// The derivative of the policy's soft-cap, where there is one: [len, V], f32
    slope: Option<Tensor>,
}

/// Hidden states [m, d] with the head they go through.
pub type Rows<'a> = (&'a Tensor, Head<'a>);

impl ChunkPair {
    fn compute(policy: Rows<'_>, reference: Rows<'_>, (start, len): (i64, i64)) -> Self {
        let logits = |(hidden, head): Rows<'_>| {
            let z = hidden.narrow(0, start, len).to_kind(head.weight.kind()).matmul(&head.weight.tr());
            if head.softcap.is_some() { head.capped(z.to_kind(Kind::Float)) } else { z }
        };
        let z = logits(policy);
        ChunkPair {
            log_p: z.log_softmax(1, Kind::Float),
            log_ref: logits(reference).log_softmax(1, Kind::Float),
            slope: policy.1.slope(&z),
        }
    }

    /// dKL/dz: p − p_ref, times the cap's derivative: [len, V], f32
    fn factors(&self) -> Tensor {
        let difference = self.log_p.exp() - self.log_ref.exp();
        match &self.slope {
            None => difference,
            Some(slope) => difference * slope,
        }
    }
}

/// Returns KL(p_ref ‖ p) of each row, in log space (spec 4.4), and its gradient with respect to the policy's hidden state:
/// hidden and reference hidden are [m, d].
pub fn pulled_kl(policy: Rows<'_>, reference: Rows<'_>) -> Pulled {
    let (hidden, Head { weight, .. }) = policy;
    tch::no_grad(|| {
        let parts = chunks(hidden.size()[0], weight.size()[0], Kind::Float)
            .map(|chunk| {
                let pair = ChunkPair::compute(policy, reference, chunk);
                let pulls = pair.factors().to_kind(weight.kind()).matmul(weight).to_kind(Kind::Float);
                let terms = pair.log_ref.exp() * (pair.log_ref - pair.log_p);
                (terms.sum_dim_intlist([1i64].as_slice(), false, Kind::Float), pulls)
            })
            .collect();
        Pulled::join(parts, hidden)
    })
}

/// Returns dL/dW of L = Σ_m slopes[m]·KL_m: [V, d], f32.
pub fn kl_weight_gradient(policy: Rows<'_>, reference: Rows<'_>, slopes: &Tensor) -> Tensor {
    let (hidden, Head { weight, .. }) = policy;
    tch::no_grad(|| {
        let mut gradient = Tensor::zeros(weight.size(), (Kind::Float, weight.device()));
        for (start, len) in chunks(hidden.size()[0], weight.size()[0], Kind::Float) {
            let pair = ChunkPair::compute(policy, reference, (start, len));
            let pushed = hidden.narrow(0, start, len).to_kind(Kind::Float) * slopes.narrow(0, start, len).unsqueeze(1);
            let factors = pair.factors().to_kind(weight.kind());
            let _ = gradient.g_add_(&factors.tr().matmul(&pushed.to_kind(weight.kind())));
        }
        gradient
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const VOCABULARY: i64 = 5_000;

    #[track_caller]
    fn near(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
        let difference = (ours.to_kind(Kind::Double) - theirs).abs().max();
        let error = difference.double_value(&[]) / theirs.abs().max().double_value(&[]);
        println!("{what}: relative error {error:.1e} (at most {tolerance:.0e})");
        assert!(error < tolerance, "{what}: relative error {error:e}");
    }

    /// Over three chunks of rows, against automatic differentiation of whole softmaxes in f64 of the same weights.
    fn check(kind: Kind, softcap: Option<f64>, tolerance: f64) {
        tch::manual_seed(5);
        let weight = Tensor::randn([VOCABULARY, 8], (Kind::Float, Device::Cpu)).to_kind(kind);
        let rows = 2 * CHUNK_BYTES / (VOCABULARY * kind.elt_size_in_bytes() as i64) + 7;
        let draw = || Tensor::randn([rows, 8], (Kind::Float, Device::Cpu)).to_kind(kind);
        let (hidden, ref_hidden) = (draw(), draw());
        let targets = (Tensor::rand([rows], (Kind::Float, Device::Cpu)) * VOCABULARY as f64).to_kind(Kind::Int64);
        let slopes = Tensor::randn([rows], (Kind::Float, Device::Cpu));

        let (h, w) = (hidden.to_kind(Kind::Double), weight.to_kind(Kind::Double));
        let (h, w) = (h.copy().set_requires_grad(true), w.copy().set_requires_grad(true));
        let head = Head { weight: &weight, softcap };
        let log_softmax = |h: &Tensor, w: &Tensor| {
            let z = h.matmul(&w.tr());
            let z = softcap.map_or(z.shallow_clone(), |cap| (z / cap).tanh() * cap);
            z.log_softmax(1, Kind::Double)
        };
        let expected = log_softmax(&h, &w).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        let by_hidden = Tensor::run_backward(&[expected.sum(Kind::Double)], &[&h], true, false);
        let by_weight = Tensor::run_backward(&[(&expected * &slopes).sum(Kind::Double)], &[&w], false, false);
        let ours = pulled_log_probs(&hidden, head, &targets);
        near("values", &ours.values, &expected, tolerance);
        assert_eq!(ours.values, log_probs(&hidden, head, &targets));
        near("pulls", &ours.pulls, &by_hidden[0], tolerance);
        let gradient = log_prob_weight_gradient(&hidden, head, &targets, &slopes);
        near("gradient of the weight", &gradient, &by_weight[0], tolerance);

        // What moves, against central differences in f64.
        let (tangent, moved) = (draw(), Tensor::randn(weight.size(), (Kind::Float, Device::Cpu)));
        let still = tangent.zeros_like();
        for (what, tangent, moved) in
            [("h moves", &tangent, None), ("W moves", &still, Some(&moved)), ("both move", &tangent, Some(&moved))]
        {
            let at = |step: f64| {
                let h = hidden.to_kind(Kind::Double) + tangent.to_kind(Kind::Double) * step;
                let w = weight.to_kind(Kind::Double);
                let w = moved.map_or(w.shallow_clone(), |moved| &w + moved.to_kind(Kind::Double) * step);
                log_softmax(&h, &w).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1)
            };
            let expected = (at(1e-4) - at(-1e-4)) / 2e-4;
            let (values, derivative) = log_probs_along(&hidden, tangent, head, moved, &targets);
            assert_eq!(values, ours.values);
            near(what, &derivative, &expected, tolerance);
        }

        let log_ref = log_softmax(&ref_hidden.to_kind(Kind::Double), &weight.to_kind(Kind::Double));
        let terms = log_ref.exp() * (&log_ref - log_softmax(&h, &w));
        let expected = terms.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        let by_hidden = Tensor::run_backward(&[expected.sum(Kind::Double)], &[&h], true, false);
        let by_weight = Tensor::run_backward(&[(&expected * &slopes).sum(Kind::Double)], &[&w], false, false);
        let (own, reference) = ((&hidden, head), (&ref_hidden, head));
        let ours = pulled_kl(own, reference);
        near("values", &ours.values, &expected, tolerance);
        near("pulls", &ours.pulls, &by_hidden[0], tolerance);
        let gradient = kl_weight_gradient(own, reference, &slopes);
        near("gradient of the weight", &gradient, &by_weight[0], tolerance);
    }

    #[test]
    fn chunks_have_the_values_and_gradients_of_whole_softmaxes() {
        check(Kind::Float, None, 1e-5);
    }

    #[test]
    fn capped_chunks_have_the_values_and_gradients_of_whole_softmaxes() {
        check(Kind::Float, Some(2.0), 1e-5);
    }

    #[test]
    fn bf16_heads_are_as_near_as_bf16_allows() {
        if crate::placement::native_bf16(Device::Cpu) {
            check(Kind::BFloat16, None, 2e-2);
            check(Kind::BFloat16, Some(2.0), 2e-2);
        }
    }
}
