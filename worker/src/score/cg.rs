//! Conjugate gradients: (H + γI)·x = b for a positive semi-definite H of which only products are known, with a
//! preconditioner.

use super::vector::Vector;
use crate::error::Result;

/// When the solver ends.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Iterations at most.
    pub iterations: usize,
    /// ‖b − (H + γI)x‖ / ‖b‖ at which it is good enough.
    pub tolerance: f64,
}

/// What it came to.
#[derive(Debug)]
pub struct Solution {
    /// x
    pub x: Vector,
    /// Products with H that were needed.
    pub iterations: usize,
}

/// Solves by conjugate gradients from x = 0; `product` returns H·p, `precondition` about (H + γI)⁻¹·r. Ends early where
/// rounding has used up the curvature along a direction.
///
/// # Errors
/// Those of `product`.
pub fn solve(
    mut product: impl FnMut(&Vector) -> Result<Vector>,
    precondition: impl Fn(&Vector) -> Vector,
    gamma: f64,
    b: &Vector,
    limits: Limits,
) -> Result<Solution> {
    let (mut x, mut r) = (b.zeros_like(), b.copy());
    let size = b.norm();
    let mut z = precondition(&r);
    let mut p = z.copy();
    let mut rz = r.dot(&z);
    let mut iterations = 0;
    let mut residual = r.norm() / size;
    while iterations < limits.iterations && residual > limits.tolerance {
        let mut along = product(&p)?;
        along.add(gamma, &p);
        iterations += 1;
        let curvature = p.dot(&along);
        if curvature <= 0.0 || !curvature.is_finite() {
            break;
        }
        let step = rz / curvature;
        x.add(step, &p);
        r.add(-step, &along);
        residual = r.norm() / size;
        z = precondition(&r);
        let next = r.dot(&z);
        p.scale(next / rz);
        p.add(1.0, &z);
        rz = next;
    }
    Ok(Solution { x, iterations })
}
