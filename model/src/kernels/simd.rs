//! What kernels compute in loops that the compiler vectorises, for the processor's widest vectors where `multiversion` says so.
//!
//! A closure is compiled for the vectors of the function that it is written in, so the attribute stands on whole kernels; what they
//! call must be inlined.

/// Sums that are added side by side, so that they fill vectors.
pub(crate) const LANES: usize = 32;

/// The sum of `value` over the elements of equally long inputs, in an order that does not depend on the processor.
#[inline(always)]
pub(crate) fn sum<const N: usize>(inputs: [&[f32]; N], value: impl Fn([f32; N]) -> f32) -> f32 {
    let len = inputs[0].len();
    // Groups of known length: a check of every index would keep half of the lanes out of vectors.
    let inputs = inputs.map(|input| input[..len].as_chunks::<LANES>());
    let (mut sums, mut values) = ([0.0; LANES], [0.0; LANES]);
    for at in 0..len / LANES {
        let groups = inputs.map(|(groups, _)| &groups[at]);
        for lane in 0..LANES {
            values[lane] = value(groups.map(|group| group[lane]));
        }
        for lane in 0..LANES {
            sums[lane] += values[lane];
        }
    }
    for lane in 0..len % LANES {
        sums[lane] += value(inputs.map(|(_, rest)| rest[lane]));
    }
    fold(sums, |a, b| a + b)
}

/// The largest value; NaN is passed over.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut tops = [f32::NEG_INFINITY; LANES];
    let (groups, rest) = values.as_chunks::<LANES>();
    for group in groups {
        for lane in 0..LANES {
            tops[lane] = larger(tops[lane], group[lane]);
        }
    }
    for (top, &value) in tops.iter_mut().zip(rest) {
        *top = larger(*top, value);
    }
    fold(tops, larger)
}

/// All lanes in one, halves upon halves.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    for width in [LANES / 2, LANES / 4, LANES / 8, LANES / 16, 1] {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

/// e to the x within 2 units in the last place; 0 below the smallest normal number, NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.336_54;
    const MOST: f32 = 88.376_26;
    // Adding it leaves a whole number in the low bits of the sum.
    const SHIFT: f32 = 12_582_912.0;
    let clamped = if x < LEAST { LEAST } else { x };
    let clamped = if clamped > MOST { MOST } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let whole = shifted - SHIFT;
    let rest = clamped - whole * 0.693_359_4 - whole * -2.121_944_4e-4;
    // Cephes' polynomial for e^r on |r| <= ln 2 / 2
    let mut poly = 1.987_569_2e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        poly = poly * rest + coefficient;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let value = (poly * rest * rest + rest + 1.0) * power;
    if x < LEAST { 0.0 } else { value }
}

/// The error function within 1.5e-7 (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * size);
    let mut poly = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        poly = poly * t + coefficient;
    }
    (1.0 - poly * t * exp(-size * size)).copysign(x)
}

/// The hyperbolic tangent, from [`exp`].
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let decay = exp(-2.0 * x.abs());
    ((1.0 - decay) / (1.0 + decay)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: impl Fn(f32) -> f32, expected: impl Fn(f64) -> f64, relative: f64, absolute: f64) {
        for step in -120_000..=120_000 {
            let x = step as f32 * 7e-4;
            let (found, expected) = (f64::from(found(x)), expected(f64::from(x)));
            let bound = absolute + relative * expected.abs();
            assert!((found - expected).abs() <= bound, "{x}: {found} {expected}");
        }
    }

    #[test]
    fn functions_are_close_to_exact() {
        check(exp, f64::exp, 3e-7, 1e-37);
        check(tanh, f64::tanh, 4e-7, 2e-7);
        assert_eq!((exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 1.0));
        assert!(exp(f32::NAN).is_nan() && exp(1e9).is_finite());
        // erf(0.5), erf(-1), erf(2)
        for (x, expected) in [(0.5, 0.520_499_9), (-1.0, -0.842_700_8), (2.0, 0.995_322_3), (0.0, 0.0)] {
            assert!((erf(x) - expected).abs() < 3e-7, "{x}");
        }
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        for len in [0_usize, 1, 31, 32, 33, 100] {
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            assert_eq!(sum([&values], |[x]| x), (len * len.saturating_sub(1) / 2) as f32);
            assert_eq!(max(&values), values.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }
}
