//! Contradictions between keys, and paths that no stage makes.

use std::path::Path;

use super::document::Place;
use super::keys::Options;
use super::problems::{Problems, Table};
use super::sections::DataKind;
use super::{Located, Method, Model};

/// A value with the place and the full name of its key.
pub(super) struct Named<T> {
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) value: T,
}

/// The tables a key may come from, the one that counts first.
pub(super) struct Layers<'n>(pub(super) Vec<Table<'n>>);

impl Layers<'_> {
    /// Returns where a key was written and its full name.
    pub(super) fn find(&self, key: &str) -> (Place, String) {
        let table = self.0.iter().find(|table| table.get(key).is_some()).unwrap_or(&self.0[0]);
        (table.place(key), table.name(key))
    }
}

/// Checks a base step's settings against each other; what depends on the method only where that is known.
pub(super) fn base_step(method: Option<Method>, options: &Options, layers: &Layers<'_>, problems: &mut Problems<'_>) {
    let mut refuse = |key: &str, problem: &str| {
        let (place, name) = layers.find(key);
        problems.add(place, &name, problem);
    };
    if !options.is_on("full") {
        refuse("full", "is false; base steps train all weights, since the next step starts from a whole model");
    }
    if options.has("init_adapter") {
        refuse("init_adapter", "has no place in a base step, which trains all weights");
    }
    for key in LORA.into_iter().filter(|key| options.has(key)) {
        refuse(key, "has no place in a base step, which trains all weights");
    }
    training(method, options, layers, problems);
}

/// More rounds of U2A are refused by the worker.
const MOST_ROUNDS: f64 = 100.0;

/// Options of the method u2a.
const U2A: [&str; 4] = ["u2a_top", "u2a_rounds", "u2a_eta", "u2a_tolerance"];

const LORA: [&str; 5] = ["lora_r", "lora_alpha", "use_rslora", "lora_dropout", "lora_target_modules"];

/// Checks the settings of a variant with a training against each other; what depends on the method only where that is known.
pub(super) fn variant(method: Option<Method>, options: &Options, layers: &Layers<'_>, problems: &mut Problems<'_>) {
    let (_, full) = layers.find("full");
    let mut refuse = |key: &str, problem: String| {
        let (place, name) = layers.find(key);
        problems.add(place, &name, problem);
    };
    if options.is_on("from_scratch") {
        refuse("from_scratch", "has no place in a variant: it re-aligns the deployed model; see [[base.step]]".into());
    }
    if options.is_on("full") {
        for key in LORA.into_iter().chain(["init_adapter"]).filter(|key| options.has(key)) {
            refuse(key, format!("contradicts {full} = true: all weights are trained, there is no adapter"));
        }
    } else if options.is_on("shard_parameters") {
        refuse("shard_parameters", "has an effect with full = true only: an adapter's base is not shared out".into());
    }
    training(method, options, layers, problems);
}

