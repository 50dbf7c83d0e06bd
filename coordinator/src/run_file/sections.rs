//! Reads the tables of a run file.

use std::path::{Path, PathBuf};

use shared::weights::WeightNorm;

use super::check::{self, Layers};
use super::document::{Node, Value};
use super::keys::{Options, Section, Setting};
use super::problems::{Problems, Table, expected_words, nearest};
use super::scoring;
use super::values::{Expected, Reader};
use super::{
    BASE, BaseStep, Data, Eval, Located, Method, Model, Part, Run, RunFile, Score, Source, Split, Train, Variant,
};

/// Keys whose values are paths.
pub(super) const PATH_KEYS: [&str; 13] = [
    "path",
    "data",
    "input",
    "policy",
    "mock",
    "prices",
    "endpoints",
    "canary",
    "prompts",
    "gold",
    "init_adapter",
    "replay_json_path",
    "validation_json_path",
];
const TABLES: [&str; 9] = ["run", "model", "base", "data", "oracle", "score", "train", "eval", "variant"];
const RUN: [&str; 5] = ["name", "seed", "world_size", "min_workers", "exact_world"];
const DATA: [&str; 7] = ["world", "input", "num_samples", "split", "train1_size", "train2_size", "group_by_prompt"];
const SCORE: [&str; 6] = ["gold", "gold_batch_size", "gold_seed", "lamda", "weight_norm", "shard_records"];
const TRAIN: [&str; 1] = ["part"];
const EVAL: [&str; 4] = ["prompts", "merge", "sample_size", "shard_prompts"];
const VARIANT: [&str; 5] = ["name", "method", "score", "train", "eval"];
const STEP: [&str; 3] = ["name", "method", "data"];

const WORLD: &str = "policy-shift";
/// Reads all tables; none where something needed is missing. What is wrong is added to `problems`: all of it, so a problem
/// keeps back only the checks that would mean nothing because of it.
pub(super) fn read(root: &Table<'_>, folder: &Path, problems: &mut Problems<'_>) -> Option<RunFile> {
    problems.unknown_keys(root, &TABLES);
    let empty = Node { value: Value::Table(Vec::new()), place: root.node.place };
    let mut reader = Reader { folder, problems, paths: Vec::new() };
    let mut section = |name: &str| {
        let table = reader.problems.table(root, name);
        table.unwrap_or(Table { path: name.to_owned(), node: &empty })
    };
    let [run, model, base, data, oracle] = ["run", "model", "base", "data", "oracle"].map(&mut section);
    let [score, train, eval] = ["score", "train", "eval"].map(section);

    let run = reader.run(&run);
    let known = DataKind::of(&data);
    let data = reader.data(&data);
    let model = reader.model(&model, known.in_world);
    let seed = run.as_ref().map_or(42, |run| run.seed);
    let base = reader.base(&base, seed);
    let oracle = reader.oracle(&oracle, known.in_world);
    let (variants, all_variants) = reader.variants(root, &Globals { score, train, eval, known, seed });
    let paths = std::mem::take(&mut reader.paths);

    let needs_corrections = |variant: &Variant| variant.method.is_some_and(Method::needs_corrections);
    let corrects =
        match oracle.as_ref().is_some_and(|oracle| oracle.corrections) || variants.iter().any(needs_corrections) {
            true => Some(true),
            false => (oracle.is_some() && all_variants).then_some(false),
        };
    check::paths(&paths, known, corrects, problems);
    if let Some(model) = model.as_ref().filter(|_| !base.draws_weights) {
        check::weights(&paths, model, problems);
    }
    if !base.all_steps || !all_variants {
        return None;
    }
    Some(RunFile { run: run?, model: model?, base: base.steps, data: data?, oracle: oracle?, variants })
}

