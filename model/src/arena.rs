//! Parameters and gradients as two flat f32 buffers in libtorch's memory, readable as slices.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::layout::ParamLayout;

/// The two flat buffers of a model, in host memory; elements of alignment gaps stay 0.
#[derive(Debug)]
pub struct Arena {
    layout: Arc<ParamLayout>,
    params: Tensor,
    grads: Tensor,
}

impl Arena {
    pub(crate) fn zeros(layout: Arc<ParamLayout>) -> Result<Self> {
        let zeros = || Tensor::f_zeros([layout.len() as i64], (Kind::Float, Device::Cpu));
        let (params, grads) = (zeros()?, zeros()?);
        Ok(Self { layout, params, grads })
    }

    /// Where each parameter lies.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// All parameters, `layout().len()` of them.
    pub fn params(&self) -> &[f32] {
        // SAFETY: see `slice`; nothing writes parameters while the arena is borrowed.
        unsafe { slice(&self.params, self.layout.len()) }
    }

    /// All parameters, to be changed.
    pub fn params_mut(&mut self) -> &mut [f32] {
        // SAFETY: see `slice_mut`; the arena is borrowed exclusively.
        unsafe { slice_mut(&self.params, self.layout.len()) }
    }

    /// All gradients, in the parameters' places.
    pub fn grads(&self) -> &[f32] {
        // SAFETY: see `slice`; nothing writes gradients while the arena is borrowed.
        unsafe { slice(&self.grads, self.layout.len()) }
    }

    /// All gradients, to be reduced, scaled or zeroed.
    pub fn grads_mut(&mut self) -> &mut [f32] {
        // SAFETY: see `slice_mut`; the arena is borrowed exclusively.
        unsafe { slice_mut(&self.grads, self.layout.len()) }
    }

    /// All parameters, to be changed, beside all gradients.
    pub fn params_mut_and_grads(&mut self) -> (&mut [f32], &[f32]) {
        // SAFETY: see `slice` and `slice_mut`; two buffers of an exclusively borrowed arena.
        unsafe { (slice_mut(&self.params, self.layout.len()), slice(&self.grads, self.layout.len())) }
    }

    /// Sets one parameter by name.
    ///
    /// # Errors
    /// No such parameter, or another number of values.
    pub fn set(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let entry = self.layout.entry(name)?;
        if entry.len != values.len() {
            return Err(Error::ParameterSize {
                name: name.to_owned(),
                expected: entry.len,
                found: values.len(),
            });
        }
        let range = entry.range();
        self.params_mut()[range].copy_from_slice(values);
        Ok(())
    }

    /// Views (parameter, gradient) of one entry; they stay valid because the buffers are never reallocated.
    pub(crate) fn views(&self, name: &str) -> Result<(Tensor, Tensor)> {
        let entry = self.layout.entry(name)?;
        let view = |flat: &Tensor| -> Result<Tensor> {
            Ok(flat.f_narrow(0, entry.offset as i64, entry.len as i64)?.f_view(entry.shape.as_slice())?)
        };
        Ok((view(&self.params)?, view(&self.grads)?))
    }
}

/// # Safety
/// `tensor` is a contiguous f32 host tensor of `len` elements (both buffers are created so and never resized), and
/// nobody writes it during `'a`: the model's own views are only written through `&mut` of the model that owns the arena.
unsafe fn slice(tensor: &Tensor, len: usize) -> &[f32] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr() as *const f32, len) }
}

/// # Safety
/// As [`slice`], and nobody else reads it during `'a`.
#[allow(clippy::mut_from_ref)] // the exclusive borrow is the arena's, whose methods are the only callers
unsafe fn slice_mut(tensor: &Tensor, len: usize) -> &mut [f32] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr() as *mut f32, len) }
}
