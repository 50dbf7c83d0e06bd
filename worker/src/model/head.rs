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
//! the target, small where it matters.

use tch::{Kind, Tensor};

/// Bytes of a chunk's logits. Smaller ones read the weight more often, larger ones are given back to the system.
const CHUNK_BYTES: i64 = 24 << 20;

fn chunks(rows: i64, vocabulary: i64, kind: Kind) -> impl Iterator<Item = (i64, i64)> {
    let bytes_of_row = vocabulary * kind.elt_size_in_bytes() as i64;
    let size = (CHUNK_BYTES / bytes_of_row).max(1);
    (0..rows).step_by(size as usize).map(move |start| (start, size.min(rows - start)))
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
    /// Sum of each row: [len, 1], f32
    sums: Tensor,
    /// log p(target): [len], f32
    log_probs: Tensor,
    /// W[target]: [len, d], f32
    target_weights: Tensor,
}

impl Chunk {
    fn compute(hidden: &Tensor, weight: &Tensor, targets: &Tensor, (start, len): (i64, i64)) -> Self {
        let (h, y) = (hidden.narrow(0, start, len), targets.narrow(0, start, len));
        let target_weights = weight.index_select(0, &y).to_kind(Kind::Float);
        let exact = Tensor::linalg_vecdot(&h.to_kind(Kind::Float), &target_weights, -1).unsqueeze(1);
        let shift = -exact.to_kind(weight.kind());
        // What rounding the shift has left of the target's logit.
        let of_target = exact + shift.to_kind(Kind::Float);
        let shift = shift.expand([len, weight.size()[0]], false);
        let mut z = shift.addmm(&h.to_kind(weight.kind()), &weight.tr());
        let largest = z.amax([1i64].as_slice(), true);
        let mut unnormalised = z.g_sub_(&largest).exp_();
        let of_target = of_target - largest.to_kind(Kind::Float);
        let column = y.unsqueeze(1);
        let _ = unnormalised.scatter_(1, &column, &of_target.exp().to_kind(weight.kind()));
        let rounded = unnormalised.gather(1, &column, false).to_kind(Kind::Float);
        let sums = unnormalised.sum_dim_intlist([1i64].as_slice(), true, Kind::Float) - rounded + of_target.exp();
        let log_probs = (of_target - sums.log()).squeeze_dim(1);
        Chunk { unnormalised, sums, log_probs, target_weights }
    }
}

