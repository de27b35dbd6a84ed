#!/usr/bin/env bash
# Trains the default experiment on this machine with two MPI ranks and measures the result on fresh graphs.
# Arguments are passed to `ilm-worker`, for example: scripts/train.sh trainer.max_steps=100
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
cargo build --release --locked --workspace --bins

# Whether an argument sets this key: then it is not set here.
is_set() { printf '%s\n' "${@:2}" | grep -q "^$1="; }

# Products of bf16 numbers are faster than those of fp32 ones where the processor has instructions for them, and slower
# where it has not.
# Steps are then so much faster that there is time for more of them: the answers are learned late.
settings=(trainer.precision=fp32)
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then settings=(trainer.precision=bf16 trainer.max_steps=4500); fi
defaults=()
for setting in "${settings[@]}"; do
    is_set "${setting%%=*}" "$@" || defaults+=("$setting")
done

run_dir=${ILM_RUN_DIR:-runs/star_easy_mini_ilm}
target/release/ilm-launch run -n 2 -- --experiment star_easy_mini_ilm --run-dir "$run_dir" \
    "${defaults[@]}" "$@"
target/release/ilm-launch run -n 2 -- evaluate --run-dir "$run_dir" --split test
