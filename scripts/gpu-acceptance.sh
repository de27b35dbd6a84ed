#!/usr/bin/env bash
# Says whether this machine's GPUs train as they should: equal losses on processor and GPUs, speed on 1, 2, 4 .. GPUs,
# communication that computation does not hide, checkpoints that go from one number of GPUs to another, and bits that repeat.
#
#   scripts/setup.sh --gpu && PATH="$HOME/.cargo/bin:$PATH" cargo build --release --locked --workspace --bins
#   scripts/gpu-acceptance.sh [OPTION..] [KEY=VALUE..]
#
#   --out DIR       where runs and the table go [default: runs/gpu-acceptance, which must not exist]
#   --gpus N        use N GPUs at most
#   --steps N       optimizer steps of a measurement of speed [default: 60]
#   --batch N       examples of a step for each GPU in these [default: 64]
#   --peak TFLOPS   bf16 products of one GPU without sparsity [default: by the GPU's name]
#
# KEY=VALUE changes the runs that are measured for speed, for example model=gpt2_small, whatever this script sets there.
# Exit codes: 0 passed, 1 something failed, 2 usage, 77 there is no GPU.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly USAGE=2 NO_GPU=77
# Losses in fp32 differ by the order of sums alone, which training amplifies a little.
readonly TOLERANCE=1e-3
readonly LEAST_EFFICIENCY=0.90
readonly MOST_EXPOSED=0.05
# The same masks for any number of ranks: none.
readonly SMALL=(--experiment star_easy_ilm model=rotary_mini trainer.precision=fp32 model.dropout=0
    per_device_batch_size=8 global_batch_size=64 optimizer.lr=1e-4 trainer.log_every_n_steps=10 checkpoint.every_n_steps=10
    checkpoint.keep_last=9)
readonly LARGE=(--experiment star_hard_ilm model=rotary_small trainer.precision=bf16 checkpoint.every_n_steps=1000000)

out=runs/gpu-acceptance
gpus=
steps=60
batch=64
peak=
changes=()
failures=()

main() {
    parse_arguments "$@"
    find_gpus
    [[ -x target/release/ilm-worker ]] || stop "target/release/ilm-worker is missing: build it as --help says"
    [[ ! -e $out ]] || stop "$out exists: move it away or choose another --out"
    mkdir -p "$out/logs"
    {
        printf 'GPUs: %s x %s\n' "$gpus" "$(gpu_name)"
        parity
        speed
        checkpoints
        repetition
        verdict
    } | tee "$out/table.txt"
    # The block ran in a subshell, so what it found is in the file.
    grep -q '^verdict: passed' "$out/table.txt"
}

stop() {
    printf 'gpu-acceptance: %s\n' "$*" >&2
    exit "$USAGE"
}

parse_arguments() {
    while (($#)); do
        case $1 in
            --out | --gpus | --steps | --batch | --peak)
                (($# > 1)) || stop "$1 needs a value; see --help"
                declare -g "${1#--}=$2"
                shift
                ;;
            -h | --help)
                sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
                exit 0
                ;;
            [!-]*=*) changes+=("$1") ;;
            *) stop "unknown argument $1; see --help" ;;
        esac
        shift
    done
    [[ -z $gpus || $gpus =~ ^[1-9][0-9]*$ ]] || stop "--gpus $gpus is not a number above 0"
    [[ $steps =~ ^[1-9][0-9]+$ ]] || stop "--steps $steps is not a number of at least 10"
    [[ $batch =~ ^[1-9][0-9]*$ ]] || stop "--batch $batch is not a number above 0"
    [[ -z $peak || $peak =~ ^[0-9]+(\.[0-9]+)?$ ]] || stop "--peak $peak is not a number"
}