fn training(method: Option<Method>, options: &Options, layers: &Layers<'_>, problems: &mut Problems<'_>) {
    let mut refuse = |key: &str, problem: String| {
        let (place, name) = layers.find(key);
        problems.add(place, &name, problem);
    };
    if let Some(loss) = options.text("loss").or(method.map(Method::own_loss)) {
        let smoothing = options.number("label_smoothing").unwrap_or(0.0);
        let smoothed = ["cdpo", "rdpo"].contains(&loss);
        if smoothed && smoothing == 0.0 {
            let key = if options.has("label_smoothing") { "label_smoothing" } else { "loss" };
            refuse(key, format!("the loss {loss} with label_smoothing 0 is plain dpo; give the noise rate, e.g. 0.1"));
        }
        if !smoothed && smoothing != 0.0 {
            refuse("label_smoothing", format!("has an effect with the losses cdpo and rdpo only; the loss is {loss}"));
        }
    }
    if let (Some(warmup), Some(steps)) = (options.number("warmup_steps"), options.number("max_steps"))
        && warmup >= steps
    {
        refuse("warmup_steps", format!("is {warmup}, the run has {steps} updates: it never reaches its learning rate"));
    }
    if let Some(method) = method.filter(|method| *method != Method::U2a) {
        for key in U2A.into_iter().filter(|key| options.has(key)) {
            refuse(key, format!("has an effect with method u2a only; the method is {}", method.name()));
        }
    }
    for key in ["u2a_top", "u2a_rounds"].into_iter().filter(|key| options.has(key)) {
        if options.is_on("uniform_weights") {
            refuse(key, "contradicts uniform_weights: it goes by the records' scores".into());
        }
    }
    if options.has("rescore_every") {
        for key in ["uniform_weights", "full"].into_iter().filter(|key| options.is_on(key)) {
            refuse("rescore_every", format!("contradicts {key}: an adapter's conflict records are weighed again"));
        }
        if let Some(method) = method.filter(|method| !method.is_weighted() || *method == Method::U2a) {
            let problem =
                "is for trace, no-kl, oracle-punish and no-triage, whose weights are scores (u2a has u2a_rounds)";
            refuse("rescore_every", format!("{problem}; the method is {}", method.name()));
        }
    }
    let rounds = options.number("u2a_rounds").unwrap_or(1.0);
    for key in ["u2a_eta", "u2a_tolerance"].into_iter().filter(|key| rounds <= 1.0 && options.has(key)) {
        refuse(key, "has no effect without u2a_rounds above 1".into());
    }
    if rounds > MOST_ROUNDS {
        refuse("u2a_rounds", format!("is {rounds}; expected 1 to {MOST_ROUNDS}"));
    } else if let Some(steps) = options.number("max_steps").filter(|steps| rounds > *steps) {
        refuse("u2a_rounds", format!("is {rounds}, the run has {steps} updates: every round needs one"));
    }
    if rounds > 1.0 {
        for key in
            ["full", "hold_until_loss"].into_iter().filter(|key| options.is_on(key) || options.number(key).is_some())
        {
            refuse(
                "u2a_rounds",
                format!("contradicts {key}: rounds score an adapter again after known numbers of updates"),
            );
        }
    }
    for (key, needed) in [
        ("replay_batch_size", "replay_json_path"),
        ("replay_weight", "replay_json_path"),
        ("eval_steps", "validation_json_path"),
        ("load_best", "validation_json_path"),
        ("hold_until_loss", "decay_steps"),
        ("decay_steps", "hold_until_loss"),
    ] {
        if options.has(key) && !options.has(needed) {
            refuse(key, format!("has no effect without {needed}"));
        }
    }
}

/// Checks that paths in the run's folder are made by one of its stages. What is not known for other problems is taken as
/// given: `corrects` says whether there are corrections.
pub(super) fn paths(paths: &[Named<Located>], data: DataKind, corrects: Option<bool>, problems: &mut Problems<'_>) {
    for Named { place, name, value } in paths {
        let Located::Run(path) = value else { continue };
        if let Err(problem) = made_by(path, data, corrects) {
            problems.add(*place, name, format!("run:{}: {problem}", path.display()));
        }
    }
}

fn made_by(path: &Path, data: DataKind, corrects: Option<bool>) -> Result<(), String> {
    let first = path.iter().next().map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    let needs = |is_there: bool, what: &str| if is_there { Ok(()) } else { Err(format!("is made only with {what}")) };
    match first.as_str() {
        "world" => needs(data.in_world != Some(false), "data.world"),
        "splits" => needs(data.is_split, "data.split"),
        "data" if path == Path::new("data/pairs.json") => needs(data.in_world != Some(true), "data.input"),
        "triage" if path == Path::new("triage/gold.json") => Ok(()),
        "triage" if path == Path::new("triage/corrected.json") => needs(corrects != Some(false), "oracle.corrections"),
        _ => Err("no stage makes it; there are world/…, data/pairs.json, triage/gold.json, triage/corrected.json \
                  and splits/…"
            .into()),
    }
}

/// Checks that the folder of a model that is not drawn holds weights.
pub(super) fn weights(paths: &[Named<Located>], model: &Model, problems: &mut Problems<'_>) {
    let Located::Outside(folder) = &model.path else { return };
    let has_weights =
        ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| folder.join(name).exists());
    if has_weights || !folder.join("config.json").exists() {
        return;
    }
    if let Some(Named { place, name, .. }) = paths.iter().find(|named| named.value == model.path) {
        let problem = format!("{} holds no weights (model.safetensors or its index)", folder.display());
        problems.add(*place, name, problem);
    }
}
