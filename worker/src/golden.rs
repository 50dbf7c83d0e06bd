//! The engine's numbers: against transformers and PEFT, and against the method's own definitions.
//!
//! `tests/golden/tiny-llama` holds two tiny models, adapters and the values that transformers and PEFT compute on them
//! (`tests/python/make_golden.py` made them), `tests/golden/families` shapes of all families
//! (`make_golden_families.py`). These tests say that the decoder, the adapter, the closed-form gradients
//! and the scores give those values. Where no such value exists, [`naive`] writes the loss out in the plainest way, one
//! sequence at a time, and automatic differentiation and finite differences of it are what the engine must equal.

mod curvature;
mod families;
mod fast_path;
mod generation;
mod gradients;
mod logits;
mod naive;
mod refused;
mod score_options;
mod scores;
mod sharded;
mod weight_space;

use std::path::{Path, PathBuf};

use serde_json::Value;
use shared::gold::GoldPair;
use shared::keyed_random::KeyedRandom;
use shared::record::Record;
use tch::{Device, Kind, Tensor};

use crate::collective::Alone;
use crate::control::Control;
use crate::dataset::DataSet;
use crate::model::adapter_file;
use crate::model::decoder::Decoder;
use crate::model::lora::Lora;
use crate::objective::method::{Part, Term};
use crate::objective::step::{Item, Settings};
use crate::reference::Known;
use crate::text::{Encoder, EncoderOptions, MaskMode};

/// Largest relative error allowed where rounding in f32 is the only difference.
const TIGHT: f64 = 1e-5;

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny-llama").join(name)
}

fn golden() -> Value {
    shared::input::read_json(&folder("golden.json")).unwrap()
}

fn decoder(name: &str) -> Decoder {
    Decoder::load(&folder(name), Kind::Float, Device::Cpu).unwrap()
}

fn adapter(decoder: &Decoder, name: &str) -> Lora {
    adapter_file::load(&folder(name), &decoder.config, &decoder.fingerprint, Device::Cpu).unwrap()
}

fn encoder(mask: MaskMode) -> Encoder {
    Encoder::load(&folder("tied"), EncoderOptions { mask, ..EncoderOptions::default() }).unwrap()
}

fn records() -> Vec<Record> {
    serde_json::from_value(golden()["records"].clone()).unwrap()
}

fn gold() -> Vec<GoldPair> {
    serde_json::from_value(golden()["gold"].clone()).unwrap()
}

fn data_set(records: Vec<Record>) -> DataSet {
    let index = (0..records.len()).collect();
    DataSet { file: "golden.json".into(), records, index, quarantine: shared::quarantine::Quarantine::of("golden") }
}

/// A golden record as an item of a term, with texts cut to `max_length` tokens.
fn item(mask: MaskMode, max_length: usize, record: usize, term: Term, weight: f64) -> Item {
    let source = &records()[record];
    let sequences = term
        .parts()
        .iter()
        .map(|part| {
            let text = match part {
                Part::Chosen => source.chosen.response(),
                Part::Rejected => source.rejected.as_ref().unwrap().response(),
                Part::Correction => "Ask at the desk, they know.".to_owned(),
            };
            encoder(mask).pair(&source.prompt, &text, max_length).unwrap()
        })
        .collect();
    Item { record, term, weight, sequences, reference: Vec::new() }
}

/// Every term of every method.
fn all_terms(mask: MaskMode, max_length: usize) -> Vec<Item> {
    let item = |record, term, weight| item(mask, max_length, record, term, weight);
    vec![
        item(0, Term::Prefer(Part::Chosen, Part::Rejected), 1.3),
        item(2, Term::PunishBoth, 0.7),
        item(5, Term::PunishOne(Part::Rejected), 1.1),
        item(4, Term::Prefer(Part::Correction, Part::Chosen), 0.4),
        item(1, Term::Anchor, 1.0),
        item(3, Term::Imitate, 1.0),
    ]
}

fn with_references(decoder: &Decoder, mut items: Vec<Item>) -> Vec<Item> {
    let mut all: Vec<&mut Item> = items.iter_mut().collect();
    crate::reference::fill(decoder, &mut all, &Known::default(), None, 400, &Control::default(), &mut Alone).unwrap();
    items
}

/// Moves tensors away from where they are, to places that many cases can tell apart.
fn shake(parameters: &[(String, Tensor)]) {
    let mut random = KeyedRandom::new(&[29]);
    for (_, tensor) in parameters {
        let noise: Vec<f32> = (0..tensor.numel()).map(|_| (random.normal() * 0.01) as f32).collect();
        let noise = Tensor::from_slice(&noise).view(tensor.size().as_slice());
        let _ = tch::no_grad(|| tensor.shallow_clone().g_add_(&noise));
    }
}

/// g_J of gold items at an adapter, `rows` of them computed together.
fn gold_gradient(decoder: &Decoder, adapter: &Lora, gold: &[Item], settings: &Settings, rows: usize) -> Lora {
    crate::score::direction::gradient(decoder, adapter, gold, settings, rows, &mut || Ok(())).unwrap().1
}

fn floats(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

fn integers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The largest difference of two lists, relative to the largest value of the second.
fn relative_error(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(largest > 0.0 && theirs.iter().all(|x| x.is_finite()), "nothing to compare with");
    let difference = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    if ours.iter().all(|x| x.is_finite()) { difference / largest } else { f64::INFINITY }
}

#[track_caller]
fn close(what: &str, ours: &[f64], theirs: &[f64], tolerance: f64) {
    let error = relative_error(ours, theirs);
    println!("{what}: relative error {error:.2e} (at most {tolerance:.0e})");
    assert!(error <= tolerance, "{what}: relative error {error:e}, at most {tolerance:e} allowed");
}

/// The gradients of all tensors, one after the other, and zeroes them.
fn take_gradients(parameters: &[(String, Tensor)]) -> Vec<f64> {
    let mut all = Vec::new();
    for (_, tensor) in parameters {
        let gradient = tensor.grad();
        if gradient.defined() {
            all.extend(crate::objective::step::to_f64(&gradient));
        } else {
            all.extend(std::iter::repeat_n(0.0, tensor.numel()));
        }
        tensor.shallow_clone().zero_grad();
    }
    all
}

fn trained(parameters: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    parameters.into_iter().map(|(name, tensor)| (name, tensor.set_requires_grad(true))).collect()
}
