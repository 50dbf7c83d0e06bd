//! From a gold batch to the directions that records are scored along: g_J at every adapter, turned by the curvature where
//! that is asked for, and kept in a file for the other parts of the same scoring.

use std::path::PathBuf;

use serde_json::json;
use shared::curvature::{Report, report_file};
use shared::gold::GoldPair;
use shared::python_random::PythonRandom;
use shared::record::Record;

use super::cg::Limits;
use super::curvature::GaussNewton;
use super::options::{CgArgs, Curvature};
use super::point::Point;
use super::vector::{self, Vector};
use super::{IN_RECORD, Setup, content_hash, direction, shared_hash};
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
    /// The pairs tokenised; with their reference log-probs once these were needed ([`Gold::fill`]).
    pub items: Vec<Item>,
    /// Where the pairs stand.
    pub file: PathBuf,
    is_filled: bool,
}

impl Gold {
    /// Tokenises pairs.
    ///
    /// # Errors
    /// A pair cannot be tokenised.
    pub fn new(setup: Setup<'_>, pairs: Vec<GoldPair>, file: GoldFile<'_>) -> Result<Self> {
        let items = dataset::gold_items(setup.encoder, &pairs, file, setup.settings.max_length)?;
        Ok(Gold { pairs, items, file: file.path().to_owned(), is_filled: false })
    }

    /// Gives the items their reference log-probs, if they have none yet.
    ///
    /// # Errors
    /// The command was told to stop.
    pub fn fill(&mut self, setup: Setup<'_>) -> Result<()> {
        if !std::mem::replace(&mut self.is_filled, true) {
            fill(setup, &mut self.items)?;
        }
        Ok(())
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
    /// What the curvature did at each point; empty without one.
    pub curvature: Vec<Report>,
}

impl CgArgs {
    fn limits(&self) -> Limits {
        Limits { iterations: self.cg_iterations, tolerance: self.cg_tolerance }
    }
}

/// The records that the curvature is taken of, tokenised.
pub struct Sample {
    items: Vec<Item>,
    /// Where they stand.
    file: PathBuf,
    /// Of their content, and of the terms that they are given.
    pub hash: String,
    is_filled: bool,
}

impl Sample {
    /// Returns v of (H + γI)·v = g at a point, H the curvature of these records.
    ///
    /// # Errors
    /// A record's log-prob or v is not finite; the command was told to stop, or what `beat` says.
    pub fn solve(
        &mut self,
        setup: Setup<'_>,
        point: Point<'_>,
        g: &Vector,
        beat: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Vector, Report)> {
        if !std::mem::replace(&mut self.is_filled, true) {
            fill(setup, &mut self.items)?;
        }
        let args = &setup.settings.args;
        let matrix = GaussNewton::new(point, &self.items, &setup.settings.objective(), args.pack_tokens)
            .map_err(|bad| bad.in_file(&self.file, IN_RECORD))?;
        let mut go_on = || setup.control.go_on().and_then(|()| beat());
        let (v, report) = matrix.solve(g, args.lamda, args.cg.limits(), args.cg.cg_rank, &mut go_on)?;
        if !(v.norm() > 0.0 && v.norm().is_finite()) {
            let problem = format!(
                "the curvature of its records turns the gradient into one of length {}; raise --lamda, or compute in f32",
                v.norm()
            );
            return Err(Error::model(&self.file, problem));
        }
        Ok((v, report))
    }
}

/// Returns the directions at points, from the file that keeps them or made and kept there. `sample` are the records of
/// the curvature, where there is one; `beat` is called after every pack.
///
/// # Errors
/// The gradient of the gold batch means nothing, or what [`Sample::solve`] says.
pub fn make(
    setup: Setup<'_>,
    points: &[Point<'_>],
    gold: &mut Gold,
    mut sample: Option<&mut Sample>,
    beat: &mut dyn FnMut() -> Result<()>,
) -> Result<Directions> {
    let args = &setup.settings.args;
    let key = shared_hash(&json!({
        "context": setup.key, "beta": setup.settings.beta, "max_length": setup.settings.max_length,
        "gold_rows": args.pa_batch_size, "gold": gold.pairs, "seeds": args.score_seeds, "space": args.score_space,
        "curvature": sample.as_ref().map(|sample| json!({"of": sample.hash, "cg": args.cg, "gamma": args.lamda})),
    }));
    if let Some(file) = &args.gold_gradient {
        let zeros = points.iter().map(|point| point.zeros()).collect();
        if let Some(vectors) = vector::read(file, &key, zeros)? {
            let curvature = if sample.is_some() { shared::input::read_json(&report_file(file))? } else { Vec::new() };
            return Ok(Directions { vectors, curvature });
        }
    }
    beat()?;
    gold.fill(setup)?;
    let bar = setup.control.bar("gold gradient", (points.len() * gold.items.len().div_ceil(args.pa_batch_size)) as u64);
    let (mut vectors, mut curvature) = (Vec::new(), Vec::new());
    for point in points {
        let mut between = || {
            bar.inc(1);
            setup.control.go_on().and_then(|()| beat())
        };
        let found = point.gradient(&gold.items, &setup.settings.objective(), args.pa_batch_size, &mut between);
        let (_, mut vector) = found.map_err(|bad| bad.in_file(&gold.file, direction::IN_GOLD))?;
        direction::check(vector.dot(&vector), &gold.file)?;
        if let Some(sample) = &mut sample {
            let (turned, report) = sample.solve(setup, *point, &vector, beat)?;
            match report.converged {
                true => tracing::info!("{}", report.told()),
                false => tracing::warn!("{}", report.told()),
            }
            curvature.push(report);
            vector = turned;
        }
        vectors.push(vector);
    }
    bar.finish_and_clear();
    if let Some(file) = &args.gold_gradient {
        // First what goes with the vectors: where they are there, so is it.
        if sample.is_some() {
            shared::output::write_json(&report_file(file), &curvature)?;
        }
        vector::write(file, &key, &vectors)?;
    }
    Ok(Directions { vectors, curvature })
}

/// Returns the records that the curvature is taken of, where there is one: those of the file that is given, or a sample
/// of a set's.
///
/// # Errors
/// They are unusable, or there are none.
pub fn sample(setup: Setup<'_>, set: Option<&DataSet>) -> Result<Option<Sample>> {
    let settings = setup.settings;
    if settings.args.curvature == Curvature::None {
        return Ok(None);
    }
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
    let of_conflict = |(item, record): (Option<Item>, &'_ Record)| {
        item.filter(|item| item.term.uses_ratios()).map(|item| (item, record.clone()))
    };
    let mut scored: Vec<(Item, Record)> = items.into_iter().zip(&set.records).filter_map(of_conflict).collect();
    if scored.is_empty() {
        let problem = format!(
            "none of the {} records has a loss term of method {} that the curvature could be taken of",
            set.records.len(),
            settings.recipe.method.name()
        );
        return Err(Error::model(&set.file, problem));
    }
    if count < scored.len() {
        let mut drawn = PythonRandom::new(settings.args.gold_seed).sample(scored.len(), count);
        drawn.sort_unstable();
        scored = drawn.into_iter().map(|at| scored[at].clone()).collect();
    }
    let (items, records): (Vec<Item>, Vec<Record>) = scored.into_iter().unzip();
    let hash = shared_hash(&json!([settings.recipe.scored_as(), content_hash(&records)]));
    Ok(Some(Sample { items, file: set.file.clone(), hash, is_filled: false }))
}
