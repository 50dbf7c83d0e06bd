//! Reading safetensors files, and damaging them on purpose: the header is JSON after its length in eight bytes.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// Returns the numbers of a file's tensors, all of them f32, by name.
///
/// # Panics
/// If the bytes are not those of such a file.
pub fn f32s(bytes: &[u8]) -> BTreeMap<String, Vec<f32>> {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("the header is JSON");
    let entries = header.as_object().expect("a header is an object");
    let numbers = |(name, entry): (&String, &Value)| {
        assert_eq!(entry["dtype"], "F32", "{name}");
        let at = |i: usize| 8 + length + entry["data_offsets"][i].as_u64().expect("offsets are numbers") as usize;
        let elements = bytes[at(0)..at(1)].chunks_exact(4);
        (name.clone(), elements.map(|four| f32::from_le_bytes(four.try_into().expect("four bytes"))).collect())
    };
    entries.iter().filter(|(name, _)| *name != "__metadata__").map(numbers).collect()
}

/// Returns the types and numbers of elements of a file's tensors whose names begin so.
///
/// # Panics
/// If the bytes are not those of such a file.
pub fn sizes(bytes: &[u8], prefix: &str) -> Vec<(String, usize)> {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("the header is JSON");
    let entries = header.as_object().expect("a header is an object").iter();
    let of = |(_, entry): (&String, &Value)| {
        let dimensions = entry["shape"].as_array().expect("a shape is an array").iter();
        let numbers = dimensions.map(|n| n.as_u64().expect("dimensions are numbers") as usize).product();
        (entry["dtype"].as_str().expect("a type is a text").to_owned(), numbers)
    };
    entries.filter(|(name, _)| *name != "__metadata__" && name.starts_with(prefix)).map(of).collect()
}

/// Rewrites a file with its header and data changed by `change`.
///
/// # Panics
/// If the file is not a safetensors file.
pub fn edit(path: &Path, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let bytes = std::fs::read(path).expect("the file can be read");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("the header is JSON");
    let mut data = bytes[8 + length..].to_vec();
    change(&mut header, &mut data);
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(data);
    std::fs::write(path, out).expect("the file can be written");
}

/// Gives a tensor another name.
pub fn rename(path: &Path, from: &str, to: &str) {
    edit(path, |header, _| {
        let entries = header.as_object_mut().expect("a header is an object");
        let entry = entries.remove(from).expect("the tensor is there");
        entries.insert(to.to_owned(), entry);
    });
}

/// Gives a tensor another shape with as many elements.
pub fn reshape(path: &Path, name: &str, shape: &[u64]) {
    edit(path, |header, _| header[name]["shape"] = shape.into());
}

/// Fills an f32 tensor with one value.
pub fn fill(path: &Path, name: &str, value: f32) {
    edit(path, |header, data| {
        let at = |i: usize| header[name]["data_offsets"][i].as_u64().expect("offsets are numbers") as usize;
        for element in data[at(0)..at(1)].chunks_exact_mut(4) {
            element.copy_from_slice(&value.to_le_bytes());
        }
    });
}
