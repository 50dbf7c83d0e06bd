//! Where a decoder's weights come from: a model folder's safetensors (one file or sharded), or a seeded draw.
//!
//! Every tensor is checked by name and shape before use; surplus tensors are refused too, since they mean that the
//! checkpoint is of another family than its `config.json` says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use shared::keyed_random::KeyedRandom;
use tch::{Device, Kind, Tensor};

use super::config::{ModelConfig, NormWeight};
use super::lora::Module;
use super::shards::{self, Planned};
use super::tensor_file::TensorFile;
use crate::error::{Error, Result};

/// Returns name and shape of every tensor a checkpoint of this shape has, in the order of computation.
pub fn expected(config: &ModelConfig) -> Vec<(String, Vec<i64>)> {
    let d = config.hidden_size;
    let mut names = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, d])];
    for layer in 0..config.layers {
        let at = |rest: &str| format!("model.layers.{layer}.{rest}");
        names.push((at("input_layernorm.weight"), vec![d]));
        for module in Module::ALL {
            let (out, input) = module.shape(config);
            names.push((at(&format!("{}.weight", module.path())), vec![out, input]));
            if has_bias(config, module) {
                names.push((at(&format!("{}.bias", module.path())), vec![out]));
            }
        }
        for norm in norms_after_linears(config.norms_after) {
            names.push((at(&format!("{norm}.weight")), vec![d]));
        }
    }
    names.push(("model.norm.weight".to_owned(), vec![d]));
    if !config.tie_word_embeddings {
        names.push(("lm_head.weight".to_owned(), vec![config.vocab_size, d]));
    }
    names
}

/// Returns whether a module carries a bias in this configuration.
pub fn has_bias(config: &ModelConfig, module: Module) -> bool {
    match module {
        Module::Q | Module::K | Module::V => config.qkv_bias,
        Module::O => config.output_bias,
        Module::Gate | Module::Up | Module::Down => config.mlp_bias,
    }
}

