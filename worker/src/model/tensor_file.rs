//! safetensors files to and from tensors: memory-mapped reading, atomic writing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors, View};
use tch::{Kind, Tensor};

use super::shards::Planned;
use crate::error::{Error, Result};

/// One memory-mapped safetensors file.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

impl TensorFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// A missing, empty, truncated or malformed file, by name.
    #[allow(unsafe_code)]
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::model(path, e.to_string()))?;
        // SAFETY: the map is read-only and private to this struct. A file that another process truncates while it is
        // mapped would raise SIGBUS, as with every memory-mapped reader; model folders are not written while in use.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::model(path, e.to_string()))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
            Error::model(path, format!("is not a whole safetensors file ({e}); copy or build it again"))
        })?;
        Ok(TensorFile { path: path.to_owned(), map, metadata, data_start: header + 8 })
    }

    /// Returns the names and descriptions of all tensors.
    pub fn infos(&self) -> HashMap<String, &TensorInfo> {
        self.metadata.tensors()
    }

    /// Returns the size of the file in bytes.
    pub fn size(&self) -> usize {
        self.map.len()
    }

    /// Returns the stored bytes of one tensor.
    pub fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.map[self.data_start + info.data_offsets.0..self.data_start + info.data_offsets.1]
    }

    /// Copies one tensor out, in its stored type.
    ///
    /// # Errors
    /// A name that is not in the file, or a type libtorch has no counterpart for.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let (info, kind) = self.described(name)?;
        let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        Ok(Tensor::f_from_data_size(self.bytes(info), &shape, kind)?)
    }

    /// Returns name, type and size of one tensor.
    ///
    /// # Errors
    /// As [`TensorFile::tensor`].
    pub fn planned(&self, name: &str) -> Result<Planned> {
        let (info, kind) = self.described(name)?;
        Ok(Planned { name: name.to_owned(), kind, numel: info.shape.iter().map(|&n| n as u64).product() })
    }

    fn described(&self, name: &str) -> Result<(&TensorInfo, Kind)> {
        let info = self.metadata.info(name).ok_or_else(|| Error::model(&self.path, format!("has no tensor {name}")))?;
        let kind = kind_of(info.dtype)
            .ok_or_else(|| Error::model(&self.path, format!("tensor {name} has unsupported type {:?}", info.dtype)))?;
        Ok((info, kind))
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        other => return Err(Error::Config(format!("cannot store a tensor of type {other:?}"))),
    })
}

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    tensor: Tensor,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        let mut bytes = vec![0u8; self.data_len()];
        self.tensor.copy_data_u8(&mut bytes, self.tensor.numel());
        bytes.into()
    }
    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Writes named tensors, beside the target first, synced, then renamed. The header holds one free-form field only
/// (`format`): more would be written in an order that differs from process to process.
///
/// # Errors
/// The target's folder cannot be written; the previous file is untouched then.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let stored = tensors
        .iter()
        .map(|(name, tensor)| {
            let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
            let shape = tensor.size().iter().map(|&n| n as usize).collect();
            Ok((name.clone(), Stored { dtype: dtype_of(tensor.kind())?, shape, tensor }))
        })
        .collect::<Result<Vec<_>>>()?;
    let fields = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let file = shared::output::AtomicFile::create(path)?;
    safetensors::serialize_to_file(stored.iter().map(|(name, s)| (name, s)), Some(fields), file.temporary()).map_err(
        |e| Error::model(path, format!("could not be written: {e}; the previous file, if any, is untouched")),
    )?;
    Ok(file.finish()?)
}
