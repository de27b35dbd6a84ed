//! Arrays that a device needs before a computation: sent together, and to a GPU without a wait of the host.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// What is to be sent.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    words: Vec<i64>,
}

/// One array's place.
#[derive(Debug, Clone)]
pub(crate) struct Slot(Range<usize>);

/// What has been sent.
#[derive(Debug)]
pub(crate) struct Sent(Tensor);

impl Upload {
    /// Adds integers.
    pub(crate) fn integers(&mut self, values: impl IntoIterator<Item = i64>) -> Slot {
        let start = self.words.len();
        self.words.extend(values);
        Slot(start..self.words.len())
    }

    /// Adds numbers.
    pub(crate) fn floats(&mut self, values: impl IntoIterator<Item = f64>) -> Slot {
        self.integers(values.into_iter().map(|value| value.to_bits().cast_signed()))
    }

    /// Sends all.
    pub(crate) fn send(self, device: Device) -> Result<Sent> {
        let words = Tensor::f_from_slice(&self.words)?;
        if !device.is_cuda() {
            return Ok(Sent(words.f_to_device(device)?));
        }
        // Only from pinned memory does a copy go on without the host; libtorch keeps that memory until it has been read. Its public
        // function warns of the device that tch always names.
        Ok(Sent(words.f_internal_pin_memory(device)?.f_to_device_(device, Kind::Int64, true, false)?))
    }
}

impl Sent {
    /// [n] the integers of a slot.
    pub(crate) fn integers(&self, slot: &Slot) -> Result<Tensor> {
        Ok(self.0.f_narrow(0, slot.0.start as i64, slot.0.len() as i64)?)
    }

    /// [n] f64, the numbers of a slot.
    pub(crate) fn floats(&self, slot: &Slot) -> Result<Tensor> {
        Ok(self.integers(slot)?.f_view_dtype(Kind::Double)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_arrive_as_they_were() {
        let mut upload = Upload::default();
        let first = upload.integers([3, -4, i64::MAX]);
        let floats = upload.floats([0.1, f64::NEG_INFINITY, -2.5]);
        let (none, last) = (upload.integers([]), upload.integers([7]));
        let sent = upload.send(Device::Cpu).unwrap();
        let integers = |slot| Vec::<i64>::try_from(sent.integers(slot).unwrap()).unwrap();
        assert_eq!(integers(&first), [3, -4, i64::MAX]);
        assert_eq!((integers(&none), integers(&last)), (vec![], vec![7]));
        let found = Vec::<f64>::try_from(sent.floats(&floats).unwrap()).unwrap();
        assert_eq!(found, [0.1, f64::NEG_INFINITY, -2.5]);
    }
}
