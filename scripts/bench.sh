#!/usr/bin/env bash
# Measures training and its parts on this machine: every figure as a line of JSON into a file, and Markdown tables of them
# beside the figures of the Python reference on standard output.
#
#   scripts/bench.sh [--quick] [FILE]    FILE is bench.jsonl if left out; --quick takes two cases in the faster precision
#
# Every case has a process of its own, so that its peak memory is its own. Leave the machine alone meanwhile: half an hour, or a
# few minutes with --quick.
set -euo pipefail
quick=false
if [[ ${1:-} == --quick ]]; then
    quick=true
    shift
fi
file=$(realpath -m "${1:-bench.jsonl}")
cd "$(dirname "$0")/.."
scripts/setup.sh >&2
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
cargo build --release --locked --workspace --bins >&2

precisions=(fp32)
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then precisions=(bf16 fp32); fi
cases=()
for model in full small; do
    cases+=("star_easy_${model}_64" "lm1b_${model}_64" "lm1b_${model}_8" "owt_${model}_2" "owt_${model}_8")
done
repeats=7
if $quick; then
    precisions=("${precisions[0]}")
    cases=(star_easy_small_64 lm1b_small_8)
    repeats=3
fi

: >"$file"
# Measures what the arguments say; the lines go to the file and to standard error, to show how far it is.
measure() {
    target/release/ilm-worker bench "$@" --repeats "$repeats" | tee -a "$file" >&2
}
for precision in "${precisions[@]}"; do
    for case in "${cases[@]}"; do
        measure step --case "$case" --precision "$precision"
    done
    measure predict --precision "$precision"
    measure optimizer --precision "$precision"
    $quick && continue
    for case in lm1b_full_16 owt_full_2; do
        measure head --case "$case" --precision "$precision"
    done
    measure attention --precision "$precision"
done
if ! $quick; then
    measure collate --precision "${precisions[0]}"
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe -n 2 \
        target/release/ilm-worker bench reduce --precision "${precisions[0]}" --repeats "$repeats" | tee -a "$file" >&2
fi
target/release/ilm-worker bench --table "$file"
