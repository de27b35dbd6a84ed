//! The same update by tensor operations, for buffers that are not in host memory: few kernels, and the host waits for none.

use ilm_model::{Error, Flat, UpdateParts};
use tch::Tensor;

use super::adamw::{Coefficients, Decaying};
use super::parts::Part;

/// The packed buffers of the optimizer.
pub(super) struct Packed<'a> {
    pub(super) exp_avg: &'a mut Flat<f32>,
    pub(super) exp_avg_sq: &'a mut Flat<f32>,
    pub(super) average: Option<&'a mut Flat<f32>>,
}

/// Updates the elements of `part`; uses its gradients up. `decaying` are its ranges of the arena that are decayed.
pub(super) fn update(
    c: &Coefficients,
    part: &Part,
    decaying: impl Iterator<Item = Decaying>,
    flat: &mut UpdateParts<'_>,
    packed: &mut Packed<'_>,
) -> Result<(), Error> {
    let _guard = tch::no_grad_guard();
    for range in decaying {
        let _ = flat.params.view(range)?.f_mul_scalar_(f64::from(c.keep))?;
    }
    let mut params = flat.params.view(part.arena.clone())?;
    let grads = flat.grads.view(part.arena.clone())?.f_mul_scalar_(f64::from(c.grad_scale))?;
    let mut exp_avg = packed.exp_avg.view(part.packed.clone())?;
    let mut exp_avg_sq = packed.exp_avg_sq.view(part.packed.clone())?;
    let _ = exp_avg.f_lerp_(&grads, 1.0 - f64::from(c.beta1))?;
    let _ = exp_avg_sq.f_lerp_(&grads.f_square()?, 1.0 - f64::from(c.beta2))?;
    let mut scale = exp_avg_sq.f_sqrt()?.f_mul_scalar_(f64::from(c.inverse_sqrt_correction2))?;
    let scale = scale.f_add_scalar_(f64::from(c.eps))?;
    let change = exp_avg.f_div(&scale)?.f_mul_scalar_(f64::from(c.step_size))?;
    let _ = params.f_sub_(&change)?;
    if let Some(average) = &mut packed.average {
        let _ = average.view(part.packed.clone())?.f_lerp_(&params, f64::from(c.average_weight))?;
    }
    if let Some(rounded) = &mut flat.rounded {
        rounded.view(part.arena.clone())?.f_copy_(&params)?;
    }
    Ok(())
}

/// The sum of squares of some ranges; the host waits once.
pub(super) fn sum_of_squares(
    values: &Flat<f32>,
    ranges: impl Iterator<Item = std::ops::Range<usize>>,
) -> Result<f64, Error> {
    let _guard = tch::no_grad_guard();
    let sums = ranges.map(|range| {
        let values = values.view(range)?;
        Ok(values.f_dot(&values)?)
    });
    let sums: Vec<Tensor> = sums.collect::<Result<_, Error>>()?;
    if sums.is_empty() {
        return Ok(0.0);
    }
    Ok(Tensor::f_stack(&sums, 0)?.f_sum(tch::Kind::Double)?.f_double_value(&[])?)
}
