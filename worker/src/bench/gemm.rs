//! How fast this machine multiplies the matrices of a model: the bound that the speed of a step is held against.

use std::time::Instant;

use ilm_model::{LinearMap, ModelShape, Precision};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::case::Case;
use super::report::Common;
use super::work::Work;
use super::{Bench, Samples};

/// A product is repeated until it has taken so long, in seconds, that the clock sees it.
const LEAST_TIME: f64 = 0.005;

/// The products of a step: forward, input gradient and weight gradient of every matrix of blocks and output layer.
pub struct Products {
    products: Vec<Product>,
}

/// A product, as the model takes it and as libtorch does into memory that is used again: what is faster counts.
struct Product {
    name: &'static str,
    /// Rows of the batch, inputs and outputs of the linear map.
    size: [i64; 3],
    /// How often a step takes it.
    count: f64,
    ways: [Way; 2],
}

/// A way to take a product.
struct Way {
    run: Box<dyn Fn() -> anyhow::Result<()>>,
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
    /// As libtorch does, where the figures above are the model's.
    torch_flops_per_s: f64,
}

/// Measures every product of the case's model at the mean size of its micro-batches.
///
/// # Errors
/// Rows that cannot be read, or memory is short.
pub fn gemm(bench: &mut Bench, case: &Case) -> anyhow::Result<()> {
    let batches = bench.batches(case)?;
    let mut products = Products::new(&case.assembly.model_shape(&case.experiment), &Work::of(&batches))?;
    bench.rounds(|_| products.round())?;
    for product in &products.products {
        let [rows, inputs, outputs] = product.size;
        let [own, torch] = &product.ways;
        bench.print(&Line {
            common: bench.common("gemm", case),
            product: product.name,
            rows,
            inputs,
            outputs,
            median_s: own.seconds.median(),
            min_s: own.seconds.min(),
            flops_per_s: product.flops() / own.seconds.median(),
            torch_flops_per_s: product.flops() / torch.seconds.median(),
        });
    }
    Ok(())
}

impl Products {
    /// The products of micro-batches of the mean size of a pass, each taken once to warm up.
    ///
    /// # Errors
    /// Memory is short.
    pub fn new(shape: &ModelShape, work: &Work) -> anyhow::Result<Self> {
        let (d, f) = (shape.config.d_model, shape.config.feed_forward());
        let rows = |sum: f64| ((sum / work.micro_batches.max(1.0)).round() as i64).max(1);
        let (blocks, layers) = (rows(work.tokens), shape.config.num_layers as f64);
        let matrices = [
            ([blocks, d, 3 * d], layers),
            ([blocks, d, d], layers),
            ([blocks, d, f], layers),
            ([blocks, f, d], layers),
            ([rows(work.scored), d, shape.num_embeddings], 1.0),
        ];
        let mut products = Vec::new();
        for (size, count) in matrices {
            products.extend(of_matrix(size, count, shape.precision)?);
        }
        products.iter().flat_map(|product| &product.ways).try_for_each(|way| (way.run)())?;
        Ok(Self { products })
    }

    /// Takes every product a few times.
    ///
    /// # Errors
    /// Memory is short.
    pub fn round(&mut self) -> anyhow::Result<()> {
        self.products.iter_mut().flat_map(|product| &mut product.ways).try_for_each(Way::round)
    }

    /// Mean of the medians, weighted by what a step does of each.
    pub fn flops_per_s(&self) -> f64 {
        let sum = |of: fn(&Product) -> f64| -> f64 { self.products.iter().map(|p| p.count * of(p)).sum() };
        sum(Product::flops) / sum(Product::seconds)
    }
}

/// The three products of a linear map.
fn of_matrix(size: [i64; 3], count: f64, precision: Precision) -> anyhow::Result<[Product; 3]> {
    let [rows, inputs, outputs] = size;
    let kind = match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let ones = |rows, columns| Tensor::f_ones([rows, columns], (kind, Device::Cpu));
    let map = || LinearMap::new(rows, inputs, outputs, precision);
    let product = |name, own, left: Tensor, right: Tensor| -> anyhow::Result<Product> {
        let out = ones(left.size()[0], right.size()[1])?;
        let torch = way(move || Ok(left.f_mm_out(&out, &right).map(drop)?));
        Ok(Product { name, size, count, ways: [own, torch] })
    };
    let (forward, input_grad, weight_grad) = (map()?, map()?, map()?);
    let own = [
        way(move || Ok(forward.forward().map(drop)?)),
        way(move || Ok(input_grad.input_grad().map(drop)?)),
        way(move || Ok(weight_grad.add_weight_grad()?)),
    ];
    let [forward, input_grad, weight_grad] = own;
    let (x, weight, grad) = (ones(rows, inputs)?, ones(outputs, inputs)?, ones(rows, outputs)?);
    Ok([
        product("forward", forward, x.shallow_clone(), weight.f_tr()?)?,
        product("input_grad", input_grad, grad.shallow_clone(), weight)?,
        product("weight_grad", weight_grad, grad.f_tr()?, x)?,
    ])
}

fn way(run: impl Fn() -> anyhow::Result<()> + 'static) -> Way {
    Way { run: Box::new(run), seconds: Samples::default() }
}

impl Product {
    fn flops(&self) -> f64 {
        2.0 * self.size.iter().map(|&size| size as f64).product::<f64>()
    }

    /// Of the faster way.
    fn seconds(&self) -> f64 {
        let [own, torch] = &self.ways;
        own.seconds.median().min(torch.seconds.median())
    }
}

impl Way {
    fn round(&mut self) -> anyhow::Result<()> {
        let (start, mut times) = (Instant::now(), 0.0);
        while times == 0.0 || start.elapsed().as_secs_f64() < LEAST_TIME {
            (self.run)()?;
            times += 1.0;
        }
        self.seconds.push(start.elapsed().as_secs_f64() / times);
        Ok(())
    }
}
