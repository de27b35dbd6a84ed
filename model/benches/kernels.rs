//! The small kernels between the products, at the sizes of a 768-wide model: `cargo bench -p ilm-model`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ilm_model::{Precision, Result, Rows};

/// Rows of a step.
const ROWS: i64 = 1024;

type Kernel = fn(&Rows) -> Result<()>;

fn kernels(criterion: &mut Criterion) {
    // Widths of the model, of its feed-forward part and of its vocabulary.
    let kernels: [(&str, i64, Kernel); 3] =
        [("norm", 768, Rows::norm), ("gelu", 3072, Rows::gelu), ("softmax", 30_522, Rows::softmax)];
    for (name, width, kernel) in kernels {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements((ROWS * width) as u64));
        for (precision, which) in [("bf16", Precision::Bf16), ("fp32", Precision::Fp32)] {
            let rows = Rows::new(ROWS, width, which).expect("memory for some rows");
            group.bench_function(precision, |bencher| bencher.iter(|| kernel(&rows)));
        }
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
