//! Attention inside each row of packed tokens: one task per row and head, strip by strip of queries, probabilities never kept.
//!
//! Backward computes the probabilities anew from the logarithm of each query's sum, as FlashAttention does (arXiv 2205.14135).

use multiversion::multiversion;
use tch::{Kind, Tensor};

use super::operand::{Operand, elements, elements_mut, with_operand};
use super::simd::{exp, max, sum};
use crate::dropout::Dropout;
use crate::error::Result;
use crate::gemm::small::{Matrix, Onto, SmallGemm};
use crate::parallel::{self, Shared};

/// Scores of one strip at most: few enough to stay in a core's own cache.
const STRIP_SCORES: usize = 1 << 16;

/// Rows of packed tokens and what is done to their queries and keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spans<'a> {
    /// [B + 1].
    pub(crate) row_ptr: &'a [i64],
    /// None if queries and keys are not turned.
    pub(crate) angles: Option<Angles<'a>>,
    pub(crate) dropout: Dropout,
}

/// Cosines and sines of every token, [N, R/2] each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Angles<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
}

impl<'a> Angles<'a> {
    pub(crate) fn new(cos: &'a Tensor, sin: &'a Tensor) -> Self {
        let half = cos.size()[cos.dim() - 1] as usize;
        Self { cos: elements(cos), sin: elements(sin), half }
    }

    /// A token's cosines and sines, and the sines' sign.
    #[inline(always)]
    fn of(self, token: usize, sign: f32) -> (&'a [f32], &'a [f32], f32) {
        let place = token * self.half..(token + 1) * self.half;
        (&self.cos[place.clone()], &self.sin[place], sign)
    }
}

/// What backward needs.
#[derive(Debug)]
pub(crate) struct Tape {
    /// [N, 3, H, h] turned queries, turned keys, values.
    qkv: Tensor,
    /// [N, H] logarithm of the sum of exponentials of each query's scores.
    log_sums: Tensor,
}

/// `qkv` [N, 3, H, h] f32 -> context [N, H h] of type `kind`.
pub(crate) fn forward(qkv: &Tensor, spans: Spans, kind: Kind) -> Result<(Tensor, Tape)> {
    let sizes = Sizes::of(qkv);
    let options = |kind| (kind, qkv.device());
    let mut turned = Tensor::f_empty(qkv.size(), options(kind))?;
    let mut log_sums = Tensor::f_empty([sizes.tokens as i64, sizes.heads as i64], options(Kind::Float))?;
    let mut context = Tensor::f_empty([sizes.tokens as i64, sizes.row() as i64], options(kind))?;
    with_operand!(kind, T => {
        let out = Outputs {
            turned: Shared::of(elements_mut::<T>(&mut turned)),
            context: Shared::of(elements_mut::<T>(&mut context)),
            log_sums: Shared::of(elements_mut::<f32>(&mut log_sums)),
        };
        let values: &[f32] = elements(qkv);
        each_head(spans.row_ptr, sizes, |head| forward_head(head, values, spans, &out));
    });
    Ok((context, Tape { qkv: turned, log_sums }))
}

/// The gradient of `qkv` [N, 3 H h], given that of the context [N, H h] (f32).
pub(crate) fn backward(tape: &Tape, spans: Spans, grad: &Tensor) -> Result<Tensor> {
    let sizes = Sizes::of(&tape.qkv);
    let kind = tape.qkv.kind();
    let mut out = Tensor::f_empty([sizes.tokens as i64, 3 * sizes.row() as i64], (kind, grad.device()))?;
    with_operand!(kind, T => {
        let saved = Saved::<T> {
            qkv: elements(&tape.qkv),
            log_sums: elements(&tape.log_sums),
            grad: elements(grad),
        };
        let out = Shared::of(elements_mut::<T>(&mut out));
        each_head(spans.row_ptr, sizes, |head| backward_head(head, &saved, spans, out));
    });
    Ok(out)
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    tokens: usize,
    heads: usize,
    width: usize,
}

impl Sizes {
    fn of(qkv: &Tensor) -> Self {
        let size = qkv.size();
        Self { tokens: size[0] as usize, heads: size[2] as usize, width: size[3] as usize }
    }

    /// Elements of one token's queries.
    fn row(self) -> usize {
        self.heads * self.width
    }
}

/// One head of one row.
#[derive(Clone, Copy)]
struct Head {
    sizes: Sizes,
    /// First token and number of tokens.
    start: usize,
    len: usize,
    head: usize,
}

/// Calls `work` for every head of every row, the long rows first, so that no long one is left for the end.
fn each_head(row_ptr: &[i64], sizes: Sizes, work: impl Fn(Head) + Sync) {
    let rows = row_ptr.len() - 1;
    parallel::for_each(rows * sizes.heads, |task| {
        let (row, head) = (rows - 1 - task / sizes.heads, task % sizes.heads);
        let (start, end) = (row_ptr[row] as usize, row_ptr[row + 1] as usize);
        work(Head { sizes, start, len: end - start, head });
    });
}

struct Outputs<T> {
    turned: Shared<T>,
    context: Shared<T>,
    log_sums: Shared<f32>,
}