/// What the data are, as far as the keys that are there tell, whatever is wrong with their values.
#[derive(Debug, Clone, Copy)]
pub(super) struct DataKind {
    /// None where both kinds are named, or none.
    pub(super) in_world: Option<bool>,
    pub(super) is_split: bool,
}

impl DataKind {
    fn of(data: &Table<'_>) -> DataKind {
        let [world, input] = ["world", "input"].map(|key| data.get(key).is_some());
        DataKind { in_world: (world != input).then_some(world), is_split: data.get("split").is_some() }
    }
}

/// The base steps that could be read.
struct Base {
    steps: Vec<BaseStep>,
    all_steps: bool,
    /// The first step draws its weights: the model needs none.
    draws_weights: bool,
}

/// The tables that variants override, and what they depend on.
struct Globals<'n> {
    score: Table<'n>,
    train: Table<'n>,
    eval: Table<'n>,
    known: DataKind,
    seed: u64,
}

impl Reader<'_, '_> {
    fn run(&mut self, table: &Table<'_>) -> Option<Run> {
        self.problems.unknown_keys(table, &RUN);
        let seed = self.problems.count(table, "seed", 0).unwrap_or(42);
        let world_size = self.problems.count(table, "world_size", 1).map(|size| size.min(u64::from(u32::MAX)) as u32);
        let min_workers = self.min_workers(table, world_size);
        let name = self.needed(table, "name", "the name of the run and of its folder")?;
        let name = self.folder_name(table, "name", name)?;
        Some(Run { name, seed, world_size, min_workers })
    }

    /// Reads with how few workers training may go on. An exact world, in which it waits for all of them, is the default.
    fn min_workers(&mut self, table: &Table<'_>, world_size: Option<u32>) -> Option<u32> {
        let exact = self.problems.flag(table, "exact_world");
        let least = self.problems.count(table, "min_workers", 1);
        match (exact, least) {
            (Some(true), Some(_)) => {
                let problem = "contradicts run.exact_world = true, with which training waits for all its workers; keep \
                               one of the two";
                return self.problems.wrong(table, "min_workers", problem);
            }
            (Some(false), None) if table.get("min_workers").is_none() => {
                let problem = "is false; say with how few workers training may go on: min_workers = 1";
                return self.problems.wrong(table, "exact_world", problem);
            }
            _ => {}
        }
        let least = least?;
        match world_size {
            Some(size) if least > u64::from(size) => {
                self.problems.wrong(table, "min_workers", format!("is {least}, but run.world_size is {size}"))
            }
            None if table.get("world_size").is_none() => {
                let problem = "has no effect without run.world_size, the number of workers that training wants";
                self.problems.wrong(table, "min_workers", problem)
            }
            _ => Some(least.min(u64::from(u32::MAX)) as u32),
        }
    }

    fn model(&mut self, table: &Table<'_>, in_world: Option<bool>) -> Option<Model> {
        let options = self.options(table, Section::Model, &["path"]);
        if table.get("path").is_none() {
            return match in_world? {
                true => Some(Model { path: Located::Run("world/model".into()), options }),
                false => self.missing(table, "path", "a model folder in Hugging Face layout"),
            };
        }
        let path = self.located(table, "path", Expected::Model)?;
        Some(Model { path, options })
    }

    fn data(&mut self, table: &Table<'_>) -> Option<Data> {
        self.problems.unknown_keys(table, &DATA);
        let split = self.split(table);
        let num_samples = self.problems.count(table, "num_samples", 1);
        let world = self.problems.choice(table, "world", &[WORLD]);
        let input = self.problems.strings(table, "input");
        match (table.get("world").is_some(), table.get("input").is_some()) {
            (true, true) => self.problems.wrong(table, "input", "contradicts data.world; keep one of the two"),
            (true, false) => {
                if table.get("num_samples").is_some() {
                    let problem = "has no effect on a world; it goes with data.input";
                    self.problems.wrong::<()>(table, "num_samples", problem);
                }
                world.and(split).map(|split| Data { source: Source::PolicyShift, split })
            }
            (false, true) => {
                let files: Vec<PathBuf> = input?.iter().map(|file| self.folder.join(file)).collect();
                for file in files.iter().filter(|file| !file.is_file()) {
                    self.problems.wrong::<()>(table, "input", format!("there is no file {}", file.display()));
                }
                Some(Data { source: Source::Input { files, num_samples }, split: split? })
            }
            (false, false) => {
                let problem = format!("is missing; name files of pairs, or world = \"{WORLD}\" for the example world");
                self.problems.wrong(table, "input", problem)
            }
        }
    }

