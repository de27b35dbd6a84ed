//! How fast this machine multiplies the matrices of a model: the bound that the speed of a step is held against.

use std::hint::black_box;
use std::time::Instant;

use ilm_model::{ModelShape, Precision};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::case::Case;
use super::report::Common;
use super::work::Work;
use super::{Bench, Samples};

/// A product is repeated until it has taken so long, in seconds, that the clock sees it.
const LEAST_TIME: f64 = 0.01;

/// The products of a step: forward, input gradient and weight gradient of every matrix of blocks and output layer.
pub struct Products {
    products: Vec<Product>,
}

/// `left right`, into memory that is used again.
struct Product {
    name: &'static str,
    /// Rows of the batch, inputs and outputs of the linear map.
    size: [i64; 3],
    left: Tensor,
    right: Tensor,
    out: Tensor,
    /// How often a step takes it.
    count: f64,
    seconds: Samples,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    product: &'a str,
    rows: i64,
    inputs: i64,
    outputs: i64,
    median_s: f64,
    min_s: f64,
    flops_per_s: f64,
}

/// Measures every product of the case's model at the mean size of its micro-batches.
///
/// # Errors
/// Rows that cannot be read, or memory is short.
pub fn gemm(bench: &mut Bench, case: &Case) -> anyhow::Result<()> {
    let batches = bench.batches(case)?;
    let mut products = Products::new(&case.assembly.model_shape(&case.experiment), &Work::of(&batches))?;
    products.round()?; // warms up
    products.forget();
    bench.rounds(|_| products.round())?;
    for product in &products.products {
        let [rows, inputs, outputs] = product.size;
        let median_s = product.seconds.median();
        bench.print(&Line {
            common: bench.common("gemm", case),
            product: product.name,
            rows,
            inputs,
            outputs,
            median_s,
            min_s: product.seconds.min(),
            flops_per_s: product.flops() / median_s,
        });
    }
    Ok(())
}

impl Products {
    /// The products of micro-batches of the mean size of a pass.
    ///
    /// # Errors
    /// Memory is short.
    pub fn new(shape: &ModelShape, work: &Work) -> Result<Self, tch::TchError> {
        let (d, f) = (shape.config.d_model, shape.config.feed_forward());
        let rows = |sum: f64| ((sum / work.micro_batches.max(1.0)).round() as i64).max(1);
        let (blocks, layers) = (rows(work.tokens), shape.config.num_layers);
        let matrices = [
            (blocks, d, 3 * d, layers),
            (blocks, d, d, layers),
            (blocks, d, f, layers),
            (blocks, f, d, layers),
            (rows(work.scored), d, shape.num_embeddings, 1),
        ];
        let kind = match shape.precision {
            Precision::Fp32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        let mut products = Vec::new();
        for (rows, inputs, outputs, count) in matrices {
            products.extend(of_matrix([rows, inputs, outputs], count as f64, kind)?);
        }
        Ok(Self { products })
    }

    /// Takes every product a few times.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn round(&mut self) -> anyhow::Result<()> {
        self.products.iter_mut().try_for_each(Product::round)
    }

    /// Drops what has been measured.
    pub fn forget(&mut self) {
        for product in &mut self.products {
            product.seconds = Samples::default();
        }
    }

    /// Mean of the medians, weighted by what a step does of each.
    pub fn flops_per_s(&self) -> f64 {
        let sum = |of: fn(&Product) -> f64| -> f64 { self.products.iter().map(|p| p.count * of(p)).sum() };
        sum(Product::flops) / sum(|product| product.seconds.median())
    }
}

/// The three products of a linear map.
fn of_matrix(size: [i64; 3], count: f64, kind: Kind) -> Result<[Product; 3], tch::TchError> {
    let [rows, inputs, outputs] = size;
    let (x, weight, grad) =
        (matrix(rows, inputs, kind)?, matrix(outputs, inputs, kind)?, matrix(rows, outputs, kind)?);
    let product = |name, left: Tensor, right: Tensor| -> Result<Product, tch::TchError> {
        let out = Tensor::f_zeros([left.size()[0], right.size()[1]], (kind, Device::Cpu))?;
        Ok(Product { name, size, left, right, out, count, seconds: Samples::default() })
    };
    Ok([
        product("forward", x.shallow_clone(), weight.f_tr()?)?,
        product("input_grad", grad.shallow_clone(), weight)?,
        product("weight_grad", grad.f_tr()?, x)?,
    ])
}

/// Numbers of both signs.
fn matrix(rows: i64, columns: i64, kind: Kind) -> Result<Tensor, tch::TchError> {
    let numbers = Tensor::f_arange(rows * columns, (Kind::Float, Device::Cpu))?;
    numbers.f_mul_scalar(0.37)?.f_sin_()?.f_view([rows, columns])?.f_to_kind(kind)
}

impl Product {
    fn flops(&self) -> f64 {
        2.0 * self.size.iter().map(|&size| size as f64).product::<f64>()
    }

    fn round(&mut self) -> anyhow::Result<()> {
        let (start, mut times) = (Instant::now(), 0.0);
        while times == 0.0 || start.elapsed().as_secs_f64() < LEAST_TIME {
            let _ = black_box(self.left.f_mm_out(&self.out, &self.right)?);
            times += 1.0;
        }
        self.seconds.push(start.elapsed().as_secs_f64() / times);
        Ok(())
    }
}
