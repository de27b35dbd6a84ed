#!/usr/bin/env bash
# Compares training in bf16 with training in fp32: the first steps of star_easy with three seeds each, the curves as a picture
# (SVG) and their distance as a table on standard output.
#
#   scripts/precision-curves.sh [FOLDER]    FOLDER is runs/precision if left out; STEPS=500 and THREADS=2 may be set
#
# Arguments for the worker follow: scripts/precision-curves.sh runs/precision --experiment star_easy_ilm model=rotary_mini
set -euo pipefail
folder=$(realpath -m "${1:-runs/precision}")
shift || true
cd "$(dirname "$0")/.."
scripts/setup.sh >&2
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
cargo build --release --locked --workspace --bins >&2

arguments=("$@")
((${#arguments[@]})) || arguments=(--experiment star_easy_mini_ilm)
for seed in 1 2 3; do
    for precision in fp32 bf16; do
        target/release/ilm-worker "${arguments[@]}" --fresh --run-dir "$folder/$precision-$seed" seed=$seed \
            "trainer.precision=$precision" "trainer.max_steps=${STEPS:-500}" "trainer.threads=${THREADS:-2}" >&2
    done
done
python3 scripts/precision_curves.py "$folder"
