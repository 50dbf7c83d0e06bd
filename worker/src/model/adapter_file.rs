//! Adapter folders in PEFT's layout: `adapter_config.json`, `adapter_model.safetensors`, and `trace_adapter.json`
//! with the fingerprint of the base model, so that an adapter is not put on another base by mistake.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::{Device, Kind};

use super::config::ModelConfig;
use super::lora::{Factors, Lora, LoraConfig, Module};
use super::tensor_file::{self, TensorFile};
use crate::error::{Error, Result};

/// What stands before the names of tensors in a file.
pub const PREFIX: &str = "base_model.model.";

#[derive(Serialize, Deserialize)]
struct Provenance {
    base_fingerprint: String,
}

#[derive(Deserialize)]
struct PeftConfig {
    peft_type: String,
    r: i64,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Writes an adapter folder. `base_name` is recorded for people and PEFT, `base_fingerprint` for our own check.
///
/// # Errors
/// The folder cannot be written.
pub fn save(lora: &Lora, dir: &Path, base_name: &str, base_fingerprint: &str) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::model(dir, e.to_string()))?;
    let tensors: Vec<_> =
        lora.named_parameters().into_iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)).collect();
    tensor_file::write(&dir.join("adapter_model.safetensors"), &tensors)?;
    let targets: Vec<&str> = lora.config.targets.iter().map(|module| module.name()).collect();
    let config = json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": if lora.config.alpha.fract() == 0.0 { json!(lora.config.alpha as i64) } else { json!(lora.config.alpha) },
        "lora_dropout": lora.config.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.config.r,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    shared::output::write_json(&dir.join("adapter_config.json"), &config)?;
    let provenance = Provenance { base_fingerprint: base_fingerprint.to_owned() };
    shared::output::write_json(&dir.join("trace_adapter.json"), &provenance)?;
    Ok(())
}

/// Reads an adapter folder for a base model of this shape and fingerprint. Folders written by PEFT itself carry no
/// fingerprint; then only names and shapes are checked.
///
/// # Errors
/// Files missing or damaged, features this decoder does not compute, tensors of another shape, another base model.
pub fn load(dir: &Path, model: &ModelConfig, fingerprint: &str, device: Device) -> Result<Lora> {
    let file = dir.join("adapter_config.json");
    let text = std::fs::read_to_string(&file)
        .map_err(|e| Error::model(&file, format!("{e}; an adapter folder in PEFT's layout is needed")))?;
    let peft: PeftConfig = serde_json::from_str(&text).map_err(|e| Error::model(&file, e.to_string()))?;
    check_features(&peft).map_err(|problem| Error::model(&file, problem))?;
    check_base(dir, fingerprint)?;

    let path = dir.join("adapter_model.safetensors");
    let tensors = TensorFile::open(&path)?;
    let scale =
        if peft.use_rslora { peft.lora_alpha / (peft.r as f64).sqrt() } else { peft.lora_alpha / peft.r as f64 };
    let mut targets = BTreeSet::new();
    let mut used = BTreeSet::new();
    let names: BTreeSet<String> = tensors.infos().into_keys().collect();
    let mut factors = Vec::with_capacity(model.layers);
    for layer in 0..model.layers {
        let mut modules: [Option<Factors>; 7] = Default::default();
        for module in Module::ALL {
            let place = format!("{PREFIX}model.layers.{layer}.{}", module.path());
            let (a_name, b_name) = (format!("{place}.lora_A.weight"), format!("{place}.lora_B.weight"));
            if !names.contains(&a_name) && !names.contains(&b_name) {
                continue;
            }
            let (out, input) = module.shape(model);
            let read = |name: &str, shape: [i64; 2]| {
                let tensor = tensors.tensor(name)?;
                let found = tensor.size();
                if found != shape {
                    return Err(Error::model(&path, misshaped(name, &found, shape, rank_axis(name), peft.r)));
                }
                Ok(tensor.to_device(device).to_kind(Kind::Float))
            };
            modules[module as usize] =
                Some(Factors { a: read(&a_name, [peft.r, input])?, b: read(&b_name, [out, peft.r])? });
            targets.insert(module);
            used.extend([a_name, b_name]);
        }
        factors.push(modules);
    }
    if let Some(surplus) = names.difference(&used).next() {
        return Err(Error::model(&path, format!("tensor {surplus} has no place in this base model")));
    }
    if targets.is_empty() {
        return Err(Error::model(&path, "holds no LoRA tensors"));
    }
    let config = LoraConfig { r: peft.r, alpha: scale * peft.r as f64, dropout: peft.lora_dropout, targets };
    Ok(Lora { config, factors })
}

