//! From a gold batch to the directions that records are scored along: g_J at every adapter, turned by the curvature where
//! that is asked for, and kept in a file for the other parts of the same scoring.

use std::path::PathBuf;

use serde_json::json;
use shared::gold::GoldPair;
use shared::python_random::PythonRandom;

use super::cg::Limits;
use super::curvature::{GaussNewton, Report};
use super::options::{CgArgs, Curvature};
use super::point::Point;
use super::vector::{self, Vector};
use super::{Setup, content_hash, direction, shared_hash};
use crate::collective::Alone;
use crate::dataset::{self, DataSet, GoldFile};
use crate::error::{Error, Result};
use crate::model::lora::Lora;
use crate::objective::step::Item;
use crate::reference::{self, Known};

/// A gold batch, ready to be computed with.
pub struct Gold {
    /// Its pairs.
    pub pairs: Vec<GoldPair>,
    /// The pairs tokenised, with their reference log-probs.
    pub items: Vec<Item>,
    /// Where the pairs stand.
    pub file: PathBuf,
}

impl Gold {
    /// Tokenises pairs.
    ///
    /// # Errors
    /// A pair cannot be tokenised, or the command was told to stop.
    pub fn new(setup: Setup<'_>, pairs: Vec<GoldPair>, file: GoldFile<'_>) -> Result<Self> {
        let mut items = dataset::gold_items(setup.encoder, &pairs, file, setup.settings.max_length)?;
        fill(setup, &mut items)?;
        Ok(Gold { pairs, items, file: file.path().to_owned() })
    }
}

/// Gives items their reference log-probs.
pub(super) fn fill(setup: Setup<'_>, items: &mut [Item]) -> Result<()> {
    let mut all: Vec<&mut Item> = items.iter_mut().collect();
    let budget = setup.settings.args.pack_tokens;
    reference::fill(setup.decoder, &mut all, &Known::default(), None, budget, setup.control, &mut Alone)
}

impl Setup<'_> {
    /// Returns the adapters of the seeds after the first.
    pub fn more_adapters(&self) -> Vec<Lora> {
        let (decoder, config) = (self.decoder, &self.adapter.config);
        let fresh =
            |k| Lora::fresh(config.clone(), &decoder.config, self.settings.seed.wrapping_add(k), decoder.device);
        (1..self.settings.args.score_seeds).map(fresh).collect()
    }
}

