//! Contradictions between the options of impact scores, and between these and the training's.

use super::keys::Options;

/// Returns whether scores take the curvature of the records' loss into account.
pub(super) fn is_curved(score: &Options) -> bool {
    score.text("curvature") == Some("cg")
}

fn is_above_one(options: &Options, key: &str) -> bool {
    options.number(key).is_some_and(|count| count > 1.0)
}

/// Returns the contradictions of a variant: keys with what is wrong with them.
pub(super) fn contradictions(score: &Options, train: &Options) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let is_curved = is_curved(score);
    let has_seeds = is_above_one(score, "score_seeds");
    let has_space = score.text("score_space").is_some_and(|space| space != "adapter");
    let leaves_out = score.is_on("leave_gold_out");
    if has_seeds && has_space {
        found.push(("score_seeds", "averages over adapters; the other values of score_space have no seed".to_owned()));
    }
    if has_seeds && train.has("init_adapter") {
        found.push(("score_seeds", "averages over fresh adapters; init_adapter gives one".to_owned()));
    }
    if is_curved && leaves_out {
        let problem = "contradicts curvature = \"cg\": every record of the gold batch would need a solution of its own";
        found.push(("leave_gold_out", problem.to_owned()));
    }
    for key in ["curvature_sample", "cg_iterations", "cg_tolerance", "cg_rank"] {
        if !is_curved && score.has(key) {
            found.push((key, "has an effect with curvature = \"cg\" only".to_owned()));
        }
    }
    let rounds = if is_above_one(train, "u2a_rounds") { "u2a_rounds" } else { "rescore_every" };
    if !train.has(rounds) {
        return found;
    }
    for (is_set, key, problem) in [
        (leaves_out, "leave_gold_out", "count a record's own gold pairs"),
        (has_seeds, "score_seeds", "are taken at the adapter that is trained"),
        (has_space, "score_space", "are taken at the adapter that is trained"),
        (is_curved, "curvature", "are taken along the gold gradient itself"),
    ] {
        if is_set {
            found.push((rounds, format!("contradicts {key}: the scores of a round {problem}")));
        }
    }
    found
}
