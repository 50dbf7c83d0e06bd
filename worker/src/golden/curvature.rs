//! The curvature and the directions it makes: against explicit matrices of per-item gradients, and a dense solve.

use super::scores::give_b_values;
use super::*;
use crate::objective::loss::{self, PreferenceLoss};
use crate::objective::method::{Method, Recipe};
use crate::objective::step::{self, Item, Settings};
use crate::score::cg::Limits;
use crate::score::curvature::GaussNewton;
use crate::score::options::ScoreSpace;
use crate::score::point::Point;
use crate::score::vector::Vector;
use shared::quality::Filter;

const SETTINGS: Settings =
    Settings { beta: 0.3, epsilon: 0.0, alpha_kl: 0.0, loss: PreferenceLoss::Dpo, nll_weight: 0.0 };

/// The conflict's items of the golden records, with their reference log-probs.
fn conflict(decoder: &Decoder, method: Method) -> Vec<Item> {
    let recipe = Recipe { method, alpha_kl: 0.0, filter: Filter::default() };
    let items = data_set(records()).items(&encoder(MaskMode::Exact), &recipe, 256).unwrap();
    with_references(decoder, items.into_iter().flatten().collect())
}

fn flat(vector: &Vector) -> Vec<f64> {
    vector.named().iter().flat_map(|(_, tensor)| step::to_f64(tensor)).collect()
}

/// A vector of the adapter's space with random numbers where its gradients can have some.
fn random(point: Point<'_>) -> Vector {
    let vector = point.zeros();
    let mut random = shared::keyed_random::KeyedRandom::new(&[23]);
    for (name, tensor) in vector.named() {
        if point.is_fresh && name.contains("lora_A") {
            continue;
        }
        let values: Vec<f32> = (0..tensor.numel()).map(|_| random.normal() as f32).collect();
        tensor.shallow_clone().copy_(&Tensor::from_slice(&values).view(tensor.size().as_slice()));
    }
    vector
}