impl<'a> Setup<'a> {
    /// Returns the points of the first adapter and of more.
    pub fn points(&self, more: &'a [Lora]) -> Vec<Point<'a>> {
        let first = Point {
            decoder: self.decoder,
            adapter: self.adapter,
            is_fresh: self.is_fresh,
            space: self.settings.args.score_space,
        };
        let more = more.iter().map(|adapter| Point { adapter, is_fresh: true, ..first });
        std::iter::once(first).chain(more).collect()
    }
}

/// The directions at some points.
pub struct Directions {
    /// One a point.
    pub vectors: Vec<Vector>,
    /// What the curvature did at each point; empty where the directions were read from their file.
    pub curvature: Vec<Report>,
    /// The records that it was taken of.
    pub sample: Option<Sample>,
}

impl CgArgs {
    fn limits(&self) -> Limits {
        Limits { iterations: self.cg_iterations, tolerance: self.cg_tolerance }
    }
}

impl Sample {
    /// Returns v of (H + γI)·v = g at a point, H the curvature of these records.
    ///
    /// # Errors
    /// The command was told to stop, or what `beat` says.
    pub fn solve(
        &self,
        setup: Setup<'_>,
        point: Point<'_>,
        g: &Vector,
        beat: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Vector, Report)> {
        let args = &setup.settings.args;
        let matrix = GaussNewton::new(point, &self.items, &setup.settings.objective(), args.pack_tokens);
        let mut go_on = || setup.control.go_on().and_then(|()| beat());
        matrix.solve(g, args.lamda, args.cg.limits(), args.cg.cg_rank, &mut go_on)
    }
}

/// Returns the directions at points, from the file that keeps them or made and kept there. `set` are the records that
/// the curvature may be taken of; `beat` is called after every pack.
///
/// # Errors
/// The gradient of the gold batch means nothing; the records of the curvature are unusable, or there are none.
pub fn make(
    setup: Setup<'_>,
    points: &[Point<'_>],
    gold: &Gold,
    set: Option<&DataSet>,
    beat: &mut dyn FnMut() -> Result<()>,
) -> Result<Directions> {
    let args = &setup.settings.args;
    let curved = match args.curvature {
        Curvature::None => None,
        Curvature::Cg => Some(sample(setup, set)?),
    };
    let key = shared_hash(&json!({
        "context": setup.key, "beta": setup.settings.beta, "max_length": setup.settings.max_length,
        "gold_rows": args.pa_batch_size, "gold": gold.pairs, "seeds": args.score_seeds, "space": args.score_space,
        "curvature": curved.as_ref().map(|sample| json!({"of": sample.hash, "cg": args.cg, "gamma": args.lamda})),
    }));
    if let Some(file) = &args.gold_gradient {
        let zeros = points.iter().map(|point| point.zeros()).collect();
        if let Some(vectors) = vector::read(file, &key, zeros)? {
            return Ok(Directions { vectors, curvature: Vec::new(), sample: curved });
        }
    }
    beat()?;
    let (mut vectors, mut curvature) = (Vec::new(), Vec::new());
    for point in points {
        let mut told = Ok(());
        let mut between = || told = std::mem::replace(&mut told, Ok(())).and_then(|()| beat());
        let found = point.gradient(&gold.items, &setup.settings.objective(), args.pa_batch_size, &mut between);
        told?;
        let (_, mut vector) = found.map_err(|bad| bad.in_file(&gold.file, direction::IN_GOLD))?;
        direction::check(vector.dot(&vector), &gold.file)?;
        if let Some(sample) = &curved {
            let (turned, report) = sample.solve(setup, *point, &vector, beat)?;
            report.tell();
            curvature.push(report);
            vector = turned;
        }
        vectors.push(vector);
    }
    if let Some(file) = &args.gold_gradient {
        vector::write(file, &key, &vectors)?;
    }
    Ok(Directions { vectors, curvature, sample: curved })
}

/// The records that the curvature is taken of.
pub struct Sample {
    /// Tokenised, with their reference log-probs.
    items: Vec<Item>,
    /// Of their content.
    hash: String,
}

/// Returns the records that the curvature is taken of: those of the file that is given, or a sample of a set's.
fn sample(setup: Setup<'_>, set: Option<&DataSet>) -> Result<Sample> {
    let settings = setup.settings;
    let given;
    let (set, count) = match (&settings.args.cg.curvature_json_path, set) {
        (Some(file), _) => {
            given = DataSet::read(file, settings.recipe.method)?;
            (&given, usize::MAX)
        }
        (None, Some(set)) if !settings.raw_only => (set, settings.args.cg.curvature_sample),
        (None, _) => {
            return Err(Error::Config(
                "--curvature cg needs --curvature-json-path where only a part of the records is scored, or none: the \
                 curvature must be the same for all parts"
                    .into(),
            ));
        }
    };
    let items = set.items(setup.encoder, &settings.recipe, settings.max_length)?;
    let scored: Vec<&Item> = items.iter().flatten().filter(|item| item.term.uses_ratios()).collect();
    if scored.is_empty() {
        let problem = format!(
            "none of the {} records has a loss term of method {} that the curvature could be taken of",
            set.records.len(),
            settings.recipe.method.name()
        );
        return Err(Error::model(&set.file, problem));
    }
    let mut drawn = match count < scored.len() {
        true => PythonRandom::new(settings.args.gold_seed).sample(scored.len(), count),
        false => (0..scored.len()).collect(),
    };
    drawn.sort_unstable();
    let mut items: Vec<Item> = drawn.into_iter().map(|at| scored[at].clone()).collect();
    fill(setup, &mut items)?;
    Ok(Sample { items, hash: content_hash(&set.records) })
}