    /// Reads how to split; `Some(None)` for not at all.
    fn split(&mut self, table: &Table<'_>) -> Option<Option<Split>> {
        if table.get("split").is_none() {
            for key in ["train1_size", "train2_size", "group_by_prompt"] {
                if table.get(key).is_some() {
                    let problem = "has no effect without data.split = \"stratified\" or \"uniform\"";
                    self.problems.wrong::<()>(table, key, problem);
                }
            }
            return Some(None);
        }
        let manner = self.problems.choice(table, "split", &["stratified", "uniform"]);
        let train1_size = self.problems.count(table, "train1_size", 1).unwrap_or(10_000);
        let train2_given = self.problems.count(table, "train2_size", 1);
        let train2_size = train2_given.unwrap_or(5_000.min(train1_size));
        if train2_size > train1_size {
            let problem = format!("is {train2_size}, but train2 is drawn from train1, which has {train1_size} records");
            self.problems.wrong::<()>(table, "train2_size", problem);
        }
        let group_by_prompt = self.problems.flag(table, "group_by_prompt").unwrap_or(false);
        Some(Some(Split { stratified: manner? == "stratified", group_by_prompt, train1_size, train2_size }))
    }

    fn base(&mut self, table: &Table<'_>, seed: u64) -> Base {
        let common = self.options(table, Section::Train, &["step"]);
        let tables = self.problems.tables(table, "step");
        if tables.is_empty() && table.node.entries().is_some_and(|entries| !entries.is_empty()) {
            self.problems.wrong::<()>(table, "step", "is missing: settings of base steps without a [[base.step]]");
        }
        let mut base = Base { steps: Vec::new(), all_steps: true, draws_weights: false };
        self.distinct_names(&tables, "step");
        for (index, step) in tables.iter().enumerate() {
            let own = self.options(step, Section::Train, &STEP);
            let name =
                self.needed(step, "name", "a name for the step").and_then(|name| self.folder_name(step, "name", name));
            let method = self.method(step);
            let data = self.located_needed(step, "data", "the records to train on");
            let mut options = common.overlaid(&own);
            options.0.insert("full".to_owned(), Setting::Flag(!is_off(&options, "full")));
            options.default_text("seed", seed);
            let layers = Layers(vec![step.clone(), table.clone()]);
            check::base_step(method, &options, &layers, self.problems);
            base.draws_weights |= index == 0 && options.is_on("from_scratch");
            match (name, method, data) {
                (Some(name), Some(method), Some(data)) => base.steps.push(BaseStep { name, method, data, options }),
                _ => base.all_steps = false,
            }
        }
        base
    }

    /// Returns the variants that could be read, and whether these are all.
    fn variants(&mut self, root: &Table<'_>, globals: &Globals<'_>) -> (Vec<Variant>, bool) {
        // Read by themselves too, so that a wrong key is found once, whatever the variants override.
        self.score(&globals.score, None);
        self.options(&globals.train, Section::Train, &TRAIN);
        let tables = self.problems.tables(root, "variant");
        if tables.is_empty() {
            // What variants share is checked all the same.
            let train = self.train(globals, &globals.train);
            self.eval(globals, &globals.eval);
            check::variant(None, &train.options, &Layers(vec![globals.train.clone()]), self.problems);
            if root.get("variant").is_none() {
                let problem = "is missing; a run compares variants: name = \"base\", name = \"trace\", …";
                self.problems.add(root.node.place, "[[variant]]", problem);
            }
        }
        self.distinct_names(&tables, "variant");
        let read: Vec<Option<Variant>> = tables.iter().map(|table| self.variant(table, globals)).collect();
        let all = !read.is_empty() && read.iter().all(Option::is_some);
        (read.into_iter().flatten().collect(), all)
    }