/// Returns log p(target) of each row: hidden [m, d], weight [V, d], targets [m] to [m], f32. No gradient is recorded.
pub fn log_probs(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Tensor {
    tch::no_grad(|| {
        let parts: Vec<Tensor> = chunks(hidden.size()[0], weight.size()[0], weight.kind())
            .map(|chunk| Chunk::compute(hidden, weight, targets, chunk).log_probs)
            .collect();
        if parts.is_empty() { Tensor::zeros([0], (Kind::Float, hidden.device())) } else { Tensor::cat(&parts, 0) }
    })
}

/// Returns log p(target) of each row and its gradient with respect to the row's hidden state.
pub fn pulled_log_probs(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Pulled {
    tch::no_grad(|| {
        let parts = chunks(hidden.size()[0], weight.size()[0], weight.kind())
            .map(|chunk| {
                let chunk = Chunk::compute(hidden, weight, targets, chunk);
                let mean = chunk.unnormalised.matmul(weight).to_kind(Kind::Float) / chunk.sums;
                (chunk.log_probs, chunk.target_weights - mean)
            })
            .collect();
        Pulled::join(parts, hidden)
    })
}

/// Returns dL/dW of L = Σ_m slopes[m]·log p(targets[m]): [V, d], f32.
pub fn log_prob_weight_gradient(hidden: &Tensor, weight: &Tensor, targets: &Tensor, slopes: &Tensor) -> Tensor {
    tch::no_grad(|| {
        let mut gradient = Tensor::zeros(weight.size(), (Kind::Float, weight.device()));
        for chunk in chunks(hidden.size()[0], weight.size()[0], weight.kind()) {
            let (start, len) = chunk;
            let slopes = slopes.narrow(0, start, len).unsqueeze(1);
            let h = hidden.narrow(0, start, len).to_kind(Kind::Float);
            let chunk = Chunk::compute(hidden, weight, targets, chunk);
            // The factor 1 / sum goes with the rows of h, which are short.
            let pushed = (&h * (&slopes / chunk.sums)).to_kind(weight.kind());
            let _ = gradient.g_sub_(&chunk.unnormalised.tr().matmul(&pushed));
            let _ = gradient.index_add_(0, &targets.narrow(0, start, len), &(h * slopes));
        }
        gradient
    })
}

/// p and p_ref of a chunk of rows, in f32, with the log of each.
struct ChunkPair {
    log_p: Tensor,
    log_ref: Tensor,
}

impl ChunkPair {
    fn compute(
        (hidden, weight): (&Tensor, &Tensor),
        (ref_hidden, ref_weight): (&Tensor, &Tensor),
        (start, len): (i64, i64),
    ) -> Self {
        let log_softmax = |hidden: &Tensor, weight: &Tensor| {
            hidden.narrow(0, start, len).to_kind(weight.kind()).matmul(&weight.tr()).log_softmax(1, Kind::Float)
        };
        ChunkPair { log_p: log_softmax(hidden, weight), log_ref: log_softmax(ref_hidden, ref_weight) }
    }

    /// p − p_ref: [len, V], f32
    fn difference(&self) -> Tensor {
        self.log_p.exp() - self.log_ref.exp()
    }
}

/// Returns KL(p_ref ‖ p) of each row, in log space (spec 4.4), and its gradient with respect to the policy's hidden state:
/// hidden and reference hidden are [m, d].
pub fn pulled_kl(policy: (&Tensor, &Tensor), reference: (&Tensor, &Tensor)) -> Pulled {
    let (hidden, weight) = policy;
    tch::no_grad(|| {
        let parts = chunks(hidden.size()[0], weight.size()[0], Kind::Float)
            .map(|chunk| {
                let pair = ChunkPair::compute(policy, reference, chunk);
                let pulls = pair.difference().to_kind(weight.kind()).matmul(weight).to_kind(Kind::Float);
                let terms = pair.log_ref.exp() * (pair.log_ref - pair.log_p);
                (terms.sum_dim_intlist([1i64].as_slice(), false, Kind::Float), pulls)
            })
            .collect();
        Pulled::join(parts, hidden)
    })
}

/// Returns dL/dW of L = Σ_m slopes[m]·KL_m: [V, d], f32.
pub fn kl_weight_gradient(policy: (&Tensor, &Tensor), reference: (&Tensor, &Tensor), slopes: &Tensor) -> Tensor {
    let (hidden, weight) = policy;
    tch::no_grad(|| {
        let mut gradient = Tensor::zeros(weight.size(), (Kind::Float, weight.device()));
        for (start, len) in chunks(hidden.size()[0], weight.size()[0], Kind::Float) {
            let pair = ChunkPair::compute(policy, reference, (start, len));
            let pushed = hidden.narrow(0, start, len).to_kind(Kind::Float) * slopes.narrow(0, start, len).unsqueeze(1);
            let difference = pair.difference().to_kind(weight.kind());
            let _ = gradient.g_add_(&difference.tr().matmul(&pushed.to_kind(weight.kind())));
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
    fn check(kind: Kind, tolerance: f64) {
        tch::manual_seed(5);
        let weight = Tensor::randn([VOCABULARY, 8], (Kind::Float, Device::Cpu)).to_kind(kind);
        let rows = 2 * CHUNK_BYTES / (VOCABULARY * kind.elt_size_in_bytes() as i64) + 7;
        let draw = || Tensor::randn([rows, 8], (Kind::Float, Device::Cpu)).to_kind(kind);
        let (hidden, ref_hidden) = (draw(), draw());
        let targets = (Tensor::rand([rows], (Kind::Float, Device::Cpu)) * VOCABULARY as f64).to_kind(Kind::Int64);
        let slopes = Tensor::randn([rows], (Kind::Float, Device::Cpu));

        let (h, w) = (hidden.to_kind(Kind::Double), weight.to_kind(Kind::Double));
        let (h, w) = (h.copy().set_requires_grad(true), w.copy().set_requires_grad(true));
        let log_softmax = |h: &Tensor, w: &Tensor| h.matmul(&w.tr()).log_softmax(1, Kind::Double);
        let expected = log_softmax(&h, &w).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        let by_hidden = Tensor::run_backward(&[expected.sum(Kind::Double)], &[&h], true, false);
        let by_weight = Tensor::run_backward(&[(&expected * &slopes).sum(Kind::Double)], &[&w], false, false);
        let ours = pulled_log_probs(&hidden, &weight, &targets);
        near("values", &ours.values, &expected, tolerance);
        assert_eq!(ours.values, log_probs(&hidden, &weight, &targets));
        near("pulls", &ours.pulls, &by_hidden[0], tolerance);
        let gradient = log_prob_weight_gradient(&hidden, &weight, &targets, &slopes);
        near("gradient of the weight", &gradient, &by_weight[0], tolerance);

        let log_ref = log_softmax(&ref_hidden.to_kind(Kind::Double), &weight.to_kind(Kind::Double));
        let terms = log_ref.exp() * (&log_ref - log_softmax(&h, &w));
        let expected = terms.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        let by_hidden = Tensor::run_backward(&[expected.sum(Kind::Double)], &[&h], true, false);
        let by_weight = Tensor::run_backward(&[(&expected * &slopes).sum(Kind::Double)], &[&w], false, false);
        let (own, reference) = ((&hidden, &weight), (&ref_hidden, &weight));
        let ours = pulled_kl(own, reference);
        near("values", &ours.values, &expected, tolerance);
        near("pulls", &ours.pulls, &by_hidden[0], tolerance);
        let gradient = kl_weight_gradient(own, reference, &slopes);
        near("gradient of the weight", &gradient, &by_weight[0], tolerance);
    }

    #[test]
    fn chunks_have_the_values_and_gradients_of_whole_softmaxes() {
        check(Kind::Float, 1e-5);
    }

    #[test]
    fn bf16_heads_are_as_near_as_bf16_allows() {
        if crate::model::decoder::native_bf16(Device::Cpu) {
            check(Kind::BFloat16, 2e-2);
        }
    }
}