/// Returns which axis of a factor is the rank: the first of A, the second of B.
fn rank_axis(name: &str) -> usize {
    usize::from(name.ends_with(".lora_B.weight"))
}

/// Says why a factor's shape is wrong: only the rank differs, or the layer that it belongs to.
fn misshaped(name: &str, found: &[i64], needed: [i64; 2], rank_axis: usize, r: i64) -> String {
    if let [rows, columns] = *found {
        let found = [rows, columns];
        if found[1 - rank_axis] == needed[1 - rank_axis] {
            return format!(
                "tensor {name} has shape {found:?}, so rank {}, and adapter_config.json says r = {r}: the two files do \
                 not belong together",
                found[rank_axis]
            );
        }
    }
    format!("tensor {name} has shape {found:?}, this base model needs {needed:?}: the adapter is of another base model")
}

fn check_features(peft: &PeftConfig) -> std::result::Result<(), String> {
    if peft.peft_type != "LORA" {
        return Err(format!("peft_type {:?} is not supported; expected \"LORA\"", peft.peft_type));
    }
    if peft.r < 1 {
        return Err(format!("r is {}; expected at least 1", peft.r));
    }
    let set = |key: &str| match peft.rest.get(key) {
        None | Some(Value::Null) | Some(Value::Bool(false)) => false,
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(_) => true,
    };
    for feature in
        ["use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "fan_in_fan_out"]
    {
        if set(feature) {
            return Err(format!("{feature} is set; this build computes plain LoRA only"));
        }
    }
    match peft.rest.get("bias").and_then(Value::as_str) {
        None | Some("none") => Ok(()),
        Some(other) => Err(format!("bias is {other:?}; this build computes plain LoRA only (\"none\")")),
    }
}

fn check_base(dir: &Path, fingerprint: &str) -> Result<()> {
    let file = dir.join("trace_adapter.json");
    if !file.exists() || fingerprint.is_empty() {
        return Ok(());
    }
    let provenance: Provenance = shared::input::read_json(&file)?;
    if provenance.base_fingerprint == fingerprint {
        return Ok(());
    }
    Err(Error::model(
        dir,
        format!(
            "this adapter was trained on a base model with fingerprint {}, the one given has {fingerprint}; name the \
             adapter's own base model",
            provenance.base_fingerprint
        ),
    ))
}

/// Returns a hash of an adapter's tensors and configuration, for keys of runs.
///
/// # Errors
/// A file cannot be read.
pub fn content_hash(dir: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let file = dir.join(name);
        let bytes = std::fs::read(&file).map_err(|e| Error::model(&file, e.to_string()))?;
        hasher.update(&bytes);
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_rank_is_told_from_another_base_model() {
        for (name, found, needed) in [("q.lora_A.weight", [4, 32], [8, 32]), ("q.lora_B.weight", [32, 4], [32, 8])] {
            let text = misshaped(name, &found, needed, rank_axis(name), 8);
            assert!(text.contains("so rank 4, and adapter_config.json says r = 8"), "{text}");
            assert!(!text.contains("another base model"), "{text}");
        }
        let text = misshaped("q.lora_A.weight", &[8, 16], [8, 32], 0, 8);
        assert!(text.contains("[8, 16]") && text.contains("[8, 32]") && text.contains("another base model"), "{text}");
        assert!(misshaped("q.lora_A.weight", &[8], [8, 32], 0, 8).contains("another base model"));
    }
}
