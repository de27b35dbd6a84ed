#!/usr/bin/env bash
# Sums 340 MiB over ranks by plain MPI calls and by the exchange of the training step. Usage: run.sh [RANKS]
set -euo pipefail
cd "$(dirname "$0")/../../.."
ranks=${1:-2}
cargo build --release --quiet -p worker --example allreduce
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${MPICC:-mpicc}" -O2 -o "$folder/raw" worker/benches/allreduce/raw.c
for program in "$folder/raw" target/release/examples/allreduce; do
    mpirun --oversubscribe --bind-to none -n "$ranks" "$program"
done
