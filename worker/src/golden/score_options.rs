//! What options make of a score: scale, several adapters, layers, gold pairs left out. Against explicit gradients.

use std::collections::HashMap;

use clap::Parser;

use super::scores::give_b_values;
use super::*;
use crate::dataset::{GoldFile, gold_items};
use crate::objective::method::{Method, Recipe};
use crate::score::engine::Engine;
use crate::score::options::ScoreSpace;
use crate::score::point::Point;
use crate::score::vector::Vector;
use crate::score::{ScoreArgs, ScoreSettings};
use shared::quality::Filter;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    score: ScoreArgs,
}

fn settings(options: &str) -> ScoreSettings {
    let args = Command::parse_from(std::iter::once("score").chain(options.split_whitespace())).score;
    let recipe = Recipe { method: Method::Trace, alpha_kl: 0.0, filter: Filter::default() };
    args.settings(recipe, 0.3, 42, 256)
}

/// A model with two adapters, one fresh and one that computes something; records and gold batch at it.
struct World {
    decoder: Decoder,
    adapters: [Lora; 2],
    items: Vec<Item>,
    gold: Vec<Item>,
}

impl World {
    fn new() -> World {
        let decoder = decoder("tied");
        let adapters = [adapter(&decoder, "adapter-start"), adapter(&decoder, "adapter-start")];
        give_b_values(&adapters[1]);
        let items = data_set(records()).items(&encoder(MaskMode::Exact), &settings("").recipe, 256).unwrap();
        let items = with_references(&decoder, items.into_iter().flatten().collect());
        let gold = gold_items(&encoder(MaskMode::Exact), &gold(), GoldFile::Given(Path::new("gold")), 256).unwrap();
        let gold = with_references(&decoder, gold);
        World { decoder, adapters, items, gold }
    }

    fn points(&self) -> [Point<'_>; 2] {
        let point = |at: usize| Point {
            decoder: &self.decoder,
            adapter: &self.adapters[at],
            is_fresh: at == 0,
            space: ScoreSpace::Adapter,
        };
        [point(0), point(1)]
    }

    fn gradient(&self, point: Point<'_>, items: &[Item]) -> Vector {
        point.gradient(items, &settings("").objective(), 2, &mut || Ok(())).unwrap().1
    }

    fn direction(&self, point: Point<'_>) -> Vector {
        self.gradient(point, &self.gold)
    }

    fn own(&self, point: Point<'_>, item: &Item) -> Vector {
        self.gradient(point, std::slice::from_ref(item))
    }
}

fn all(items: &[Item]) -> Vec<&Item> {
    items.iter().collect()
}

#[test]
fn scales_divide_by_lengths_of_gradients_or_of_responses() {
    let world = World::new();
    for point in world.points() {
        let direction = world.direction(point);
        let scores = |options: &str| {
            let settings = settings(options);
            let engine = Engine::new(&[point], vec![direction.copy()], &settings, HashMap::new());
            engine.scores(&all(&world.items)).unwrap().raw
        };
        let of = |f: &dyn Fn(&Item, &Vector) -> f64| -> Vec<f64> {
            world.items.iter().map(|item| f(item, &world.own(point, item))).collect()
        };
        close("raw", &scores(""), &of(&|_, own| own.dot(&direction)), TIGHT);
        let cosine = of(&|_, own| own.dot(&direction) / (own.norm() * direction.norm()));
        assert!(cosine.iter().all(|cosine| cosine.abs() < 1.0), "{cosine:?}");
        close("cosine", &scores("--score-scale cosine"), &cosine, TIGHT);
        let tokens = |item: &Item| item.sequences.iter().map(|sequence| sequence.scored.len()).sum::<usize>() as f64;
        let by_length = of(&|item, own| own.dot(&direction) / tokens(item));
        close("length", &scores("--score-scale length"), &by_length, TIGHT);
    }
}

#[test]
fn scores_at_several_adapters_are_averaged_and_kept() {
    let world = World::new();
    let points = world.points();
    let directions = || points.iter().map(|point| world.direction(*point)).collect::<Vec<_>>();
    let settings = settings("--score-layers");
    let both = Engine::new(&points, directions(), &settings, HashMap::new()).scores(&all(&world.items)).unwrap();
    let alone: Vec<_> = points
        .iter()
        .zip(directions())
        .map(|(point, direction)| {
            Engine::new(&[*point], vec![direction], &settings, HashMap::new()).scores(&all(&world.items)).unwrap()
        })
        .collect();
    for at in 0..world.items.len() {
        let values: Vec<f64> = alone.iter().map(|scores| scores.raw[at]).collect();
        assert_eq!(both.by_seed[at], values);
        assert_eq!(both.raw[at], values.iter().sum::<f64>() / 2.0);
        let layers: Vec<f64> =
            alone[0].layers[at].iter().zip(&alone[1].layers[at]).map(|(a, b)| 0.5 * a + 0.5 * b).collect();
        close("layers", &both.layers[at], &layers, 1e-12);
    }
    assert!(alone[0].by_seed.is_empty());
    assert_eq!(both.reference, alone[0].reference, "π_ref has no adapter");
}

#[test]
fn layers_add_up_to_the_score() {
    let world = World::new();
    for point in world.points() {
        for options in ["--score-layers", "--score-layers --score-scale cosine", "--score-layers --score-scale length"]
        {
            let settings = settings(options);
            let engine = Engine::new(&[point], vec![world.direction(point)], &settings, HashMap::new());
            let scores = engine.scores(&all(&world.items)).unwrap();
            assert!(scores.layers.iter().all(|layers| layers.len() == world.decoder.config.layers));
            let sums: Vec<f64> = scores.layers.iter().map(|layers| layers.iter().sum()).collect();
            close(options, &sums, &scores.raw, TIGHT);
        }
    }
}

/// As if the record's pairs had not been drawn.
#[test]
fn gold_items_left_out_do_not_count() {
    let world = World::new();
    for point in world.points() {
        for options in ["", "--score-scale cosine --score-layers"] {
            let settings = settings(options);
            let left_out = HashMap::from([(world.items[1].record, world.gold[..1].to_vec())]);
            let scores = |direction: Vector, left_out| {
                let engine = Engine::new(&[point], vec![direction], &settings, left_out);
                engine.scores(&all(&world.items)).unwrap()
            };
            let with_all = scores(world.direction(point), HashMap::new());
            let ours = scores(world.direction(point), left_out);
            let others = scores(world.gradient(point, &world.gold[1..]), HashMap::new());
            assert_eq!(ours.raw[0], with_all.raw[0], "another record's score is as it was");
            assert!((ours.raw[1] - with_all.raw[1]).abs() > 1e-3 * with_all.raw[1].abs());
            close(options, &ours.raw[1..2], &others.raw[1..2], TIGHT);
            if let Some(layers) = ours.layers.get(1) {
                close("layers", layers, &others.layers[1], TIGHT);
            }
        }
    }
}