/// Returns the names of a layer's norms besides `input_layernorm`. Where results are normed too, the norm named after
/// the attention is that of its result; elsewhere it is that of the feed-forward layer's input.
pub fn norms_after_linears(norms_after: bool) -> &'static [&'static str] {
    if norms_after {
        &["post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    } else {
        &["post_attention_layernorm"]
    }
}

/// The safetensors files of a model folder.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<TensorFile>,
    /// Tensor name → index into `files`.
    place: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards named by `model.safetensors.index.json`.
    ///
    /// # Errors
    /// Neither is there, or one of the files is missing or damaged.
    pub fn open(model_dir: &Path) -> Result<Self> {
        let single = model_dir.join(shards::SINGLE);
        let index = model_dir.join(shards::INDEX);
        let names: Vec<String> = if single.exists() {
            vec![shards::SINGLE.to_owned()]
        } else if index.exists() {
            let text = std::fs::read_to_string(&index).map_err(|e| Error::model(&index, e.to_string()))?;
            let index: ShardIndex = serde_json::from_str(&text).map_err(|e| Error::model(&index, e.to_string()))?;
            index.weight_map.into_values().collect::<BTreeSet<_>>().into_iter().collect()
        } else {
            return Err(Error::model(
                model_dir,
                "has neither model.safetensors nor model.safetensors.index.json; weights in other formats must be \
                 converted to safetensors first",
            ));
        };
        let files = names.iter().map(|name| TensorFile::open(&model_dir.join(name))).collect::<Result<Vec<_>>>()?;
        let mut place = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.infos().into_keys() {
                if let Some(other) = place.insert(name.clone(), i) {
                    let other = files[other].path().display();
                    return Err(Error::model(file.path(), format!("tensor {name} is in {other} too")));
                }
            }
        }
        Ok(Checkpoint { files, place })
    }

    /// Checks names and shapes against the configuration, naming the first tensor at fault.
    ///
    /// # Errors
    /// A missing or surplus tensor, or a wrong shape.
    pub fn check(&self, config: &ModelConfig, model_dir: &Path) -> Result<()> {
        // Every layer has several tensors: with more layers than tensors, the list of what is expected has no bounds.
        if config.layers > self.place.len() {
            return Err(Error::model(
                model_dir,
                format!(
                    "config.json says num_hidden_layers = {}, and there are {} tensors in all",
                    config.layers,
                    self.place.len()
                ),
            ));
        }
        let expected = expected(config);
        for (name, shape) in &expected {
            let Some(&i) = self.place.get(name) else {
                return Err(Error::model(model_dir, format!("tensor {name} of shape {shape:?} is missing")));
            };
            let file = &self.files[i];
            let found: Vec<i64> = file.infos()[name].shape.iter().map(|&n| n as i64).collect();
            if &found != shape {
                return Err(Error::model(
                    file.path(),
                    format!("tensor {name} has shape {found:?}; config.json asks for {shape:?}"),
                ));
            }
        }
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let harmless = |name: &str| {
            name.ends_with("rotary_emb.inv_freq") || (name == "lm_head.weight" && config.tie_word_embeddings)
        };
        match self.place.keys().find(|name| !known.contains(name.as_str()) && !harmless(name)) {
            Some(name) => Err(Error::model(
                model_dir,
                format!("tensor {name} is not part of a model of this config.json; is it of another family?"),
            )),
            None => Ok(()),
        }
    }

    /// Returns the size of all files in bytes.
    pub fn bytes(&self) -> usize {
        self.files.iter().map(TensorFile::size).sum()
    }

    /// Copies one tensor out in the wanted type.
    ///
    /// # Errors
    /// As for [`TensorFile::tensor`].
    pub fn tensor(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor> {
        Ok(self.stored(name)?.to_device(device).to_kind(kind))
    }

    /// Copies one tensor out in its stored type.
    ///
    /// # Errors
    /// As for [`TensorFile::tensor`].
    pub fn stored(&self, name: &str) -> Result<Tensor> {
        self.file_of(name)?.tensor(name)
    }

    fn file_of(&self, name: &str) -> Result<&TensorFile> {
        let place = self.place.get(name).map(|&at| &self.files[at]);
        place.ok_or_else(|| Error::model(self.files[0].path(), format!("has no tensor {name}")))
    }

    /// Returns what is stored under a name, without reading it.
    ///
    /// # Errors
    /// A type that libtorch has no counterpart for.
    pub fn planned(&self, name: &str) -> Result<Planned> {
        self.file_of(name)?.planned(name)
    }

    /// Returns a hash of names, types, shapes and all bytes of the tensors. Takes as long as reading them does.
    pub fn content_hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, &i) in &self.place {
            let infos = self.files[i].infos();
            let info = infos[name];
            hasher.update(name.as_bytes());
            hasher.update(format!("{:?}{:?}", info.dtype, info.shape).as_bytes());
            hasher.update(self.files[i].bytes(info));
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// Returns a short name of these very weights: a hash over names, shapes and samples of every tensor's bytes.
    /// It tells one base model from another without reading gigabytes.
    pub fn fingerprint(&self) -> String {
        const SAMPLE: usize = 4096;
        let mut hasher = blake3::Hasher::new();
        for (name, &i) in &self.place {
            let file = &self.files[i];
            let infos = file.infos();
            let info = infos[name];
            hasher.update(name.as_bytes());
            hasher.update(format!("{:?}{:?}", info.dtype, info.shape).as_bytes());
            let bytes = file.bytes(info);
            hasher.update(&bytes[..bytes.len().min(SAMPLE)]);
            let middle = bytes.len() / 2;
            hasher.update(&bytes[middle..bytes.len().min(middle + SAMPLE)]);
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// Refuses a model whose weights alone, in f32, are more than the machine's memory (0: not known).
///
/// # Errors
/// They are; the message gives both sizes.
pub fn check_memory(config: &ModelConfig, memory: u64) -> std::result::Result<(), String> {
    // The layers are alike: the sum is that of one layer times their number, however many there are.
    let one = ModelConfig { layers: 1, ..config.clone() };
    let size = |shape: &[i64]| shape.iter().map(|&n| n as f64).product::<f64>();
    let (in_layer, outside): (Vec<_>, Vec<_>) =
        expected(&one).into_iter().partition(|(name, _)| name.contains(".layers."));
    let sum = |tensors: &[(String, Vec<i64>)]| tensors.iter().map(|(_, shape)| size(shape)).sum::<f64>();
    let parameters = sum(&outside) + sum(&in_layer) * config.layers as f64;
    if memory == 0 || parameters * 4.0 <= memory as f64 {
        return Ok(());
    }
    let gib = f64::from(1 << 30);
    Err(format!(
        "describes a model of {parameters:.3e} parameters, {:.1} GiB in f32; this machine has {:.1} GiB",
        parameters * 4.0 / gib,
        memory as f64 / gib
    ))
}

/// Draws start weights for training from scratch: normal with the configuration's deviation, norms such that they
/// multiply by one, biases zero.
/// Each tensor has its own stream of `seed`, so the draw does not depend on order.
pub fn draw(config: &ModelConfig, seed: u64, name: &str, shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<f32> = if name.ends_with("norm.weight") {
        let one = if config.norm == NormWeight::FromOne { 0.0 } else { 1.0 };
        vec![one; count as usize]
    } else if name.ends_with(".bias") {
        vec![0.0; count as usize]
    } else {
        let key = blake3::hash(name.as_bytes());
        let word = u64::from_le_bytes(key.as_bytes()[..8].try_into().expect("a hash has 32 bytes"));
        let mut random = KeyedRandom::new(&[seed, word]);
        (0..count).map(|_| (random.normal() * config.initializer_range) as f32).collect()
    };
    Tensor::from_slice(&values).view(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_norms_multiply_by_one_however_they_are_stored() {
        let norms = |family: &str| {
            let text = format!(
                r#"{{"model_type": "{family}", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16,
                "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}}"#
            );
            let config = ModelConfig::parse(Path::new("config.json"), text.as_bytes()).unwrap();
            let named = expected(&config).into_iter().filter(|(name, _)| name.contains("norm"));
            let means = named.map(|(name, shape)| draw(&config, 1, &name, &shape).mean(Kind::Double).double_value(&[]));
            means.collect::<Vec<_>>()
        };
        assert_eq!((norms("llama"), norms("gemma2")), (vec![1.0; 3], vec![0.0; 5]));
    }

    #[test]
    fn a_model_larger_than_the_memory_is_refused_before_it_is_drawn() {
        let text = br#"{"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true}"#;
        let config = ModelConfig::parse(Path::new("config.json"), text).unwrap();
        let parameters: i64 = expected(&config).iter().map(|(_, shape)| shape.iter().product::<i64>()).sum();
        let bytes = 4 * parameters as u64;
        assert_eq!(check_memory(&config, bytes), Ok(()));
        assert!(check_memory(&config, bytes - 1).unwrap_err().contains("GiB"));
        let huge = ModelConfig { layers: 1 << 30, hidden_size: 1 << 30, ..config };
        assert!(check_memory(&huge, 1 << 40).is_err());
        assert_eq!(check_memory(&huge, 0), Ok(()), "the memory is not known");
    }
}
