//! Contradictions between the options of impact scores, and between these and the training's.

use super::check::Layers;
use super::keys::Options;
use super::problems::Problems;

/// Returns whether scores take the curvature of the records' loss into account.
pub(super) fn is_curved(score: &Options) -> bool {
    score.text("curvature") == Some("cg")
}

/// The worker takes no more adapters.
const MOST_SEEDS: f64 = 100.0;

fn is_above_one(options: &Options, key: &str) -> bool {
    options.number(key).is_some_and(|count| count > 1.0)
}

/// Checks a variant's options of scores against each other and against the training's.
pub(super) fn variant(
    (score, of_score): (&Options, &Layers<'_>),
    (train, of_train): (&Options, &Layers<'_>),
    problems: &mut Problems<'_>,
) {
    let mut refuse = |layers: &Layers<'_>, key: &str, problem: &str| {
        let (place, name) = layers.find(key);
        problems.add(place, &name, problem);
    };
    let is_curved = is_curved(score);
    let has_seeds = is_above_one(score, "score_seeds");
    let has_space = score.text("score_space").is_some_and(|space| space != "adapter");
    let leaves_out = score.is_on("leave_gold_out");
    if has_seeds && has_space {
        refuse(of_score, "score_seeds", "averages over adapters; the other values of score_space have no seed");
    }
    if has_seeds && train.has("init_adapter") {
        refuse(of_score, "score_seeds", "averages over fresh adapters; init_adapter gives one");
    }
    if score.number("score_seeds").is_some_and(|count| count > MOST_SEEDS) {
        refuse(of_score, "score_seeds", &format!("expected at most {MOST_SEEDS}"));
    }
    if is_curved && leaves_out {
        let problem = "contradicts curvature = \"cg\": every record of the gold batch would need a solution of its own";
        refuse(of_score, "leave_gold_out", problem);
    }
    for key in ["curvature_sample", "cg_iterations", "cg_tolerance", "cg_rank"] {
        if !is_curved && score.has(key) {
            refuse(of_score, key, "has an effect with curvature = \"cg\" only");
        }
    }
    let rounds = if is_above_one(train, "u2a_rounds") { "u2a_rounds" } else { "rescore_every" };
    if !train.has(rounds) {
        return;
    }
    for (is_set, key, problem) in [
        (leaves_out, "leave_gold_out", "count a record's own gold pairs"),
        (has_seeds, "score_seeds", "are taken at the adapter that is trained"),
        (has_space, "score_space", "are taken at the adapter that is trained"),
        (is_curved, "curvature", "are taken along the gold gradient itself"),
    ] {
        if is_set {
            let (_, name) = of_score.find(key);
            refuse(of_train, rounds, &format!("contradicts {name}: the scores of a round {problem}"));
        }
    }
}
