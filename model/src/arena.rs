//! Parameters and gradients as flat buffers, with a rounded copy of the parameters for products in bf16.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;
use tch::{Device, Tensor};

use crate::config::Precision;
use crate::error::{Error, Result};
use crate::flat::Flat;
use crate::layout::ParamLayout;

/// The flat buffers of a model; elements of alignment gaps stay 0.
#[derive(Debug)]
pub struct Arena {
    layout: Arc<ParamLayout>,
    params: Flat<f32>,
    grads: Flat<f32>,
    /// The parameters rounded, if products are in bf16.
    rounded: Option<Flat<bf16>>,
    /// Whether parameters have changed since they were rounded.
    stale: Cell<bool>,
    /// How often gradients have been cleared.
    clearings: Arc<AtomicU64>,
}

/// Whether a matrix's gradient has been written since gradients were last cleared: the first product writes over it, which saves
/// filling it with zeros and reading them.
#[derive(Debug)]
pub(crate) struct Writes {
    clearings: Arc<AtomicU64>,
    seen: Cell<u64>,
}

impl Writes {
    /// Whether this is the first question since gradients were cleared.
    pub(crate) fn is_first(&self) -> bool {
        let now = self.clearings.load(Ordering::Relaxed);
        self.seen.replace(now) != now
    }
}

/// What an optimizer changes.
#[derive(Debug)]
pub struct UpdateParts<'a> {
    /// All parameters.
    pub params: &'a mut Flat<f32>,
    /// All gradients.
    pub grads: &'a mut Flat<f32>,
    /// The parameters rounded to bf16, if the products need them: whoever changes a parameter writes it here as well.
    pub rounded: Option<&'a mut Flat<bf16>>,
}

/// One parameter's views; they stay valid because the buffers never move.
#[derive(Debug)]
pub(crate) struct ParamViews {
    pub(crate) value: Tensor,
    pub(crate) grad: Tensor,
    /// The value as products take it: rounded, or `value` itself.
    pub(crate) operand: Tensor,
}

impl Arena {
    pub(crate) fn zeros(layout: Arc<ParamLayout>, precision: Precision, device: Device) -> Result<Self> {
        let len = layout.len();
        let rounded = (precision == Precision::Bf16).then(|| Flat::zeros(len, device)).transpose()?;
        Ok(Self {
            params: Flat::zeros(len, device)?,
            grads: Flat::zeros(len, device)?,
            rounded,
            layout,
            stale: Cell::new(false),
            clearings: Arc::default(),
        })
    }

    /// Where each parameter lies.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// Where the buffers are.
    pub fn device(&self) -> Device {
        self.params.device()
    }

    /// All parameters, `layout().len()` of them.
    pub fn flat_params(&self) -> &Flat<f32> {
        &self.params
    }

    /// All parameters, to be changed.
    pub fn flat_params_mut(&mut self) -> &mut Flat<f32> {
        self.stale.set(true);
        &mut self.params
    }

    /// All gradients, in the parameters' places.
    pub fn flat_grads(&self) -> &Flat<f32> {
        &self.grads
    }

    /// All gradients, to be reduced, scaled or zeroed.
    pub fn flat_grads_mut(&mut self) -> &mut Flat<f32> {
        &mut self.grads
    }

    /// All parameters rounded, if products are in bf16.
    pub fn flat_rounded(&self) -> Option<&Flat<bf16>> {
        self.rounded.as_ref()
    }

    /// Where the matrices begin that products take rounded, if they do: nobody but an optimizer uses the parameters themselves
    /// from there on.
    pub fn rounded_from(&self) -> Option<usize> {
        self.rounded.as_ref().map(|_| self.layout.exact().end)
    }

    /// All an optimizer needs at once.
    pub fn update_parts(&mut self) -> UpdateParts<'_> {
        UpdateParts { params: &mut self.params, grads: &mut self.grads, rounded: self.rounded.as_mut() }
    }

    /// All parameters of a model in host memory.
    ///
    /// # Panics
    /// The model is on a GPU.
    pub fn params(&self) -> &[f32] {
        self.params.host().expect(ON_HOST)
    }

    /// All parameters of a model in host memory, to be changed.
    ///
    /// # Panics
    /// The model is on a GPU.
    pub fn params_mut(&mut self) -> &mut [f32] {
        self.flat_params_mut().host_mut().expect(ON_HOST)
    }

    /// All gradients of a model in host memory.
    ///
    /// # Panics
    /// The model is on a GPU.
    pub fn grads(&self) -> &[f32] {
        self.grads.host().expect(ON_HOST)
    }

    /// All gradients of a model in host memory, to be changed.
    ///
    /// # Panics
    /// The model is on a GPU.
    pub fn grads_mut(&mut self) -> &mut [f32] {
        self.grads.host_mut().expect(ON_HOST)
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
        self.flat_params_mut().write(range, values)
    }

    /// Rounds the parameters anew if one has changed; to be called before products are taken.
    pub(crate) fn refresh(&self) -> Result<()> {
        let Some(rounded) = self.rounded.as_ref().filter(|_| self.stale.get()) else { return Ok(()) };
        let all = 0..self.layout.len();
        rounded.view(all.clone())?.f_copy_(&self.params.view(all)?)?;
        self.stale.set(false);
        Ok(())
    }

    pub(crate) fn writes(&self) -> Writes {
        Writes { clearings: Arc::clone(&self.clearings), seen: Cell::new(0) }
    }

    /// Makes the gradients 0 of all but the matrices that lie together, which the first product writes over.
    pub(crate) fn clear_grads(&mut self) -> Result<()> {
        self.clearings.fetch_add(1, Ordering::Relaxed);
        let _ = self.grads.view(self.layout.exact())?.f_zero_()?;
        Ok(())
    }

    pub(crate) fn views(&self, name: &str) -> Result<ParamViews> {
        let entry = self.layout.entry(name)?;
        self.shaped(entry.offset, &entry.shape)
    }

    /// The views of a parameter with the rows of zeros that follow it in the flat buffers.
    pub(crate) fn padded_views(&self, name: &str) -> Result<ParamViews> {
        let entry = self.layout.entry(name)?;
        let mut shape = entry.shape.clone();
        shape[0] = entry.padded_rows;
        self.shaped(entry.offset, &shape)
    }

    fn shaped(&self, offset: usize, shape: &[i64]) -> Result<ParamViews> {
        let range = offset..offset + shape.iter().product::<i64>() as usize;
        let value = self.params.view(range.clone())?.f_view(shape)?;
        let operand = match &self.rounded {
            Some(rounded) => rounded.view(range.clone())?.f_view(shape)?,
            None => value.shallow_clone(),
        };
        Ok(ParamViews { value, grad: self.grads.view(range)?.f_view(shape)?, operand })
    }
}

const ON_HOST: &str = "a model whose buffers are read as slices is in host memory";
