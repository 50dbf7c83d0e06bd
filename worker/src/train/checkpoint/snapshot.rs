//! What a checkpoint holds, as it was at a step's end: copies in host memory.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::slices::Slice;

/// What a rank has to keep, still in use by training.
#[derive(Debug, Default)]
pub struct Parts {
    /// Tensors that are whole; the first rank alone writes them.
    pub whole: Vec<(String, Tensor)>,
    /// This rank's slices of rows that the ranks share. On every rank there are some, or on none.
    pub slices: Vec<Slice>,
}

/// Copies, whose room is used again for the next ones.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// What is whole.
    pub(super) whole: Vec<(String, Tensor)>,
    /// This rank's slices.
    pub(super) slices: Vec<Slice>,
}

impl Parts {
    /// Returns the sizes and types of all tensors.
    pub(super) fn sizes(&self) -> Vec<(Vec<i64>, Kind)> {
        let whole = self.whole.iter().map(|(_, tensor)| tensor);
        whole
            .chain(self.slices.iter().map(|slice| &slice.numbers))
            .map(|tensor| (tensor.size(), tensor.kind()))
            .collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.slices.is_empty()
    }
}

impl Snapshot {
    /// Returns room for copies of tensors of these sizes, in the order of [`Parts`]. Its memory is there already: the system gives
    /// pages when they are first written, which takes longer than a copy.
    pub(super) fn room_for(sizes: Vec<(Vec<i64>, Kind)>) -> Snapshot {
        let room = |(size, kind): (Vec<i64>, Kind)| (String::new(), Tensor::ones(size, (kind, Device::Cpu)));
        Snapshot { whole: sizes.into_iter().map(room).collect(), slices: Vec::new() }
    }

    /// Replaces the content by copies. From a device it waits until they are made.
    pub(super) fn take(&mut self, parts: &Parts) {
        let mut room: Vec<Tensor> = self.whole.drain(..).map(|(_, tensor)| tensor).collect();
        room.extend(self.slices.drain(..).map(|slice| slice.numbers));
        let mut room = room.into_iter();
        let mut copy = |tensor: &Tensor| copy(room.next(), tensor);
        self.whole = parts.whole.iter().map(|(name, tensor)| (name.clone(), copy(tensor))).collect();
        let slice = |slice: &Slice| {
            let range: Range<usize> = slice.range.clone();
            Slice { name: slice.name.clone(), range, of: slice.of, numbers: copy(&slice.numbers) }
        };
        self.slices = parts.slices.iter().map(slice).collect();
    }
}

/// Returns a copy in host memory, in this room where it fits.
pub(in crate::train) fn copy(room: Option<Tensor>, tensor: &Tensor) -> Tensor {
    let tensor = tensor.detach();
    let fits = |room: &Tensor| room.size() == tensor.size() && room.kind() == tensor.kind();
    match room.filter(fits) {
        Some(mut room) => {
            tch::no_grad(|| room.copy_(&tensor));
            room
        }
        // What lies on the host already would not be copied by the move.
        None if tensor.device() == Device::Cpu => tensor.contiguous().copy(),
        None => tensor.to_device(Device::Cpu).contiguous(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_what_was_there_and_its_room_is_used_again() {
        let mut live = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        let mut snapshot = Snapshot::default();
        let parts = |live: &Tensor| Parts {
            whole: vec![("a".into(), live.shallow_clone())],
            slices: vec![Slice { name: "b".into(), range: 3..5, of: 9, numbers: live.detach() }],
        };
        snapshot.take(&parts(&live));
        let place = snapshot.whole[0].1.data_ptr();
        tch::no_grad(|| {
            let _ = live.g_add_scalar_(1.0);
        });
        assert_eq!(snapshot.whole[0].1, Tensor::from_slice(&[1.0f32, 2.0]));
        assert_eq!(snapshot.slices[0].numbers, Tensor::from_slice(&[1.0f32, 2.0]));
        snapshot.take(&parts(&live));
        assert_eq!(snapshot.whole[0].1, Tensor::from_slice(&[2.0f32, 3.0]));
        assert_eq!(snapshot.whole[0].1.data_ptr(), place);
        assert_eq!((snapshot.slices[0].range.clone(), snapshot.slices[0].of), (3..5, 9));
        // So is room that was made before.
        let mut prepared = Snapshot::room_for(parts(&live).sizes());
        let place = prepared.whole[1].1.data_ptr();
        prepared.take(&parts(&live));
        assert_eq!(prepared.slices[0].numbers.data_ptr(), place);
        assert!(prepared.whole[0].1 == live && prepared.slices[0].numbers == live);
        // Another shape gets new room.
        let other = Tensor::from_slice(&[5.0f32]);
        snapshot.take(&Parts { whole: vec![("a".into(), other.shallow_clone())], slices: Vec::new() });
        assert!(snapshot.whole[0].1 == other && snapshot.slices.is_empty());
    }
}
