//! Vectors in the space that gradients are taken in: sums, products, and the file that keeps them.

use std::path::Path;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::lora::Lora;
use crate::model::tangent::Direction;
use crate::model::tensor_file::{self, TensorFile};
use crate::model::weight_space::Weights;

/// One number for every parameter that a score can be a derivative by.
#[derive(Debug)]
pub enum Vector {
    /// Of an adapter's factors.
    Adapter(Lora),
    /// Of the model's own weights.
    Weights(Box<Weights>),
}

impl Vector {
    /// Returns the tensors with the names of their parameters; they share the vector's memory.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        match self {
            Vector::Adapter(lora) => lora.named_parameters(),
            Vector::Weights(weights) => weights.named(),
        }
    }

    /// Returns a vector of the same space that is zero everywhere.
    pub fn zeros_like(&self) -> Vector {
        match self {
            Vector::Adapter(lora) => Vector::Adapter(lora.zeros_like()),
            Vector::Weights(weights) => Vector::Weights(Box::new(weights.zeros_like())),
        }
    }

    /// Returns it as what a model can be moved along.
    pub fn direction(&self) -> Direction<'_> {
        match self {
            Vector::Adapter(lora) => Direction::Adapter(lora),
            Vector::Weights(weights) => Direction::Weights(weights),
        }
    }

    fn tensors(&self) -> impl Iterator<Item = Tensor> {
        self.named().into_iter().map(|(_, tensor)| tensor)
    }

    /// Calls `f` with the tensors of this vector, to be changed in place, and of another of the same space.
    fn with(&mut self, other: &Vector, mut f: impl FnMut(&mut Tensor, &Tensor)) {
        tch::no_grad(|| self.tensors().zip(other.tensors()).for_each(|(mut own, other)| f(&mut own, &other)));
    }

    /// Returns a copy.
    pub fn copy(&self) -> Vector {
        let mut copy = self.zeros_like();
        copy.with(self, |own, other| own.copy_(other));
        copy
    }

    /// Adds `factor` times another vector.
    pub fn add(&mut self, factor: f64, other: &Vector) {
        self.with(other, |own, other| {
            let _ = own.g_add_(&(other * factor));
        });
    }

    /// Multiplies by a factor.
    pub fn scale(&mut self, factor: f64) {
        tch::no_grad(|| {
            self.tensors().for_each(|mut own| {
                let _ = own.g_mul_scalar_(factor);
            });
        });
    }

    /// Returns the inner product with another vector, summed in f64.
    pub fn dot(&self, other: &Vector) -> f64 {
        self.tensors().zip(other.tensors()).map(|(own, other)| dot(&own, &other)).sum()
    }

    /// Returns ‖·‖.
    pub fn norm(&self) -> f64 {
        self.dot(self).sqrt()
    }

    /// Returns what each of so many layers adds to the inner product with another vector; then, where the space has
    /// parameters outside of layers, what those add.
    pub fn dot_by_layer(&self, other: &Vector, layers: usize) -> Vec<f64> {
        let mut parts = vec![0.0; layers];
        for ((name, own), (_, other)) in self.named().iter().zip(other.named()) {
            let at = layer_of(name).unwrap_or(layers);
            parts.resize(parts.len().max(at + 1), 0.0);
            parts[at] += dot(own, &other);
        }
        parts
    }
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    (a * b).sum(Kind::Double).double_value(&[])
}

/// Returns the number of the layer in a parameter's name, `model.layers.N.…`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// The key of what kept vectors were computed from.
const KEY: &str = "trace_key";

fn name_in_file(number: usize, name: &str) -> String {
    format!("{number}.{name}")
}

/// Keeps vectors in a file, for other parts of the same scoring.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, key: &str, vectors: &[Vector]) -> Result<()> {
    let key_bytes: Vec<i64> = key.bytes().map(i64::from).collect();
    let of = |(number, vector): (usize, &Vector)| {
        let named = vector.named().into_iter();
        named.map(|(name, tensor)| (name_in_file(number, &name), tensor)).collect::<Vec<_>>()
    };
    let mut tensors: Vec<(String, Tensor)> = vectors.iter().enumerate().flat_map(of).collect();
    tensors.push((KEY.to_owned(), Tensor::from_slice(&key_bytes)));
    tensor_file::write(file, &tensors)
}

/// Reads kept vectors, of the spaces of `zeros`; none where there is no such file, or one of another computation, which
/// is replaced.
///
/// # Errors
/// The file is there and damaged.
pub fn read(file: &Path, key: &str, zeros: Vec<Vector>) -> Result<Option<Vec<Vector>>> {
    if !file.exists() {
        return Ok(None);
    }
    let tensors = TensorFile::open(file)?;
    let stored: Vec<i64> = Vec::try_from(tensors.tensor(KEY)?)?;
    if !stored.iter().copied().eq(key.bytes().map(i64::from)) {
        tracing::warn!("{}: is of another model, adapter, gold batch or curvature; it is made anew", file.display());
        return Ok(None);
    }
    for (number, vector) in zeros.iter().enumerate() {
        for (name, mut own) in vector.named() {
            let stored = tensors.tensor(&name_in_file(number, &name))?;
            if stored.size() != own.size() {
                return Err(Error::model(file, format!("{name} has shape {:?}, not {:?}", stored.size(), own.size())));
            }
            tch::no_grad(|| own.copy_(&stored));
        }
    }
    Ok(Some(zeros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_by_name() {
        assert_eq!(layer_of("model.layers.11.self_attn.q_proj.lora_B.weight"), Some(11));
        assert_eq!(layer_of("model.norm.weight"), None);
        assert_eq!(layer_of("lm_head.weight"), None);
    }
}
