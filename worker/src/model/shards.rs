//! The weights of a model folder in one file or several, one file in memory at a time.

use std::path::Path;

use serde_json::{Map, json};
use tch::{Kind, Tensor};

use super::tensor_file;
use crate::error::{Error, Result};

/// Largest file by default, as the hub's own programs write them.
pub const MAX_BYTES: u64 = 5_000_000_000;

/// The name of an only file.
pub const SINGLE: &str = "model.safetensors";
/// The name of the list of several.
pub const INDEX: &str = "model.safetensors.index.json";

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name in checkpoints.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Its elements.
    pub numel: u64,
}

impl Planned {
    /// Returns the description of a tensor.
    pub fn of(name: &str, tensor: &Tensor) -> Self {
        Planned { name: name.to_owned(), kind: tensor.kind(), numel: tensor.numel() as u64 }
    }

    fn bytes(&self) -> u64 {
        self.numel * self.kind.elt_size_in_bytes() as u64
    }
}

/// Cuts tensors, in their order, into files of at most `max_bytes`; a larger tensor gets a file to itself.
fn cut(tensors: &[Planned], max_bytes: u64) -> Vec<&[Planned]> {
    let (mut files, mut begin, mut filled) = (Vec::new(), 0, 0);
    for (at, tensor) in tensors.iter().enumerate() {
        if at > begin && filled + tensor.bytes() > max_bytes {
            files.push(&tensors[begin..at]);
            (begin, filled) = (at, 0);
        }
        filled += tensor.bytes();
    }
    files.push(&tensors[begin..]);
    files
}

/// Writes the weights of a model into a folder that holds none; `tensor` makes one when it is needed. Where there are several
/// files, their list is written last.
///
/// # Errors
/// A tensor cannot be made, or a file cannot be written.
pub fn write(
    folder: &Path,
    tensors: &[Planned],
    max_bytes: u64,
    mut tensor: impl FnMut(&str) -> Result<Tensor>,
) -> Result<()> {
    let files = cut(tensors, max_bytes);
    let names: Vec<String> = match files.len() {
        1 => vec![SINGLE.to_owned()],
        n => (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors")).collect(),
    };
    let mut weight_map = Map::new();
    for (file, name) in files.iter().zip(&names) {
        let made = file
            .iter()
            .map(|planned| Ok((planned.name.clone(), tensor(&planned.name)?)))
            .collect::<Result<Vec<_>>>()?;
        tensor_file::write(&folder.join(name), &made)?;
        weight_map.extend(file.iter().map(|planned| (planned.name.clone(), name.as_str().into())));
    }
    if names.len() > 1 {
        let total: u64 = tensors.iter().map(Planned::bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        shared::output::write_json(&folder.join(INDEX), &index)?;
    }
    Ok(())
}

/// Lists what readers take for a model's weights, by name.
///
/// # Errors
/// The folder cannot be read.
pub fn files(folder: &Path) -> Result<Vec<String>> {
    let io = |e: std::io::Error| Error::model(folder, e.to_string());
    let is_one = |name: &str| {
        let part = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
        let is_part = part.and_then(|part| part.split_once("-of-")).is_some_and(|(i, n)| {
            [i, n].iter().all(|number| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()))
        });
        is_part || name == SINGLE || name == INDEX
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string().ok().filter(|name| is_one(name)));
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(sizes: &[u64]) -> Vec<Planned> {
        let named = sizes.iter().enumerate();
        named.map(|(i, &numel)| Planned { name: format!("t{i}"), kind: Kind::Float, numel }).collect()
    }

    #[test]
    fn files_are_filled_in_order_and_a_large_tensor_stands_alone() {
        let sizes = |numels: &[u64], max| cut(&planned(numels), max).iter().map(|f| f.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&[1, 2, 3], 24), [3]);
        assert_eq!(sizes(&[1, 2, 3], 23), [2, 1]);
        assert_eq!(sizes(&[9, 1, 1, 9, 1], 12), [1, 2, 1, 1]);
    }
}
