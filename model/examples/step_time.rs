//! Times forward + backward on batches shaped like star graphs and like LM1B, with one and two threads (or those given as
//! arguments). Processor time is what to compare on a busy machine.

use std::time::Instant;

use ilm_model::{Batch, LossConfig, Model, ModelConfig, ModelShape, Precision, Recompute};

const STEPS: u64 = 10;

struct Rows {
    row_ptr: Vec<i64>,
    tokens: Vec<i64>,
    positions: Vec<i64>,
    tgt_ptr: Vec<i64>,
    tgt_ids: Vec<i64>,
}

/// Rows of the given visible lengths, ascending, with `drops` targets spread over each row's gaps.
fn rows(lengths: &[i64], drops: i64, vocabulary: i64) -> Rows {
    let mut rows =
        Rows { row_ptr: vec![0], tokens: vec![], positions: vec![], tgt_ptr: vec![0], tgt_ids: vec![] };
    for (row, &length) in lengths.iter().enumerate() {
        for position in 0..length {
            let mix = (row as i64 * 7919 + position * 104_729) % (vocabulary - 7);
            rows.tokens.push(7 + mix);
            rows.positions.push(position);
            if position > 0 && position <= drops && row % 5 != 0 {
                rows.tgt_ids.push(7 + (mix * 31 + 3) % (vocabulary - 7));
            }
            rows.tgt_ptr.push(rows.tgt_ids.len() as i64);
        }
        rows.row_ptr.push(rows.tokens.len() as i64);
    }
    rows
}

fn shape(d_model: i64, vocabulary: i64, dropout: f64, precision: Precision) -> ModelShape {
    let config = ModelConfig {
        d_model,
        num_layers: 4,
        nhead: 4,
        rotary_emb_dim: Some(d_model / 4),
        dropout,
        ..ModelConfig::default()
    };
    ModelShape {
        config,
        num_embeddings: vocabulary,
        padding_idx: 0,
        max_length: 128,
        precision,
        recompute: Recompute::None,
    }
}

/// Nanoseconds all threads of this process have been on a processor (Linux).
fn processor_time() -> std::io::Result<u64> {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let star: Vec<i64> = (0..64).map(|row| 29 + row * 9 / 64).collect();
    let lm1b: Vec<i64> = (0..16).map(|row| 2 + row * 58 / 15).collect();
    let cases = [
        ("star 256/4/4", 256, 27, &star, 5, 0.1, Precision::Fp32),
        ("star 256/4/4 bf16", 256, 27, &star, 5, 0.1, Precision::Bf16),
        ("star 256/4/4 no dropout", 256, 27, &star, 5, 0.0, Precision::Fp32),
        ("star 256/4/4 both", 256, 27, &star, 5, 0.0, Precision::Bf16),
        ("star 128/4/4", 128, 27, &star, 5, 0.1, Precision::Fp32),
        ("lm1b 256/4/4", 256, 30_524, &lm1b, 14, 0.1, Precision::Fp32),
        ("lm1b 256/4/4 bf16", 256, 30_524, &lm1b, 14, 0.1, Precision::Bf16),
    ];
    let given: Vec<i32> =
        std::env::args().skip(1).map(|threads| threads.parse()).collect::<Result<_, _>>()?;
    let given = if given.is_empty() { vec![1, 2] } else { given };
    println!("{:<26}{:>8}{:>14}{:>12}{:>14}", "case", "threads", "cpu ms/step", "ms/step", "examples/s");
    for threads in given {
        tch::set_num_threads(threads);
        for (name, d_model, vocabulary, lengths, drops, dropout, precision) in cases {
            let rows = rows(lengths, drops, vocabulary);
            let (cls, counts) = (vec![0; lengths.len()], vec![1; rows.tgt_ids.len()]);
            let batch = Batch {
                row_ptr: &rows.row_ptr,
                tokens: &rows.tokens,
                positions: &rows.positions,
                cls: &cls,
                tgt_ptr: &rows.tgt_ptr,
                tgt_ids: &rows.tgt_ids,
                tgt_counts: &counts,
            };
            let mut model = Model::new(shape(d_model, vocabulary, dropout, precision), 1)?;
            let scale = 1.0 / lengths.len() as f64;
            let mut run =
                |step| model.forward_backward(&batch, &LossConfig::default(), scale, Some(step), &mut |_| {});
            run(0)?;
            let mut times = Vec::new();
            let processor = processor_time()?;
            for step in 0..STEPS {
                let start = Instant::now();
                run(step)?;
                times.push(start.elapsed().as_secs_f64());
            }
            let processor = (processor_time()? - processor) as f64 / STEPS as f64 * 1e-6;
            times.sort_by(f64::total_cmp);
            let median = times[times.len() / 2];
            let rate = lengths.len() as f64 / median;
            println!("{name:<26}{threads:>8}{processor:>14.1}{:>12.1}{rate:>14.0}", 1e3 * median);
        }
    }
    Ok(())
}
