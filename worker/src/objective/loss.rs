//! The method's losses as functions of log-ratios, with their derivatives (spec 4). Plain f64 arithmetic: the head
//! turns the derivatives into gradients.

/// Which loss a preference pair gets (spec 4.1, 4.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreferenceLoss {
    /// −log σ(βΔ): the paper's formula, there called IPO.
    Dpo,
    /// (Δ − 1/(2β))²: true IPO.
    Ipo,
    /// Conservative DPO: −(1−ε) log σ(βΔ) − ε log σ(−βΔ).
    Cdpo,
    /// Robust DPO: (−(1−ε) log σ(βΔ) + ε log σ(−βΔ)) / (1 − 2ε).
    Rdpo,
}

/// A loss and its derivatives with respect to the argument named by the function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// ℓ
    pub value: f64,
    /// dℓ/d(argument)
    pub slope: f64,
    /// d²ℓ/d(argument)²
    pub curvature: f64,
}

/// Returns log σ(x) without overflow.
pub fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// Returns σ(x).
pub fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

/// Returns the preference loss at Δ = r(y⁺) − r(y⁻) and its derivatives by Δ. `epsilon` in [0, 0.5) counts for cDPO and rDPO only.
pub fn preference(kind: PreferenceLoss, beta: f64, epsilon: f64, delta: f64) -> Loss {
    let (x, right, wrong) = (beta * delta, -log_sigmoid(beta * delta), -log_sigmoid(-beta * delta));
    // d/dΔ of −log σ(βΔ) and of −log σ(−βΔ).
    let (right_slope, wrong_slope) = (-beta * sigmoid(-x), beta * sigmoid(x));
    // Both have the same second derivative, and the factors of cDPO's and rDPO's two add up to 1.
    let curvature = beta * beta * sigmoid(x) * sigmoid(-x);
    match kind {
        PreferenceLoss::Dpo => Loss { value: right, slope: right_slope, curvature },
        PreferenceLoss::Ipo => {
            let gap = delta - 1.0 / (2.0 * beta);
            Loss { value: gap * gap, slope: 2.0 * gap, curvature: 2.0 }
        }
        PreferenceLoss::Cdpo => Loss {
            value: (1.0 - epsilon) * right + epsilon * wrong,
            slope: (1.0 - epsilon) * right_slope + epsilon * wrong_slope,
            curvature,
        },
        PreferenceLoss::Rdpo => {
            let scale = 1.0 / (1.0 - 2.0 * epsilon);
            Loss {
                value: scale * ((1.0 - epsilon) * right - epsilon * wrong),
                slope: scale * ((1.0 - epsilon) * right_slope - epsilon * wrong_slope),
                curvature,
            }
        }
    }
}

/// Returns −log σ(−β·r) of one punished response and its derivatives by r, the first β·σ(βr) (spec 4.2).
pub fn punish(beta: f64, log_ratio: f64) -> Loss {
    let x = beta * log_ratio;
    Loss { value: -log_sigmoid(-x), slope: beta * sigmoid(x), curvature: beta * beta * sigmoid(x) * sigmoid(-x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PreferenceLoss::*;
    use std::f64::consts::LN_2;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn vectors_of_spec_a3() {
        // Δ or r, DPO, dDPO/dΔ, IPO, NPO, dNPO/dr at β = 0.3
        let table = [
            (-5.0, 1.701413278, -0.245272343, 44.444444444, 0.201413278, 0.054727657),
            (-1.0, 0.854355244, -0.172332755, 7.111111111, 0.554355244, 0.127667245),
            (0.0, LN_2, -0.15, 2.777777778, LN_2, 0.15),
            (1.0, 0.554355244, -0.127667245, 0.444444444, 0.854355244, 0.172332755),
            (5.0, 0.201413278, -0.054727657, 11.111111111, 1.701413278, 0.245272343),
        ];
        for (x, dpo, dpo_slope, ipo, npo, npo_slope) in table {
            close(preference(Dpo, 0.3, 0.0, x).value, dpo);
            close(preference(Dpo, 0.3, 0.0, x).slope, dpo_slope);
            close(preference(Ipo, 0.3, 0.0, x).value, ipo);
            close(punish(0.3, x).value, npo);
            close(punish(0.3, x).slope, npo_slope);
        }
        close(preference(Cdpo, 0.3, 0.1, 1.0).value, 0.584355244);
        close(preference(Rdpo, 0.3, 0.1, 1.0).value, 0.516855244);
        close(preference(Cdpo, 0.3, 0.1, -1.0).value, 0.824355244);
        close(preference(Rdpo, 0.3, 0.1, -1.0).value, 0.891855244);
    }

    #[test]
    fn derivatives_equal_finite_differences() {
        let h = 1e-5;
        for beta in [0.1, 0.3, 2.0] {
            for x in [-7.0, -0.4, 0.0, 0.3, 6.0] {
                let check = |what: &str, f: &dyn Fn(f64) -> Loss| {
                    let (low, high) = (f(x - h), f(x + h));
                    let slope = (high.value - low.value) / (2.0 * h);
                    let curvature = (high.slope - low.slope) / (2.0 * h);
                    assert!((slope - f(x).slope).abs() < 1e-6, "slope of {what} {beta} {x}");
                    assert!((curvature - f(x).curvature).abs() < 1e-6, "curvature of {what} {beta} {x}");
                };
                for kind in [Dpo, Ipo, Cdpo, Rdpo] {
                    check(&format!("{kind:?}"), &|x| preference(kind, beta, 0.2, x));
                }
                check("punish", &|x| punish(beta, x));
            }
        }
    }

    #[test]
    fn extreme_arguments_stay_finite() {
        for x in [-1e6, 1e6] {
            for kind in [Dpo, Ipo, Cdpo, Rdpo] {
                let loss = preference(kind, 0.3, 0.1, x);
                assert!(loss.value.is_finite() && loss.slope.is_finite());
            }
            assert!(punish(0.3, x).value.is_finite());
        }
    }

    #[test]
    fn epsilon_zero_is_plain_dpo() {
        for x in [-2.0, 0.0, 3.0] {
            assert_eq!(preference(Cdpo, 0.3, 0.0, x), preference(Dpo, 0.3, 0.0, x));
            assert_eq!(preference(Rdpo, 0.3, 0.0, x), preference(Dpo, 0.3, 0.0, x));
        }
    }
}