struct Saved<'a, T> {
    qkv: &'a [T],
    log_sums: &'a [f32],
    grad: &'a [f32],
}

impl Head {
    /// First element of a token's query (0), key (1) or value (2).
    #[inline(always)]
    fn place(self, token: usize, part: usize) -> usize {
        ((self.start + token) * 3 + part) * self.sizes.row() + self.head * self.sizes.width
    }

    /// First element of a token's context.
    #[inline(always)]
    fn context_place(self, token: usize) -> usize {
        (self.start + token) * self.sizes.row() + self.head * self.sizes.width
    }

    /// Number of a query among all of all heads, by which its dropout is drawn.
    fn query(self, token: usize) -> usize {
        self.head * self.sizes.tokens + self.start + token
    }

    fn scale(self) -> f32 {
        (self.sizes.width as f32).sqrt().recip()
    }

    /// (first query, queries) of every strip.
    fn strips(self) -> impl Iterator<Item = (usize, usize)> {
        let step = (STRIP_SCORES / self.len).clamp(16, STRIP_SCORES);
        (0..self.len).step_by(step).map(move |first| (first, step.min(self.len - first)))
    }

    /// This head's queries, keys or values from a token on, as a matrix [tokens, h].
    fn part<T: Operand>(self, qkv: &[T], token: usize, part: usize) -> Matrix<'_, T> {
        Matrix::new(&qkv[self.place(token, part)..], 3 * self.sizes.row())
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_head<T: Operand + SmallGemm>(head: Head, qkv: &[f32], spans: Spans, out: &Outputs<T>) {
    let Sizes { heads, width, .. } = head.sizes;
    for token in 0..head.len {
        for part in 0..3 {
            let place = head.place(token, part);
            // SAFETY: every head writes the places of its own head and tokens only.
            let to = unsafe { out.turned.slice(place, width) };
            let angles = spans.angles.filter(|_| part < 2);
            let angles = angles.map(|angles| angles.of(head.start + token, 1.0));
            turn(&qkv[place..][..width], angles, to);
        }
    }
    // SAFETY: what is read are the places that this head has just written.
    let turned: &[T] = unsafe { out.turned.all() };
    let mut scratch = Scratch::<T>::new(head);
    for (first, queries) in head.strips() {
        let cells = queries * head.len;
        let scores = &mut scratch.scores[..cells];
        let query = head.part(turned, first, 0);
        let keys = head.part(turned, 0, 1).transposed();
        T::product([queries, head.len, width], [query, keys], Onto::Nothing, scores);
        for (index, scores) in scores.chunks_exact_mut(head.len).enumerate() {
            let token = first + index;
            let probabilities = &mut scratch.probabilities[index * head.len..][..head.len];
            spans.dropout.factors(head.query(token), &mut scratch.factors);
            let log_sum = softmax(scores, head.scale(), &scratch.factors, probabilities);
            // SAFETY: as above.
            let to = unsafe { out.log_sums.slice((head.start + token) * heads + head.head, 1) };
            to[0] = log_sum;
        }
        let probabilities = Matrix::new(&scratch.probabilities[..cells], head.len);
        let context = &mut scratch.rows[..queries * width];
        let values = head.part(turned, 0, 2);
        T::product([queries, width, head.len], [probabilities, values], Onto::Nothing, context);
        for (index, row) in context.chunks_exact(width).enumerate() {
            // SAFETY: as above.
            let to = unsafe { out.context.slice(head.context_place(first + index), width) };
            convert(row, to);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward_head<T: Operand + SmallGemm>(head: Head, saved: &Saved<T>, spans: Spans, out: Shared<T>) {
    let Sizes { heads, width, .. } = head.sizes;
    let mut scratch = Scratch::<T>::new(head);
    let mut grads = vec![0.0; 3 * head.len * width];
    let (query_grads, rest) = grads.split_at_mut(head.len * width);
    let (key_grads, value_grads) = rest.split_at_mut(head.len * width);
    let mut context_grad = vec![T::default(); head.len * width];
    for (token, to) in context_grad.chunks_exact_mut(width).enumerate() {
        convert(&saved.grad[head.context_place(token)..][..width], to);
    }
    let [keys, values] = [1, 2].map(|part| head.part(saved.qkv, 0, part));
    for (first, queries) in head.strips() {
        let cells = queries * head.len;
        let query = head.part(saved.qkv, first, 0);
        let grad = Matrix::new(&context_grad[first * width..], width);
        let scores = &mut scratch.scores[..cells];
        T::product([queries, head.len, width], [query, keys.transposed()], Onto::Nothing, scores);
        let slopes = &mut scratch.slopes[..cells];
        T::product([queries, head.len, width], [grad, values.transposed()], Onto::Nothing, slopes);
        for index in 0..queries {
            let token = first + index;
            let cells = index * head.len..(index + 1) * head.len;
            let log_sum = saved.log_sums[(head.start + token) * heads + head.head];
            spans.dropout.factors(head.query(token), &mut scratch.factors);
            softmax_backward(
                [&mut scores[cells.clone()], &mut slopes[cells.clone()]],
                &scratch.factors,
                [head.scale(), log_sum],
                &mut scratch.probabilities[cells.clone()],
                &mut scratch.score_grads[cells],
            );
        }
        let probabilities = Matrix::new(&scratch.probabilities[..cells], head.len);
        let score_grads = Matrix::new(&scratch.score_grads[..cells], head.len);
        let keyed = [head.len, width, queries];
        T::product(keyed, [probabilities.transposed(), grad], Onto::Target, value_grads);
        T::product(keyed, [score_grads.transposed(), query], Onto::Target, key_grads);
        let query_grads = &mut query_grads[first * width..][..queries * width];
        T::product([queries, width, head.len], [score_grads, keys], Onto::Nothing, query_grads);
    }
    for (part, grads) in [&*query_grads, key_grads, value_grads].into_iter().enumerate() {
        for (token, grad) in grads.chunks_exact(width).enumerate() {
            // SAFETY: every head writes the places of its own head and tokens only.
            let to = unsafe { out.slice(head.place(token, part), width) };
            let angles = spans.angles.filter(|_| part < 2);
            turn(grad, angles.map(|angles| angles.of(head.start + token, -1.0)), to);
        }
    }
}

/// What one head computes in.
struct Scratch<T> {
    scores: Vec<f32>,
    slopes: Vec<f32>,
    probabilities: Vec<T>,
    score_grads: Vec<T>,
    factors: Vec<f32>,
    rows: Vec<f32>,
}

impl<T: Operand> Scratch<T> {
    fn new(head: Head) -> Self {
        let queries = head.strips().next().map_or(0, |strip| strip.1);
        let cells = queries * head.len;
        Self {
            scores: vec![0.0; cells],
            slopes: vec![0.0; cells],
            probabilities: vec![T::default(); cells],
            score_grads: vec![T::default(); cells],
            factors: vec![1.0; head.len],
            rows: vec![0.0; queries * head.sizes.width],
        }
    }
}

#[inline(always)]
fn convert<T: Operand>(from: &[f32], to: &mut [T]) {
    let to = &mut to[..from.len()];
    for i in 0..from.len() {
        to[i] = T::from_f32(from[i]);
    }
}

/// Turns the first features by cosines, sines and the sines' sign: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).
#[inline(always)]
fn turn<T: Operand>(from: &[f32], angles: Option<(&[f32], &[f32], f32)>, to: &mut [T]) {
    let Some((cos, sin, sign)) = angles else { return convert(from, to) };
    let half = cos.len();
    let (sin, width) = (&sin[..half], from.len());
    let (first, second) = (&from[..half], &from[half..2 * half]);
    let (to_first, rest) = to.split_at_mut(half);
    let (to_second, to_rest) = rest.split_at_mut(half);
    for i in 0..half {
        to_first[i] = T::from_f32(first[i] * cos[i] - second[i] * (sign * sin[i]));
        to_second[i] = T::from_f32(second[i] * cos[i] + first[i] * (sign * sin[i]));
    }
    convert(&from[2 * half..width], to_rest);
}

/// `probabilities = factors softmax(scale scores)`; the result is the logarithm of the sum. The scores are used up.
#[inline(always)]
fn softmax<T: Operand>(scores: &mut [f32], scale: f32, factors: &[f32], probabilities: &mut [T]) -> f32 {
    let len = scores.len();
    let (factors, probabilities) = (&factors[..len], &mut probabilities[..len]);
    let top = scale * max(scores);
    for score in scores.iter_mut() {
        *score = exp(scale * *score - top);
    }
    let total = sum([scores], |[x]| x);
    let share = 1.0 / total;
    for i in 0..len {
        probabilities[i] = T::from_f32(scores[i] * share * factors[i]);
    }
    top + total.ln()
}

/// Probabilities p behind the dropout, and the gradient of the scores, `scale p (factor slope - inner)` with `inner` the sum of
/// `p factor slope`. Scores and slopes are used up.
///
/// FlashAttention takes `inner` from context and its gradient. Here both may be rounded, and the error, the same for all keys
/// of a query, is not small beside what is left where one key has nearly all of the probability.
#[inline(always)]
fn softmax_backward<T: Operand>(
    [scores, slopes]: [&mut [f32]; 2],
    factors: &[f32],
    [scale, log_sum]: [f32; 2],
    probabilities: &mut [T],
    grads: &mut [T],
) {
    let len = scores.len();
    let (slopes, factors) = (&mut slopes[..len], &factors[..len]);
    let (probabilities, grads) = (&mut probabilities[..len], &mut grads[..len]);
    for i in 0..len {
        scores[i] = exp(scale * scores[i] - log_sum);
        slopes[i] *= factors[i];
        probabilities[i] = T::from_f32(scores[i] * factors[i]);
    }
    let (scores, slopes) = (&*scores, &*slopes);
    let inner = sum([scores, slopes], |[p, slope]| p * slope);
    for i in 0..len {
        grads[i] = T::from_f32(scale * scores[i] * (slopes[i] - inner));
    }
}
