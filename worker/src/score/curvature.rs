//! The curvature of the conflict records' mean loss, and the direction (H + γI)⁻¹·g_J that it turns g_J into (spec 5.1, where
//! the published method takes γI for H + γI).
//!
//! H is the Gauss-Newton matrix of the loss as a function of the summed log-probs s: (1/n) Σ_i Σ c·(Jᵀd)(Jᵀd)ᵀ, with J = ds/dθ
//! and c·d·dᵀ the parts of d²ℓ/ds² ([`term::term_curvature`]); what the second derivatives of s themselves add is left out,
//! so H is never negative. A product H·v is one forward pass that carries v (it gives J·v) and one backward pass.

use shared::curvature::Report;
use tch::{Device, Kind, Tensor};

use super::cg::{self, Limits};
use super::point::Point;
use super::vector::Vector;
use crate::dataset;
use crate::error::{Error, Result};
use crate::measure;
use crate::objective::step::{self, Item, NotFinite, Settings};
use crate::objective::term;

/// The Gauss-Newton matrix of some records' mean loss at a point.
pub struct GaussNewton<'a> {
    point: Point<'a>,
    packs: Vec<Vec<&'a Item>>,
    /// The parts c·d·dᵀ of each item, c divided by the number of items; packs as above.
    parts: Vec<Vec<Parts>>,
}

/// Pairs of c and d.
type Parts = Vec<(f64, Vec<f64>)>;

impl<'a> GaussNewton<'a> {
    /// Prepares products for items that have their reference log-probs.
    ///
    /// # Errors
    /// A log-prob of an item is not finite.
    pub fn new(
        point: Point<'a>,
        items: &'a [Item],
        settings: &Settings,
        pack_tokens: usize,
    ) -> std::result::Result<Self, NotFinite> {
        let packs = dataset::packs(items.iter(), pack_tokens);
        let parts_of = |pack: &Vec<&Item>| {
            let reference: Vec<f64> = pack.iter().flat_map(|item| item.reference.iter().copied()).collect();
            let s = if point.is_fresh { reference } else { point.log_prob_sums(pack) };
            let mut at = 0;
            let of_item = |item: &&Item| {
                let s = &s[at..at + item.sequences.len()];
                at += s.len();
                if !s.iter().chain(&item.reference).all(|log_prob| log_prob.is_finite()) {
                    return Err(NotFinite { record: item.record, term: item.term });
                }
                let parts = term::term_curvature(item.term, settings, s, &item.reference);
                Ok(parts.into_iter().map(|(c, d)| (c / items.len() as f64, d)).collect())
            };
            pack.iter().map(of_item).collect()
        };
        let parts = packs.iter().map(parts_of).collect::<std::result::Result<_, _>>()?;
        Ok(GaussNewton { point, packs, parts })
    }

    /// Returns H·v; `beat` is called after every pack.
    ///
    /// # Errors
    /// Those of `beat`.
    pub fn product(&self, v: &Vector, beat: &mut dyn FnMut() -> Result<()>) -> Result<Vector> {
        let mut product = v.zeros_like();
        for (pack, parts) in self.packs.iter().zip(&self.parts) {
            let moved = self.point.moved(v, pack);
            let (mut slopes, mut at) = (Vec::with_capacity(moved.len()), 0);
            for (item, parts) in pack.iter().zip(parts) {
                let moved = &moved[at..at + item.sequences.len()];
                at += moved.len();
                let mut own = vec![0.0; moved.len()];
                for (c, d) in parts {
                    let along: f64 = d.iter().zip(moved).map(|(d, moved)| d * moved).sum();
                    own.iter_mut().zip(d).for_each(|(own, d)| *own += c * along * d);
                }
                slopes.extend(own);
            }
            product.add(1.0, &self.point.log_prob_gradient(pack, &slopes));
            beat()?;
        }
        Ok(product)
    }

