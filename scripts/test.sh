#!/usr/bin/env bash
# Sets the machine up, builds everything and runs every test. Arguments go to `cargo nextest run`.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --test
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

# The end-to-end tests start the real programs, so these are built first.
cargo build --release --locked --workspace --bins
cargo nextest run --release --locked --workspace "$@"
