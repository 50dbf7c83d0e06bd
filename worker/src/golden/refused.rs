//! Checkpoints of the golden families with something wrong: the message names the tensor.

use super::*;
use crate::model::tensor_file::{self, TensorFile};

/// A copy of a golden checkpoint whose tensors were changed; the message it is refused with.
fn refused(name: &str, change: impl FnOnce(&mut Vec<(String, Tensor)>), config: impl FnOnce(&mut Value)) -> String {
    let source = folder("../families").join(name);
    let dir = tempfile::tempdir().unwrap();
    let file = TensorFile::open(&source.join("model.safetensors")).unwrap();
    let mut names: Vec<String> = file.infos().into_keys().collect();
    names.sort();
    let mut tensors = names.into_iter().map(|n| (n.clone(), file.tensor(&n).unwrap())).collect();
    change(&mut tensors);
    tensor_file::write(&dir.path().join("model.safetensors"), &tensors).unwrap();
    let mut settings: Value = shared::input::read_json(&source.join("config.json")).unwrap();
    config(&mut settings);
    shared::output::write_json(&dir.path().join("config.json"), &settings).unwrap();
    Decoder::load(dir.path(), Kind::Float, Device::Cpu).unwrap_err().to_string()
}

#[test]
fn missing_tensors_are_named() {
    for (model, tensor) in [
        ("gemma2", "model.layers.3.pre_feedforward_layernorm.weight"),
        ("gemma2", "model.layers.0.post_feedforward_layernorm.weight"),
        ("qwen2-tied", "model.layers.1.self_attn.k_proj.bias"),
        ("llama2", "lm_head.weight"),
    ] {
        let text = refused(model, |tensors| tensors.retain(|(name, _)| name != tensor), |_| ());
        assert!(text.contains(&format!("tensor {tensor} of shape")) && text.contains("is missing"), "{text}");
    }
}

#[test]
fn surplus_and_misshaped_tensors_are_named() {
    let extra = "model.layers.0.self_attn.o_proj.bias";
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let text = refused("qwen2-tied", |tensors| tensors.push((extra.to_owned(), zeros(&[16]))), |_| ());
    assert!(text.contains(extra) && text.contains("not part of"), "{text}");
    let text = refused("gemma2", |tensors| tensors.iter_mut().for_each(|(_, t)| *t = t.unsqueeze(0)), |_| ());
    assert!(text.contains("tensor model.embed_tokens.weight has shape [1, 48, 16]"), "{text}");
}

#[test]
fn weights_of_another_family_than_the_configuration_says() {
    let as_llama = |config: &mut Value| config["model_type"] = "llama".into();
    let text = refused("gemma2", |_| (), as_llama);
    assert!(text.contains("feedforward_layernorm") && text.contains("of another family"), "{text}");
    let text = refused("qwen2-tied", |_| (), as_llama);
    assert!(text.contains("_proj.bias") && text.contains("of another family"), "{text}");
    let text = refused("llama2", |_| (), |config| config["model_type"] = "qwen2".into());
    assert!(text.contains("model.layers.0.self_attn.q_proj.bias of shape [16] is missing"), "{text}");
}

/// Shards: one missing, one that holds a tensor of another one too, an index that promises what no shard has.
#[test]
fn shards_that_do_not_belong_together() {
    let copy = || {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(folder("../families/llama31")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        dir
    };
    let problem =
        |dir: &tempfile::TempDir| Decoder::load(dir.path(), Kind::Float, Device::Cpu).unwrap_err().to_string();
    let shard = |i: usize| format!("model-0000{i}-of-00003.safetensors");

    let dir = copy();
    std::fs::remove_file(dir.path().join(shard(2))).unwrap();
    assert!(problem(&dir).contains(&shard(2)), "{}", problem(&dir));
    std::fs::copy(dir.path().join(shard(1)), dir.path().join(shard(2))).unwrap();
    let text = problem(&dir);
    assert!(text.contains(" is in ") && text.contains(&shard(1)) && text.contains(&shard(2)), "{text}");

    let dir = copy();
    let index = dir.path().join("model.safetensors.index.json");
    let mut value: Value = shared::input::read_json(&index).unwrap();
    let map = value["weight_map"].as_object_mut().unwrap();
    map.retain(|_, file| file != &shard(3));
    shared::output::write_json(&index, &value).unwrap();
    assert!(problem(&dir).contains("is missing"), "{}", problem(&dir));
    std::fs::write(&index, "{\"weight_map\": 5}").unwrap();
    assert!(problem(&dir).contains("model.safetensors.index.json"), "{}", problem(&dir));
}
