#!/usr/bin/env bash
# Trains the default experiment on this machine with two MPI ranks and measures the result on fresh graphs.
# Arguments are passed to `ilm-worker`, for example: scripts/train.sh trainer.max_steps=100
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
cargo build --release --locked --workspace --bins

# Products of bf16 numbers are faster than those of fp32 ones where the processor has instructions for them, and slower
# where it has not.
precision=fp32
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then precision=bf16; fi
defaults=()
if ! printf '%s\n' "$@" | grep -q '^trainer\.precision='; then defaults=("trainer.precision=$precision"); fi

run_dir=${ILM_RUN_DIR:-runs/star_easy_mini_ilm}
target/release/ilm-launch run -n 2 -- --experiment star_easy_mini_ilm --run-dir "$run_dir" \
    "${defaults[@]}" "$@"
target/release/ilm-launch run -n 2 -- evaluate --run-dir "$run_dir" --split test
