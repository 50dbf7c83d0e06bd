//! Configuration, logits and log-probs against transformers; adapter logits against PEFT.

use super::*;
use crate::model::config::ModelConfig;
use crate::model::decoder::Extras;
use crate::model::lora::{LoraConfig, Module};
use crate::model::pack::{Pack, Want};
use crate::objective::step::{self, to_f64};
use crate::text::Sequence;

fn whole(tokens: Vec<i64>) -> Sequence {
    let scored: Vec<usize> = (1..tokens.len()).collect();
    let kl = scored.iter().map(|t| t - 1).collect();
    Sequence { tokens, scored, kl, prompt_len: 1, cut: 0 }
}

/// Rows of our logits at the positions a golden entry names, beside its own.
fn rows(decoder: &Decoder, adapter: Option<&Lora>, entry: &Value) -> (Vec<f64>, Vec<f64>) {
    let sequence = whole(integers(&entry["tokens"]));
    let ours = tch::no_grad(|| naive::logits(decoder, adapter, &sequence, None));
    let positions: Vec<i64> = integers(&entry["positions"]);
    let ours = positions.iter().flat_map(|&t| to_f64(&ours.get(t))).collect();
    let theirs = entry["logits"].as_array().unwrap().iter().flat_map(floats).collect();
    (ours, theirs)
}

#[test]
fn logits_of_both_models_are_those_of_transformers() {
    let golden = golden();
    for name in ["tied", "untied"] {
        let (ours, theirs) = rows(&decoder(name), None, &golden["models"][name]["logits"]);
        close(name, &ours, &theirs, TIGHT);
    }
}

#[test]
fn the_old_spelling_describes_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(folder("untied/config-old-spelling.json"), dir.path().join("config.json")).unwrap();
    let (old, new) = (ModelConfig::load(dir.path()).unwrap(), ModelConfig::load(&folder("untied")).unwrap());
    assert_eq!(old, new);
    assert_ne!(new.rope_scaling, crate::model::config::RopeScaling::Default, "the golden model scales its rope");
}

/// Two bf16 computations differ by roundings in a different order: no more than twice what transformers' own bf16
/// differs from its f32.
#[test]
fn bf16_logits_are_as_near_as_bf16_is_to_f32() {
    let golden = golden();
    for name in ["tied", "untied"] {
        let bf16 = Decoder::load(&folder(name), Kind::BFloat16, Device::Cpu).unwrap();
        let entry = &golden["models"][name];
        let (ours, theirs) = rows(&bf16, None, &entry["logits_bf16"]);
        let exact: Vec<f64> = entry["logits"]["logits"].as_array().unwrap().iter().flat_map(floats).collect();
        let own = relative_error(&theirs, &exact);
        close(&format!("{name} bf16 (own difference {own:.1e})"), &ours, &theirs, 2.0 * own);
        let f32_error = relative_error(&ours, &exact);
        assert!(f32_error > 1e-4, "{name}: {f32_error:e} from f32: bf16 was not computed in bf16");
    }
}

#[test]
fn masks_and_log_probs_of_both_modes() {
    let golden = golden();
    for name in ["tied", "untied"] {
        let decoder = decoder(name);
        for (mode, mask) in [("exact", MaskMode::Exact), ("reference", MaskMode::Reference)] {
            let encoder = encoder(mask);
            let (mut sequences, mut token_values, mut sums) = (Vec::new(), Vec::new(), Vec::new());
            for pair in golden["models"][name]["pairs"].as_array().unwrap() {
                let prompt = pair["prompt"].as_str().unwrap().into();
                for part in ["chosen", "rejected"] {
                    let expected = &pair[part][mode];
                    let sequence = encoder.pair(&prompt, pair[part]["response"].as_str().unwrap(), 256).unwrap();
                    assert_eq!(sequence.tokens, integers::<i64>(&expected["tokens"]), "{mode}");
                    assert_eq!(sequence.scored, integers::<usize>(&expected["scored"]), "{mode}");
                    assert_eq!(sequence.kl, integers::<usize>(&expected["kl"]), "{mode}");
                    assert_eq!(sequence.prompt_len as u64, expected["prompt_len"].as_u64().unwrap(), "{mode}");
                    sequences.push(sequence);
                    token_values.extend(floats(&expected["logps"]));
                    sums.push(expected["sum"].as_f64().unwrap());
                }
            }
            let asked: Vec<Vec<_>> =
                sequences.chunks(2).map(|pair| pair.iter().map(|s| (s, Want::LOG_PROB)).collect()).collect();
            let pack = Pack::new(&asked, Device::Cpu);
            close(
                &format!("{name} {mode} tokens"),
                &step::token_log_probs(&decoder, None, &pack),
                &token_values,
                TIGHT,
            );
            close(&format!("{name} {mode} sums"), &step::log_prob_sums(&decoder, None, &pack), &sums, TIGHT);
        }
    }
}

#[test]
fn adapter_logits_are_those_of_peft() {
    let golden = golden();
    let decoder = decoder("tied");
    let adapter = adapter(&decoder, "adapter");
    let (ours, theirs) = rows(&decoder, Some(&adapter), &golden["adapter"]["logits"]);
    close("adapter", &ours, &theirs, TIGHT);
    let (off, _) = rows(&decoder, None, &golden["adapter"]["logits"]);
    assert!(relative_error(&off, &theirs) > 1e-2, "the golden adapter must matter");
}

/// π_ref is the adapter switched off, and a fresh adapter (B = 0) changes no bit, for every target and both stores.
#[test]
fn a_fresh_adapter_computes_the_base_to_the_bit() {
    let golden = golden();
    for (name, dtype) in [("tied", Kind::Float), ("untied", Kind::Float), ("untied", Kind::BFloat16)] {
        let decoder = Decoder::load(&folder(name), dtype, Device::Cpu).unwrap();
        let config = LoraConfig { r: 3, alpha: 5.0, dropout: 0.0, targets: Module::ALL.into_iter().collect() };
        let fresh = Lora::fresh(config, &decoder.config, 1, Device::Cpu);
        assert_eq!(fresh.named_parameters().len(), 2 * 7 * decoder.config.layers);
        let sequence = whole(integers(&golden["models"][name]["logits"]["tokens"]));
        let pack = Pack::new(&[vec![(&sequence, Want::LOG_PROB)]], Device::Cpu);
        let hidden = |adapter| decoder.forward(&pack, Extras { adapter, ..Extras::default() });
        assert_eq!(hidden(Some(&fresh)), hidden(None));
        let moved = tch::no_grad(|| fresh.get(0, Module::Down).unwrap().b.shallow_clone().fill_(0.1));
        assert!(moved.numel() > 0 && hidden(Some(&fresh)) != hidden(None));
    }
}
