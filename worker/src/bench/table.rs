//! What was measured as tables in Markdown, beside the figures of the Python reference.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::BenchError;

/// Group -> precision -> case -> examples or tokens per second.
type Reference = BTreeMap<String, BTreeMap<String, BTreeMap<String, f64>>>;

const REFERENCE: &str = include_str!("../../../scripts/bench-reference.toml");

/// The tables of the lines that measurements printed.
///
/// # Errors
/// [`BenchError::Line`] with the first line that is none of them.
pub fn table(lines: &str) -> Result<String, BenchError> {
    let mut measured = Vec::new();
    for (number, line) in (1..).zip(lines.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let line =
            serde_json::from_str(line).ok().map(Measured).filter(|line| !line.text("bench").is_empty());
        measured.push(line.ok_or(BenchError::Line { number })?);
    }
    let reference: Reference = toml::from_str(REFERENCE).unwrap_or_default();
    Ok([steps(&measured, &reference), parts(&measured, &reference)].concat())
}

/// A line of output.
struct Measured(Value);

impl Measured {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    fn number(&self, field: &str) -> f64 {
        self.0[field].as_f64().unwrap_or(f64::NAN)
    }

    /// The reference's figure, and how many times it the given one is.
    fn beside(&self, reference: &Reference, rate: f64) -> String {
        let [group, precision, case] = ["bench", "precision", "case"].map(|field| self.text(field));
        let found = reference.get(group).and_then(|group| group.get(precision)?.get(case));
        found.map_or("| |".to_owned(), |&found| format!("{} | {:.1} |", short(found), rate / found))
    }
}

fn steps(measured: &[Measured], reference: &Reference) -> String {
    let mut table = String::new();
    for line in measured.iter().filter(|line| line.text("bench") == "step") {
        if table.is_empty() {
            table.push_str(
                "| training step | products | ranks x threads | examples/s | GFLOP/s | share of ceiling | peak MiB | \
                 reference examples/s | ratio |\n|---|---|---|---|---|---|---|---|---|\n",
            );
        }
        let rate = line.number("examples_per_s");
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {} | {} | {} x {} | {} | {:.0} | {:.2} | {:.0} | {}",
            line.text("case"),
            line.text("precision"),
            line.number("ranks"),
            line.number("threads"),
            short(rate),
            line.number("flops_per_s") / 1e9,
            line.number("share_of_ceiling"),
            line.number("peak_rss_mib"),
            line.beside(reference, rate)
        );
    }
    table
}

fn parts(measured: &[Measured], reference: &Reference) -> String {
    let mut table = String::new();
    for line in measured {
        let Some(figures) = figures(line) else { continue };
        if table.is_empty() {
            table.push_str(
                "\n| part | case | products | found | reference tokens/s | ratio |\n|---|---|---|---|---|---|\n",
            );
        }
        let [part, case, precision] = ["bench", "case", "precision"].map(|field| line.text(field));
        let beside = line.beside(reference, line.number("tokens_per_s"));
        let _ = writeln!(table, "| {part} | {case} | {precision} | {figures} | {beside}");
    }
    table
}

/// What is said of a part of a step; products fill no table.
fn figures(line: &Measured) -> Option<String> {
    let number = |field| line.number(field);
    let giga = |field| format!("{:.1}", line.number(field) / 1e9);
    Some(match line.text("bench") {
        "head" => format!(
            "{} s and {:.0} MiB; plain form {} s and {:.0} MiB",
            short(number("median_s")),
            number("peak_mib"),
            short(number("dense_median_s")),
            number("dense_peak_mib")
        ),
        "attention" => format!("length {}: {} GFLOP/s", number("length"), giga("flops_per_s")),
        "optimizer" => format!("{} GB/s; a copy {} GB/s", giga("bytes_per_s"), giga("copy_bytes_per_s")),
        "reduce" => format!("{} ranks: {} GB/s", number("ranks"), giga("bytes_per_s")),
        "collate" => format!("{:.1} million tokens/s", number("tokens_per_s") / 1e6),
        "predict" => format!("{} tokens/s", short(number("tokens_per_s"))),
        _ => return None,
    })
}

/// Three digits.
fn short(value: f64) -> String {
    let digits = 2 - (value.abs().log10().floor().clamp(-4.0, 2.0) as i32);
    format!("{value:.*}", digits.max(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_stands_beside_the_reference() {
        let line = r#"{"bench":"step","case":"lm1b_full_64","precision":"bf16","threads":2,"ranks":1,"examples_per_s":45.0,
            "flops_per_s":7e11,"share_of_ceiling":0.5,"peak_rss_mib":3000.4}"#;
        let text = table(&line.replace('\n', "")).unwrap();
        let row = text.lines().last().unwrap();
        assert_eq!(row, "| lm1b_full_64 | bf16 | 1 x 2 | 45.0 | 700 | 0.50 | 3000 | 4.50 | 10.0 |");
        let columns = |line: &str| line.matches('|').count();
        assert!(text.lines().all(|line| columns(line) == columns(row)), "{text}");
    }

    #[test]
    fn parts_have_rows_and_products_have_none() {
        let lines = r#"{"bench":"gemm","case":"lm1b_full_64","precision":"bf16","flops_per_s":1.0}

{"bench":"predict","case":"lm1b_small_16","precision":"fp32","tokens_per_s":250.0}
{"bench":"optimizer","case":"lm1b_full_8","precision":"fp32","bytes_per_s":2e10,"copy_bytes_per_s":2.5e10}"#;
        let text = table(lines).unwrap();
        assert!(text.contains("| predict | lm1b_small_16 | fp32 | 250 tokens/s | 100 | 2.5 |"), "{text}");
        assert!(text.contains("20.0 GB/s; a copy 25.0 GB/s") && !text.contains("gemm"), "{text}");
        let error = table("{}").unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }

    #[test]
    fn every_reference_is_of_a_case() {
        let reference: Reference = toml::from_str(REFERENCE).unwrap();
        let names = reference.values().flat_map(BTreeMap::values).flat_map(BTreeMap::keys);
        assert!(names.clone().count() > 10);
        names.for_each(|name| drop(super::super::quick(name).unwrap()));
    }
}