# Sets gpus to their number, as far as it is allowed.
find_gpus() {
    local seen=0
    if [[ -n ${CUDA_VISIBLE_DEVICES-all} ]] && command -v nvidia-smi >/dev/null; then
        seen=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU') || true
        if [[ -n ${CUDA_VISIBLE_DEVICES-} ]]; then seen=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .); fi
    fi
    if ((seen == 0)); then
        printf 'gpu-acceptance: no GPU can be seen here, so there is nothing to accept; run this on a machine with NVIDIA GPUs\n' >&2
        exit "$NO_GPU"
    fi
    if [[ -z $gpus ]] || ((gpus > seen)); then gpus=$seen; fi
}

gpu_name() { nvidia-smi --query-gpu=name --format=csv,noheader | awk 'NR == 1'; }

# train NAME RANKS ARGUMENT..: a run in its folder; a failed one is noted with its last words.
train() {
    local name=$1 ranks=$2
    shift 2
    if ! target/release/ilm-launch run -n "$ranks" -- --run-dir "$out/$name" "$@" >>"$out/logs/$name.txt" 2>&1; then
        fail "$name: $(grep '^error: ' "$out/logs/$name.txt" | tail -n 1 || true) (see $out/logs/$name.txt)"
        return 1
    fi
}

# changed SETTING..: the settings less those that KEY=VALUE gives otherwise, then KEY=VALUE; a line each. The worker refuses a key
# that is given twice.
changed() {
    local setting change
    for setting in "$@"; do
        for change in "${changes[@]}"; do
            [[ ${setting%%=*} != "${change%%=*}" ]] || continue 2
        done
        printf '%s\n' "$setting"
    done
    ((${#changes[@]} == 0)) || printf '%s\n' "${changes[@]}"
}

fail() {
    printf 'failed: %s\n' "$*"
    failures+=("$*")
}

# require NAME CONDITION: CONDITION is arithmetic of Python.
require() {
    if [[ $(python3 -c "print($2)") != True ]]; then fail "$1: $2 does not hold"; fi
}

# difference RUN OTHER: the largest relative difference of the losses of the steps that both have.
difference() {
    python3 - "$out/$1/metrics.jsonl" "$out/$2/metrics.jsonl" <<'END'
import json, sys
one, other = ({line["step"]: line["loss"] for line in map(json.loads, open(path))} for path in sys.argv[1:])
common = one.keys() & other.keys()
print(max((abs(one[step] - other[step]) / abs(other[step]) for step in common), default="nan"))
END
}

# median RUN KEY: over the second half of the steps, when everything is warm.
median() {
    python3 - "$out/$1/metrics.jsonl" "$2" <<'END'
import json, statistics, sys
values = [json.loads(line)[sys.argv[2]] for line in open(sys.argv[1])]
print(statistics.median(values[len(values) // 2:]))
END
}

parity() {
    local apart
    printf '\nlosses of processor and GPU, fp32, 20 steps\n'
    train parity-cpu 1 "${SMALL[@]}" trainer.max_steps=20 trainer.device=cpu || return 0
    train parity-gpu 1 "${SMALL[@]}" trainer.max_steps=20 trainer.device=cuda || return 0
    apart=$(difference parity-gpu parity-cpu)
    printf '  largest relative difference  %.2e  (at most %s)\n' "$apart" "$TOLERANCE"
    require parity "$apart <= $TOLERANCE"
}

speed() {
    local ranks name tokens exposed waited step efficiency use settings first=
    printf '\nspeed, bf16, %s steps, the same batch for each GPU\n' "$steps"
    printf '  %4s %12s %10s %10s %10s %10s %8s\n' GPUs tokens/s step_s efficiency exposed waited MFU
    for ((ranks = 1; ranks <= gpus; ranks *= 2)); do
        name=speed-$ranks
        mapfile -t settings < <(changed "${LARGE[@]}" "per_device_batch_size=$batch" \
            "global_batch_size=$((batch * ranks))" "trainer.max_steps=$steps" trainer.device=cuda)
        train "$name" "$ranks" "${settings[@]}" || return 0
        tokens=$(median "$name" tokens_per_s) step=$(median "$name" step_s)
        exposed=$(median "$name" comm_exposed_s) waited=$(median "$name" rank_wait_s)
        first=${first:-$tokens}
        efficiency=$(python3 -c "print($tokens / ($ranks * $first))")
        exposed=$(python3 -c "print($exposed / $step)") waited=$(python3 -c "print($waited / $step)")
        use=$(model_flops_utilisation "$name" "$tokens" "$ranks")
        printf '  %4s %12.0f %10.4f %10.3f %9.1f%% %9.1f%% %8s\n' "$ranks" "$tokens" "$step" "$efficiency" \
            "$(python3 -c "print(100 * $exposed)")" "$(python3 -c "print(100 * $waited)")" "$use"
        require "$name efficiency" "$efficiency >= $LEAST_EFFICIENCY"
        require "$name exposed communication" "$exposed <= $MOST_EXPOSED"
    done
}

# model_flops_utilisation RUN TOKENS_PER_S GPUS: 6 operations per parameter and token, as a share of the GPUs' peak.
model_flops_utilisation() {
    local parameters each=${peak:-$(peak_of "$(gpu_name)")}
    parameters=$(grep -oE '[0-9]+ parameters' "$out/logs/$1.txt" | head -n 1 | cut -d ' ' -f 1)
    if [[ -z $each || -z $parameters ]]; then
        echo '-'
    else
        python3 -c "print(f'{100 * 6 * $parameters * $2 / ($3 * $each * 1e12):.1f}%')"
    fi
}

# peak_of NAME: dense bf16 TFLOP/s according to the maker.
peak_of() {
    case $1 in
        *H200* | *'H100 80GB HBM3'* | *'H100 SXM'*) echo 989 ;;
        *'H100 PCIe'*) echo 756 ;;
        *A100*) echo 312 ;;
        *L40S*) echo 362 ;;
        *4090*) echo 165 ;;
    esac
}

# The same 40 steps in one go, and in three on ever fewer devices.
checkpoints() {
    local fewer=$((gpus > 1 ? gpus / 2 : 1)) apart
    printf '\ncheckpoints, saved on %s GPU(s), resumed on %s and on the processor\n' "$gpus" "$fewer"
    train whole "$gpus" "${SMALL[@]}" trainer.max_steps=40 trainer.device=cuda || return 0
    train pieces "$gpus" "${SMALL[@]}" trainer.max_steps=20 trainer.device=cuda || return 0
    train pieces "$fewer" "${SMALL[@]}" trainer.max_steps=30 trainer.device=cuda || return 0
    train pieces 1 "${SMALL[@]}" trainer.max_steps=40 trainer.device=cpu || return 0
    apart=$(difference pieces whole)
    printf '  largest relative difference  %.2e  (at most %s)\n' "$apart" "$TOLERANCE"
    require checkpoints "$apart <= $TOLERANCE"
    target/release/ilm-worker checkpoints verify --run-dir "$out/pieces" >>"$out/logs/pieces.txt" 2>&1 ||
        fail "a checkpoint of $out/pieces is damaged (see $out/logs/pieces.txt)"
}

# The same bits in one go and in two.
repetition() {
    local settings=("${LARGE[@]}" "per_device_batch_size=$batch" "global_batch_size=$((batch * gpus))" model.dropout=0.1
        trainer.device=cuda)
    printf '\nthe same 20 steps in one go and in two, bf16, dropout, %s GPU(s)\n' "$gpus"
    train once "$gpus" "${settings[@]}" trainer.max_steps=20 || return 0
    train twice "$gpus" "${settings[@]}" trainer.max_steps=10 || return 0
    train twice "$gpus" "${settings[@]}" trainer.max_steps=20 || return 0
    if cmp -s "$out/once/digest.jsonl" "$out/twice/digest.jsonl"; then
        printf '  the same bits in all steps\n'
    else
        fail "repetition: digest.jsonl of $out/once and $out/twice differ"
    fi
}

verdict() {
    if ((${#failures[@]})); then
        printf '\nverdict: failed, %s of the checks\n' "${#failures[@]}"
    else
        printf '\nverdict: passed\n'
    fi
}

main "$@"
