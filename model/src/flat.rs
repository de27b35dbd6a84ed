//! One-dimensional buffers in libtorch's memory, on the host or on a GPU, that other libraries see as plain memory.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Capacities are multiples of this many elements, so that a buffer can be cut into equal aligned parts for up to 1,024 ranks.
const GRAIN: usize = 1 << 14;

/// What a flat buffer holds.
pub trait Element: Copy + Default + sealed::Sealed {
    /// libtorch's name of the type.
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

mod sealed {
    /// Types whose size and layout libtorch shares.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// A fixed number of elements that start as zeros and never move.
#[derive(Debug)]
pub struct Flat<T: Element> {
    /// [capacity]
    tensor: Tensor,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Flat<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// Memory is short, or there is no such device.
    pub fn zeros(len: usize, device: Device) -> Result<Self> {
        let capacity = len.next_multiple_of(GRAIN);
        let tensor = Tensor::f_zeros([capacity as i64], (T::KIND, device))?;
        Ok(Self { tensor, len, element: PhantomData })
    }

    /// Elements in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Elements that exist: those behind [`len`](Self::len) stay 0 unless somebody writes them through [`Flat::address`].
    pub fn capacity(&self) -> usize {
        self.tensor.numel()
    }

    /// Where the elements are.
    pub fn device(&self) -> Device {
        self.tensor.device()
    }

    /// The elements in use, if they are in host memory.
    pub fn host(&self) -> Option<&[T]> {
        // SAFETY: a contiguous host tensor of at least `len` elements of `T`'s layout that is never resized; its views are only
        // written through a method that borrows their owner exclusively.
        self.on_host().then(|| unsafe { std::slice::from_raw_parts(self.address(), self.len) })
    }

    /// The elements in use, to be changed, if they are in host memory.
    pub fn host_mut(&mut self) -> Option<&mut [T]> {
        // SAFETY: as in `host`, borrowed exclusively.
        self.on_host().then(|| unsafe { std::slice::from_raw_parts_mut(self.address(), self.len) })
    }

    /// The elements of `range`, if they are in host memory and in use. Others may change the rest meanwhile.
    pub fn host_range(&self, range: Range<usize>) -> Option<&[T]> {
        let fits = self.on_host() && range.start <= range.end && range.end <= self.len;
        // SAFETY: as in `host`; only these elements are borrowed.
        fits.then(|| unsafe { std::slice::from_raw_parts(self.address().add(range.start), range.len()) })
    }

    /// The elements of `range`, to be changed, if they are in host memory and in use. Others may use the rest meanwhile.
    pub fn host_range_mut(&mut self, range: Range<usize>) -> Option<&mut [T]> {
        let fits = self.on_host() && range.start <= range.end && range.end <= self.len;
        // SAFETY: as in `host_mut`; only these elements are borrowed.
        fits.then(|| unsafe { std::slice::from_raw_parts_mut(self.address().add(range.start), range.len()) })
    }

    /// Address of the first element, on the buffer's device. All [`capacity`](Self::capacity) elements may be accessed for as
    /// long as the buffer lives.
    pub fn address(&self) -> *mut T {
        self.tensor.data_ptr().cast()
    }

    /// The elements of `range` as a tensor that shares their memory.
    ///
    /// # Errors
    /// The range is outside the capacity.
    pub fn view(&self, range: Range<usize>) -> Result<Tensor> {
        Ok(self.tensor.f_narrow(0, range.start as i64, range.len() as i64)?)
    }

    /// Copies the elements of `range` to the host.
    ///
    /// # Errors
    /// `out` has another length, or the range is outside the capacity.
    pub fn read(&self, range: Range<usize>, out: &mut [T]) -> Result<()> {
        Error::unless_sized("the host's copy", range.len(), out.len())?;
        // SAFETY: `out` is borrowed for longer than the tensor over it lives, and has its size.
        let mut target = unsafe { over(out.as_mut_ptr(), out.len()) };
        target.f_copy_(&self.view(range)?)?;
        Ok(())
    }

    /// Copies `values` from the host to `range`.
    ///
    /// # Errors
    /// `values` has another length than the range, or the range is outside the capacity.
    pub fn write(&mut self, range: Range<usize>, values: &[T]) -> Result<()> {
        Error::unless_sized("the host's values", range.len(), values.len())?;
        // SAFETY: as in `read`; the tensor is only read from.
        let source = unsafe { over(values.as_ptr().cast_mut(), values.len()) };
        self.view(range)?.f_copy_(&source)?;
        Ok(())
    }

    fn on_host(&self) -> bool {
        self.device() == Device::Cpu
    }
}

/// # Safety
/// `start` points to `len` elements that outlive the tensor, and nobody else writes them meanwhile.
unsafe fn over<T: Element>(start: *mut T, len: usize) -> Tensor {
    // SAFETY: the caller's promise.
    unsafe { Tensor::from_blob(start.cast(), &[len as i64], &[1], T::KIND, Device::Cpu) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_views_share_the_memory() {
        let mut flat = Flat::<f32>::zeros(100, Device::Cpu).unwrap();
        assert_eq!((flat.len(), flat.capacity()), (100, GRAIN));
        flat.write(10..13, &[1.0, 2.0, 3.0]).unwrap();
        let _ = flat.view(11..12).unwrap().fill_(7.0);
        let mut out = [0.0; 3];
        flat.read(10..13, &mut out).unwrap();
        assert_eq!(out, [1.0, 7.0, 3.0]);
        assert_eq!(flat.host().unwrap()[9..14], [0.0, 1.0, 7.0, 3.0, 0.0]);
        assert_eq!(flat.host_range_mut(10..12).unwrap(), [1.0, 7.0]);
        assert_eq!(flat.host_range(10..12).unwrap(), [1.0, 7.0]);
        assert!(flat.host_range_mut(99..101).is_none() && flat.host_range(99..101).is_none());
        assert!(flat.write(0..2, &[1.0]).is_err() && flat.read(0..2, &mut out).is_err());
    }

    #[test]
    fn bf16_keeps_its_bits() {
        let mut flat = Flat::<bf16>::zeros(4, Device::Cpu).unwrap();
        let values = [1.0, -2.5, 0.0, 3.0].map(bf16::from_f32);
        flat.write(0..4, &values).unwrap();
        assert_eq!(flat.host().unwrap(), values);
        let seen: Vec<f32> = flat.view(0..4).unwrap().to_kind(Kind::Float).try_into().unwrap();
        assert_eq!(seen, [1.0, -2.5, 0.0, 3.0]);
    }
}
