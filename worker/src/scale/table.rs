//! Predictions as a Markdown table, a column for each number of GPUs, and what limits each of them.

use super::prediction::Prediction;

/// The table and the lists of limits.
pub fn table(predictions: &[Prediction]) -> String {
    let columns: Vec<String> = predictions.iter().map(gpus).collect();
    let mut lines = vec![line("", &columns), format!("|---|{}", "---|".repeat(columns.len()))];
    lines.extend(rows(predictions).into_iter().map(|(label, cells)| line(label, &cells)));
    for prediction in predictions {
        lines.push(String::new());
        lines.push(format!("{}, what breaks first:", gpus(prediction)));
        lines.push(String::new());
        if prediction.limits.is_empty() {
            lines.push("- nothing takes 5 % of a step".to_owned());
        }
        lines.extend(prediction.limits.iter().map(|limit| {
            let share =
                if limit.share < 1.0 { format!("{:.0} %, ", limit.share * 100.0) } else { String::new() };
            format!("- {share}{}", limit.reason)
        }));
    }
    lines.join("\n")
}

fn line(label: &str, cells: &[String]) -> String {
    format!("| {label} | {} |", cells.join(" | "))
}

fn rows(predictions: &[Prediction]) -> Vec<(&'static str, Vec<String>)> {
    type Cell = fn(&Prediction) -> String;
    let first = predictions.first().map_or(1.0, |p| p.tokens_per_s / p.gpus as f64);
    let rows: [(&str, Cell); 18] = [
        ("rows of a GPU and step", |p| number(p.rows)),
        ("visible tokens of them, and on the fullest GPU", |p| {
            format!("{}, {}", number(p.tokens), number(p.fullest_tokens))
        }),
        ("micro-batches", |p| {
            format!("{} of {} tokens", p.micro_batches, number(p.tokens / p.micro_batches))
        }),
        ("step", |p| ms(p.seconds.step())),
        ("- matrix products", |p| ms(p.seconds.gemm)),
        ("- attention", |p| ms(p.seconds.attention)),
        ("- kernels bound by memory", |p| ms(p.seconds.traffic)),
        ("- waiting for kernels to start", |p| ms(p.seconds.launches)),
        ("- waiting for the fullest GPU", |p| ms(p.seconds.uneven)),
        ("- reduction of gradients: exposed of all", |p| exposed(p.seconds.reduce, p.exchange.reduce)),
        ("- optimizer", |p| ms(p.seconds.optimizer)),
        ("- gathering of parameters: exposed of all", |p| exposed(p.seconds.gather, p.exchange.gather)),
        ("examples/s, visible tokens/s", |p| {
            format!("{}, {}", number(p.examples_per_s), number(p.tokens_per_s))
        }),
        ("MFU", |p| percent(p.mfu)),
        ("a GPU sends per step", |p| gb(p.exchange.sent)),
        ("memory: parameters + gradients, optimizer", |p| {
            let model = p.resident.parameters + p.resident.gradients;
            format!("{}, {}", gb(model as f64), gb(p.resident.optimizer as f64))
        }),
        ("memory: activations, in all", |p| format!("{}, {}", gb(p.activations), gb(p.memory()))),
        ("checkpoint: size, standing still, written after", |p| {
            let c = &p.checkpoint;
            format!("{}, {}, {:.1} s", gb(c.bytes), ms(c.stall), c.write)
        }),
    ];
    let cells = |cell: Cell| predictions.iter().map(cell).collect();
    let mut rows: Vec<_> = rows.into_iter().map(|(label, cell)| (label, cells(cell))).collect();
    let scaling = |p: &Prediction| percent(p.tokens_per_s / p.gpus as f64 / first);
    let place = rows.iter().position(|(label, _)| *label == "MFU").unwrap_or(rows.len());
    rows.insert(
        place,
        ("speed of a GPU against the first column", predictions.iter().map(scaling).collect()),
    );
    rows
}

fn gpus(prediction: &Prediction) -> String {
    match prediction.gpus {
        1 => "1 GPU".to_owned(),
        gpus => format!("{gpus} GPUs"),
    }
}

fn ms(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

fn exposed(part: f64, whole: f64) -> String {
    format!("{:.1} of {}", part * 1e3, ms(whole))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn gb(bytes: f64) -> String {
    format!("{:.2} GB", bytes / 1e9)
}

/// Three digits are enough.
fn number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.1} M", value / 1e6),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        value if value >= 10.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}