/// Both points of a model: a fresh adapter, and one that computes something.
fn at_points(check: impl Fn(&str, Point<'_>)) {
    let decoder = decoder("tied");
    let fresh = adapter(&decoder, "adapter-start");
    check("fresh", Point { decoder: &decoder, adapter: &fresh, is_fresh: true, space: ScoreSpace::Adapter });
    let moved = adapter(&decoder, "adapter-start");
    give_b_values(&moved);
    check("moved", Point { decoder: &decoder, adapter: &moved, is_fresh: false, space: ScoreSpace::Adapter });
}

/// The rows √(c/n)·Jᵀd of the matrix, [m, parameters] in f64. A record's own loss has the gradient slope·Jᵀd, whatever the
/// loss, so the rows come from the gradients of losses, one response at a time.
fn rows(point: Point<'_>, items: &[Item]) -> Tensor {
    let mut rows = Vec::new();
    for item in items {
        let singles: Vec<Item> = match item.term {
            Term::PunishBoth => (0..2)
                .map(|at| Item {
                    term: Term::PunishOne([Part::Chosen, Part::Rejected][at]),
                    sequences: vec![item.sequences[at].clone()],
                    reference: vec![item.reference[at]],
                    ..item.clone()
                })
                .collect(),
            _ => vec![item.clone()],
        };
        for item in singles {
            let (_, gradient) = point.gradient(std::slice::from_ref(&item), &SETTINGS, 1, &mut || Ok(())).unwrap();
            let s = point.log_prob_sums(&[&item]);
            let ratios: Vec<f64> = s.iter().zip(&item.reference).map(|(s, r)| s - r).collect();
            let l = match item.term {
                Term::Prefer(..) => loss::preference(PreferenceLoss::Dpo, SETTINGS.beta, 0.0, ratios[0] - ratios[1]),
                _ => loss::punish(SETTINGS.beta, ratios[0]),
            };
            let factor = (l.curvature / items.len() as f64).sqrt() / l.slope;
            rows.push(Tensor::from_slice(&flat(&gradient)) * factor);
        }
    }
    Tensor::stack(&rows, 0)
}

fn to_list(tensor: &Tensor) -> Vec<f64> {
    step::to_f64(&tensor.flatten(0, -1))
}

#[test]
fn products_are_those_of_the_explicit_matrix() {
    at_points(|name, point| {
        for method in [Method::Trace, Method::NoTriage] {
            let items = conflict(point.decoder, method);
            let rows = rows(point, &items);
            let matrix = GaussNewton::new(point, &items, &SETTINGS, 300).unwrap();
            let v = random(point);
            let product = matrix.product(&v, &mut || Ok(())).unwrap();
            let expected = rows.tr().matmul(&rows.matmul(&Tensor::from_slice(&flat(&v))));
            close(&format!("{name}, {method:?}: product"), &flat(&product), &to_list(&expected), 1e-5);
        }
    });
}

/// Dampings from one that leaves little of the curvature to one far below it, where rounding in f32 allows a larger
/// residual: it is of the size of the largest eigenvalue.
#[test]
fn the_solver_finds_the_dense_solution() {
    at_points(|name, point| {
        let items = conflict(point.decoder, Method::Trace);
        let rows = rows(point, &items);
        let matrix = GaussNewton::new(point, &items, &SETTINGS, 300).unwrap();
        let g = random(point);
        let dense = rows.tr().matmul(&rows);
        let size = dense.size()[0];
        let largest = rows.matmul(&rows.tr()).linalg_eigvalsh("L").max().double_value(&[]);
        for (share, tolerance) in [(10.0, 1e-6), (1.0, 1e-6), (1e-2, 1e-5), (1e-3, 1e-4)] {
            let gamma = share * largest;
            let damped = &dense + Tensor::eye(size, (Kind::Double, Device::Cpu)) * gamma;
            let expected = Tensor::linalg_solve(&damped, &Tensor::from_slice(&flat(&g)), true);
            let limits = Limits { iterations: 50, tolerance };
            let mut report = None;
            // Without a preconditioner, with a part of the rows, and with all of them, which leave the solver nothing.
            for rank in [0, 3, 100] {
                let (x, found) = matrix.solve(&g, gamma, limits, rank, &mut || Ok(())).unwrap();
                println!("{name}: γ {share} of the largest eigenvalue, rank {rank}: {found:?}");
                assert!(found.converged && (rank < 100 || found.iterations <= 3), "{found:?}");
                close(&format!("{name}, γ {share}, rank {rank}"), &flat(&x), &to_list(&expected), 1e-5);
                report = Some(found);
            }
            let report = report.unwrap();
            let product = rows.matmul(&Tensor::from_slice(&flat(&g)));
            let along = product.square().sum(Kind::Double).double_value(&[]) / g.dot(&g);
            assert!((report.along_gold / along - 1.0).abs() < 1e-4, "{} is not {along}", report.along_gold);
        }
    });
}

/// A γ far above the curvature is the published method: v points where g_J does.
#[test]
fn a_large_damping_leaves_the_direction() {
    at_points(|name, point| {
        let items = conflict(point.decoder, Method::Trace);
        let matrix = GaussNewton::new(point, &items, &SETTINGS, 300).unwrap();
        let g = random(point);
        let limits = Limits { iterations: 50, tolerance: 1e-6 };
        let along = matrix.product(&g, &mut || Ok(())).unwrap().dot(&g) / g.dot(&g);
        let (x, report) = matrix.solve(&g, 1e6 * along, limits, 2, &mut || Ok(())).unwrap();
        assert!((report.cosine - 1.0).abs() < 1e-4, "{name}: {report:?}");
        let expected: Vec<f64> = flat(&g).iter().map(|g| g / (1e6 * along)).collect();
        close(name, &flat(&x), &expected, 1e-3);
        let (_, report) = matrix.solve(&g, 1e-2 * along, limits, 2, &mut || Ok(())).unwrap();
        assert!(report.cosine < 0.9999, "{name}: a small γ changes the direction: {report:?}");
    });
}

#[test]
fn a_record_without_a_finite_log_prob_is_named() {
    at_points(|name, point| {
        let mut items = conflict(point.decoder, Method::Trace);
        items[1].reference[0] = f64::NAN;
        let found = GaussNewton::new(point, &items, &SETTINGS, 300).err().map(|bad| bad.record);
        assert_eq!(found, Some(items[1].record), "{name}");
    });
}

/// Rows that are multiples of each other leave nothing but γ to be inverted.
#[test]
fn rows_that_depend_on_each_other_are_an_error_or_solved() {
    at_points(|name, point| {
        let one = conflict(point.decoder, Method::Trace).remove(0);
        let items: Vec<Item> = std::iter::repeat_n(one, 3).collect();
        let matrix = GaussNewton::new(point, &items, &SETTINGS, 300).unwrap();
        let g = random(point);
        let limits = Limits { iterations: 50, tolerance: 1e-6 };
        match matrix.solve(&g, 1e-30, limits, 3, &mut || Ok(())) {
            Ok((_, report)) => println!("{name}: {report:?}"),
            Err(error) => assert!(error.to_string().contains("--cg-rank"), "{name}: {error}"),
        }
    });
}
