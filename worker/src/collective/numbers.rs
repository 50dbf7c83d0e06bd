//! Numbers that ranks exchange, and how two of them become one.

use half::bf16;
use tch::{Device, Kind, Tensor};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A buffer of one rank, in any of the types that can be exchanged.
#[derive(Debug)]
pub enum Numbers<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// bfloat16; every sum of two is rounded.
    Bf16(&'a mut [bf16]),
    /// 64-bit floats.
    F64(&'a mut [f64]),
    /// A contiguous tensor on a CUDA device, of one of these types.
    Device(&'a mut Tensor),
}

impl<'a> Numbers<'a> {
    /// Returns the numbers of a tensor where they are, without copying them.
    ///
    /// # Panics
    /// The tensor is not contiguous, or of another type than those that can be exchanged.
    #[allow(unsafe_code)]
    pub fn of(tensor: &'a mut Tensor) -> Numbers<'a> {
        assert!(tensor.is_contiguous(), "numbers lie in a row");
        if tensor.device() != Device::Cpu {
            return Numbers::Device(tensor);
        }
        let (pointer, length) = (tensor.data_ptr(), tensor.numel());
        if length == 0 {
            return Numbers::F32(&mut []);
        }
        // SAFETY: a contiguous tensor of this type has `length` numbers from `pointer` on, which live as long as the tensor
        // that is borrowed here.
        unsafe {
            match tensor.kind() {
                Kind::Float => Numbers::F32(std::slice::from_raw_parts_mut(pointer.cast(), length)),
                Kind::BFloat16 => Numbers::Bf16(std::slice::from_raw_parts_mut(pointer.cast(), length)),
                Kind::Double => Numbers::F64(std::slice::from_raw_parts_mut(pointer.cast(), length)),
                other => panic!("numbers of type {other:?} are not exchanged"),
            }
        }
    }

    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::Bf16(numbers) => numbers.len(),
            Numbers::F64(numbers) => numbers.len(),
            Numbers::Device(tensor) => tensor.numel(),
        }
    }
}

impl<'a> From<&'a mut [f32]> for Numbers<'a> {
    fn from(numbers: &'a mut [f32]) -> Self {
        Numbers::F32(numbers)
    }
}

impl<'a> From<&'a mut [bf16]> for Numbers<'a> {
    fn from(numbers: &'a mut [bf16]) -> Self {
        Numbers::Bf16(numbers)
    }
}

impl<'a> From<&'a mut [f64]> for Numbers<'a> {
    fn from(numbers: &'a mut [f64]) -> Self {
        Numbers::F64(numbers)
    }
}

/// What becomes of two numbers at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Their sum.
    Sum,
    /// The larger one; NaN if one of them is.
    Max,
}

/// A number as it goes over the wire: the bytes of this machine, which are little-endian on every machine that libtorch
/// is built for.
pub(super) trait Number: Copy + Default + FromBytes + IntoBytes + Immutable + Send + Sync {
    fn plus(self, other: Self) -> Self;
    fn larger(self, other: Self) -> Self;
}

macro_rules! number {
    ($type:ty, |$a:ident, $b:ident| $plus:expr) => {
        impl Number for $type {
            fn plus(self, other: Self) -> Self {
                let ($a, $b) = (self, other);
                $plus
            }

            fn larger(self, other: Self) -> Self {
                if self.is_nan() || self > other { self } else { other }
            }
        }
    };
}

number!(f32, |a, b| a + b);
number!(f64, |a, b| a + b);
number!(bf16, |a, b| bf16::from_f32(a.to_f32() + b.to_f32()));

/// Makes of every own number what it and the incoming one come to.
pub(super) fn combine<N: Number>(op: Op, own: &mut [N], incoming: &[N]) {
    let pairs = own.iter_mut().zip(incoming);
    match op {
        Op::Sum => pairs.for_each(|(own, incoming)| *own = incoming.plus(*own)),
        Op::Max => pairs.for_each(|(own, incoming)| *own = incoming.larger(*own)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_outlasts_every_maximum() {
        let mut own = [f32::NAN, 1.0, 3.0];
        combine(Op::Max, &mut own, &[2.0, f32::NAN, -1.0]);
        assert!(own[0].is_nan() && own[1].is_nan());
        assert_eq!(own[2], 3.0);
    }

    #[test]
    fn sums_of_bf16_are_rounded() {
        let mut own = [bf16::from_f32(1.0)];
        combine(Op::Sum, &mut own, &[bf16::from_f32(1.0 / 512.0)]);
        assert_eq!(own[0].to_f32(), 1.0);
    }
}