    /// Refuses a name that an earlier table of a list has.
    fn distinct_names(&mut self, tables: &[Table<'_>], what: &str) {
        let mut names: Vec<&str> = Vec::new();
        for table in tables {
            let Some(Value::String(name)) = table.get("name").map(|name| &name.value) else { continue };
            if names.contains(&name.as_str()) {
                self.problems.wrong::<()>(table, "name", format!("there is another {what} {name:?}"));
            }
            names.push(name);
        }
    }

    fn variant(&mut self, table: &Table<'_>, globals: &Globals<'_>) -> Option<Variant> {
        self.problems.unknown_keys(table, &VARIANT);
        let empty = Node { value: Value::Table(Vec::new()), place: table.node.place };
        let [own_score, own_train, own_eval] = ["score", "train", "eval"]
            .map(|name| self.problems.table(table, name).unwrap_or(Table { path: table.name(name), node: &empty }));
        let score = self.score(&globals.score, Some(&own_score));
        let train = self.train(globals, &own_train);
        let eval = self.eval(globals, &own_eval);
        let name = self.needed(table, "name", "the variant's name, that of a method or base");
        let name = name.and_then(|name| self.folder_name(table, "name", name));
        let method = match &name {
            Some(name) => self.variant_method(table, name),
            None if table.get("method").is_some() => self.method(table).map(Some),
            None => None,
        };
        if method == Some(None) {
            for key in ["score", "train"].into_iter().filter(|key| table.get(key).is_some()) {
                self.problems.wrong::<()>(table, key, "has no effect on the base: nothing is trained there");
            }
        } else {
            let layers = Layers(vec![own_train, globals.train.clone()]);
            check::variant(method.flatten(), &train.options, &layers, self.problems);
            if let Some(score) = &score {
                let of_score = Layers(vec![own_score, globals.score.clone()]);
                scoring::variant((&score.options, &of_score), (&train.options, &layers), self.problems);
            }
        }
        Some(Variant { name: name?, method: method?, score: score?, train, eval: eval? })
    }

    /// Returns a variant's method, `Some(None)` for the base.
    fn variant_method(&mut self, table: &Table<'_>, name: &str) -> Option<Option<Method>> {
        if name == BASE {
            return match table.get("method") {
                None => Some(None),
                Some(_) => {
                    self.problems.wrong(table, "method", "the variant base is the deployed model; it has no method")
                }
            };
        }
        let named = Method::named(name);
        if table.get("method").is_some() {
            let method = self.method(table)?;
            if named.is_some_and(|named| named != method) {
                let problem = format!("is {:?}, but the variant has the name of another method", method.name());
                return self.problems.wrong(table, "method", problem);
            }
            return Some(Some(method));
        }
        match named {
            Some(method) => Some(Some(method)),
            None => {
                let names = [&[BASE][..], &Method::names()].concat();
                let problem = match nearest(name, &names) {
                    Some(near) => format!("{name:?} is no method; did you mean {near:?}? Else name one by method = …"),
                    None => format!("{name:?} is no method; name one by method = …: {}", Method::names().join(", ")),
                };
                self.problems.wrong(table, "name", problem)
            }
        }
    }

    fn method(&mut self, table: &Table<'_>) -> Option<Method> {
        let name = self.needed(table, "method", "a method of training")?;
        let names = Method::names();
        Method::named(&name)
            .or_else(|| self.problems.wrong(table, "method", format!("is {name:?}; {}", expected_words(&name, &names))))
    }

    fn score(&mut self, global: &Table<'_>, own: Option<&Table<'_>>) -> Option<Score> {
        let mut options = Options::default();
        let tables: Vec<&Table<'_>> = std::iter::once(global).chain(own).collect();
        for table in &tables {
            options = options.overlaid(&self.options(table, Section::Score, &SCORE));
        }
        let mut score = Score {
            gold: None,
            gold_batch_size: 64,
            gold_seed: 42,
            lamda: 1.0,
            weight_norm: WeightNorm::Mean1,
            shard_records: 128,
            options,
        };
        let mut gold_is_right = true;
        for table in tables {
            for (key, value, least) in [
                ("gold_batch_size", &mut score.gold_batch_size, 1),
                ("gold_seed", &mut score.gold_seed, 0),
                ("shard_records", &mut score.shard_records, 1),
            ] {
                *value = self.problems.count(table, key, least).unwrap_or(*value);
            }
            let lamda = self.problems.number(table, "lamda", |value| value > 0.0, "a number above 0");
            score.lamda = lamda.unwrap_or(score.lamda);
            let norm = self.problems.choice(table, "weight_norm", &["mean1", "reference"]);
            score.weight_norm = norm.and_then(|name| name.parse().ok()).unwrap_or(score.weight_norm);
            if table.get("gold").is_some() {
                score.gold = self.located(table, "gold", Expected::File);
                gold_is_right &= score.gold.is_some();
            }
        }
        gold_is_right.then_some(score)
    }

    fn train(&mut self, globals: &Globals<'_>, own: &Table<'_>) -> Train {
        let mut part = Part::Train1;
        let mut options = Options::default();
        for table in [&globals.train, own] {
            options = options.overlaid(&self.options(table, Section::Train, &TRAIN));
            match self.problems.choice(table, "part", &["train1", "train2"]).as_deref() {
                Some("train2") => part = Part::Train2,
                Some(_) => part = Part::Train1,
                None => {}
            }
            if table.get("part").is_some() && !globals.known.is_split {
                self.problems.wrong::<()>(table, "part", "has no effect without data.split");
            }
        }
        options.default_text("seed", globals.seed);
        Train { part, options }
    }

    fn eval(&mut self, globals: &Globals<'_>, own: &Table<'_>) -> Option<Eval> {
        let mut options = Options::default();
        let (mut prompts, mut merge, mut sample_size, mut shard_prompts) = (None, false, None, 256);
        let mut prompts_are_right = true;
        for table in [&globals.eval, own] {
            options = options.overlaid(&self.options(table, Section::Eval, &EVAL));
            merge = self.problems.flag(table, "merge").unwrap_or(merge);
            sample_size = self.problems.count(table, "sample_size", 1).or(sample_size);
            shard_prompts = self.problems.count(table, "shard_prompts", 1).unwrap_or(shard_prompts);
            if table.get("prompts").is_some() {
                prompts = self.located(table, "prompts", Expected::File);
                prompts_are_right &= prompts.is_some();
            }
        }
        options.default_text("seed", globals.seed);
        if !prompts_are_right {
            return None;
        }
        let prompts = match (prompts, globals.known) {
            (Some(prompts), _) => prompts,
            (None, DataKind { in_world: None, .. }) => return None,
            (None, DataKind { in_world: Some(true), .. }) => Located::Run("world/prompts_test.json".into()),
            (None, DataKind { is_split: true, .. }) => Located::Run("splits/trace/test.json".into()),
            (None, _) => {
                let what = "the prompts to evaluate on (with data.split: its test part)";
                return self.missing(&globals.eval, "prompts", what);
            }
        };
        Some(Eval { prompts, merge, sample_size, shard_prompts, options })
    }
}

fn is_off(options: &Options, name: &str) -> bool {
    options.0.get(name) == Some(&Setting::Flag(false))
}
