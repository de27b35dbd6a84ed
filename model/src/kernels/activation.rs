//! Bias and activation of the feed-forward part in one pass, and its backward pass.

use multiversion::multiversion;
use tch::{Kind, Tensor};

use super::operand::{Operand, elements, elements_mut, with_operand};
use super::simd::{erf, exp, tanh};
use super::{ROWS, add_partial_sums};
use crate::error::Result;
use crate::ops::activation::{Activated, Curve};
use crate::parallel;

/// As [`crate::ops::activation::activate`], on the host.
pub(crate) fn activate(
    widened: &Tensor,
    bias: Option<&Tensor>,
    curve: Curve,
    kind: Kind,
) -> Result<Activated> {
    let mut out = Tensor::f_empty(widened.size(), (kind, widened.device()))?;
    let mut before = match curve {
        Curve::Relu => None,
        _ => Some(Tensor::f_empty(widened.size(), (kind, widened.device()))?),
    };
    let width = widened.size()[1] as usize;
    with_operand!(kind, T => {
        let before = before.as_mut().map(elements_mut::<T>);
        forward(elements(widened), bias.map(elements), width, curve, elements_mut::<T>(&mut out), before);
    });
    Ok(Activated { out, before })
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward<T: Operand>(
    widened: &[f32],
    bias: Option<&[f32]>,
    width: usize,
    curve: Curve,
    out: &mut [T],
    before: Option<&mut [T]>,
) {
    let zeros = vec![0.0; if bias.is_some() { 0 } else { width }];
    let bias = bias.unwrap_or(&zeros);
    let inputs = widened.chunks(ROWS * width).zip(out.chunks_mut(ROWS * width));
    match before {
        None => parallel::for_each_item(inputs.collect(), |(x, out): (&[f32], &mut [T])| {
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                map_row(x, bias, out, |x| if x < 0.0 { 0.0 } else { x });
            }
        }),
        Some(before) => {
            let items = inputs.zip(before.chunks_mut(ROWS * width)).collect();
            parallel::for_each_item(items, |((x, out), before): ((&[f32], &mut [T]), &mut [T])| {
                let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
                for ((x, out), before) in rows.zip(before.chunks_exact_mut(width)) {
                    map_row(x, bias, before, |x| x);
                    match curve {
                        Curve::TanhGelu => map_row(x, bias, out, tanh_gelu),
                        _ => map_row(x, bias, out, erf_gelu),
                    }
                }
            });
        }
    }
}

#[inline(always)]
fn map_row<T: Operand>(x: &[f32], bias: &[f32], out: &mut [T], f: impl Fn(f32) -> f32) {
    let width = x.len();
    let (bias, out) = (&bias[..width], &mut out[..width]);
    for i in 0..width {
        out[i] = T::from_f32(f(x[i] + bias[i]));
    }
}

/// As [`crate::ops::activation::activate_backward`], on the host.
pub(crate) fn activate_backward(
    grad: &Tensor,
    activated: &Activated,
    bias_grad: Option<&Tensor>,
    curve: Curve,
) -> Result<Tensor> {
    let kind = activated.out.kind();
    let mut out = Tensor::f_empty(grad.size(), (kind, grad.device()))?;
    let width = grad.size()[1] as usize;
    let partials = with_operand!(kind, T => {
        let saved = activated.before.as_ref().unwrap_or(&activated.out);
        backward(elements(grad), elements::<T>(saved), width, curve, elements_mut(&mut out))
    });
    if let Some(bias_grad) = bias_grad {
        add_partial_sums(&partials, width, elements_mut(&mut bias_grad.shallow_clone()));
    }
    Ok(out)
}

/// The sums over rows of every task, [tasks, width].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward<T: Operand>(grad: &[f32], saved: &[T], width: usize, curve: Curve, out: &mut [T]) -> Vec<f32> {
    let chunk = ROWS * width;
    let mut partials = vec![0.0; grad.len().div_ceil(chunk) * width];
    let items = grad.chunks(chunk).zip(saved.chunks(chunk)).zip(out.chunks_mut(chunk));
    let items = items.zip(partials.chunks_mut(width)).collect();
    type Item<'a, T> = (((&'a [f32], &'a [T]), &'a mut [T]), &'a mut [f32]);
    parallel::for_each_item(items, |(((grad, saved), out), sums): Item<T>| {
        let rows = grad.chunks_exact(width).zip(saved.chunks_exact(width)).zip(out.chunks_exact_mut(width));
        for ((grad, saved), out) in rows {
            match curve {
                Curve::Relu => scale_row(grad, saved, out, sums, |x| if x > 0.0 { 1.0 } else { 0.0 }),
                Curve::TanhGelu => scale_row(grad, saved, out, sums, tanh_gelu_slope),
                Curve::ErfGelu => scale_row(grad, saved, out, sums, erf_gelu_slope),
            };
        }
    });
    partials
}

#[inline(always)]
fn scale_row<T: Operand>(
    grad: &[f32],
    saved: &[T],
    out: &mut [T],
    sums: &mut [f32],
    slope: impl Fn(f32) -> f32,
) {
    let width = grad.len();
    let (saved, out, sums) = (&saved[..width], &mut out[..width], &mut sums[..width]);
    for i in 0..width {
        let scaled = grad[i] * slope(saved[i].to_f32());
        out[i] = T::from_f32(scaled);
        sums[i] += scaled;
    }
}

/// sqrt(2 / pi) and the cubic coefficient of the approximation (Hendrycks and Gimpel, arXiv 1606.08415).
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBIC: f32 = 0.044_715;

#[inline(always)]
fn tanh_gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(TANH_SCALE * (x + TANH_CUBIC * x * x * x)))
}

#[inline(always)]
fn tanh_gelu_slope(x: f32) -> f32 {
    let tanh = tanh(TANH_SCALE * (x + TANH_CUBIC * x * x * x));
    let inner = TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * x * x);
    0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner
}

#[inline(always)]
fn erf_gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The slope is the normal distribution plus x times its density.
#[inline(always)]
fn erf_gelu_slope(x: f32) -> f32 {
    const DENSITY: f32 = 0.398_942_3;
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * DENSITY * exp(-0.5 * x * x)
}