    /// Returns the `rank` longest of the rows √c·Jᵀd whose products rᵀr add up to H, by one backward pass for every part of
    /// every item.
    ///
    /// # Errors
    /// Those of `beat`, which is called after every item.
    fn longest_rows(&self, rank: usize, beat: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Vector>> {
        let mut kept: Vec<(f64, Vector)> = Vec::with_capacity(rank + 1);
        if rank == 0 {
            return Ok(Vec::new());
        }
        for (item, parts) in self.packs.iter().flatten().zip(self.parts.iter().flatten()) {
            for (c, d) in parts {
                let mut row = self.point.log_prob_gradient(&[*item], d);
                row.scale(c.sqrt());
                let length = row.norm();
                let at = kept.partition_point(|(other, _)| *other >= length);
                kept.insert(at, (length, row));
                kept.truncate(rank);
            }
            beat()?;
        }
        Ok(kept.into_iter().map(|(_, row)| row).collect())
    }

    /// Returns v of (H + γI)·v = g, the solver preconditioned by `rank` rows of H.
    ///
    /// # Errors
    /// The rows have no room in memory or depend on each other too much for γ; those of `beat`, which is called after every
    /// pack.
    pub fn solve(
        &self,
        g: &Vector,
        gamma: f64,
        limits: Limits,
        rank: usize,
        beat: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Vector, Report)> {
        check_room(g, rank)?;
        let preconditioner = Preconditioner::new(self.longest_rows(rank, beat)?, gamma)?;
        let along_gold = self.product(g, beat)?.dot(g) / g.dot(g);
        let found = cg::solve(|p| self.product(p, beat), |r| preconditioner.apply(r), gamma, g, limits)?;
        let mut left = self.product(&found.x, beat)?;
        left.add(gamma, &found.x);
        left.add(-1.0, g);
        let residual = left.norm() / g.norm();
        let report = Report {
            records: self.packs.iter().map(Vec::len).sum(),
            gamma,
            iterations: found.iterations,
            residual,
            converged: residual <= 2.0 * limits.tolerance,
            along_gold,
            cosine: found.x.dot(g) / (found.x.norm() * g.norm()),
        };
        Ok((found.x, report))
    }
}

/// Vectors that the solver keeps beside the rows of its preconditioner.
const WORKING_VECTORS: usize = 6;

/// Makes sure that the rows of the preconditioner fit into memory.
fn check_room(g: &Vector, rank: usize) -> Result<()> {
    let of_vector = 4 * g.named().iter().map(|(_, tensor)| tensor.numel() as u64).sum::<u64>();
    let (wanted, there) = (of_vector.saturating_mul((rank + WORKING_VECTORS) as u64), measure::memory_bytes());
    if there > 0 && wanted > there {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        return Err(Error::Config(format!(
            "the curvature would keep {} gradients of {:.2} GiB each, {:.1} GiB of this machine's {:.1}: lower --cg-rank \
             (now {rank}), or take a smaller --score-space",
            rank + WORKING_VECTORS,
            gib(of_vector),
            gib(wanted),
            gib(there)
        )));
    }
    Ok(())
}

/// (γI + R·Rᵀ)⁻¹ for the longest rows of H, by Woodbury's formula: what is left of H + γI beyond it has few directions of
/// any size, and with all rows nothing is left. (The diagonal of H is no preconditioner here: H has low rank, H + γI few
/// eigenvalues, and a diagonal factor makes them many.)
struct Preconditioner {
    gamma: f64,
    /// R, [rank] vectors.
    rows: Vec<Vector>,
    /// (γI + Rᵀ·R)⁻¹: [rank, rank], f64
    inner: Tensor,
}

impl Preconditioner {
    fn new(rows: Vec<Vector>, gamma: f64) -> Result<Self> {
        let products: Vec<f64> = rows.iter().flat_map(|a| rows.iter().map(|b| a.dot(b))).collect();
        let rank = rows.len() as i64;
        let gram = Tensor::from_slice(&products).view([rank, rank]);
        let damped = gram + Tensor::eye(rank, (Kind::Double, Device::Cpu)) * gamma;
        let inner = damped.f_inverse().map_err(|_| {
            Error::Numeric(format!(
                "the {rank} gradients that precondition the curvature depend on each other too much for a damping of \
                 {gamma:e}: lower --cg-rank, or raise --lamda"
            ))
        })?;
        Ok(Preconditioner { gamma, rows, inner })
    }

    fn apply(&self, r: &Vector) -> Vector {
        let mut applied = r.copy();
        let along: Vec<f64> = self.rows.iter().map(|row| row.dot(r)).collect();
        let along = step::to_f64(&self.inner.matmul(&Tensor::from_slice(&along)));
        for (row, along) in self.rows.iter().zip(along) {
            applied.add(-along, row);
        }
        applied.scale(1.0 / self.gamma);
        applied
    }
}
