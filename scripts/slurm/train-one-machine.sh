#!/usr/bin/env bash
# Written by: ilm-launch slurm train --cluster one_machine -- --experiment star_easy_ilm 'model=rotary_tiny' --run-dir runs/star_easy_ilm
# Change the settings there and write it again.
#SBATCH --job-name=star_easy_ilm
#SBATCH --nodes=2
#SBATCH --ntasks=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=10
# Slurm warns the batch shell alone, this many seconds before the end, so that the ranks have time to save.
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail

fail() {
    echo "batch script: $*" >&2
    exit 2
}

# differ WHAT WANTED GRANTED
differ() {
    fail "the allocation has ${3:-no} $1, but this script was written for $2; submit it unchanged or write it again"
}
agree() { [[ $3 == "$2" ]] || differ "$@"; }
agree nodes 2 "${SLURM_JOB_NUM_NODES:-}"
agree tasks 2 "${SLURM_NTASKS:-}"
agree "CPUs per task" 1 "${SLURM_CPUS_PER_TASK:-}"

set -- --experiment star_easy_ilm 'model=rotary_tiny' --run-dir runs/star_easy_ilm

# What the worker compares with the time its saves take before it begins one.
export ILM_STOP_LEAD_SECS=60

child=
interrupted=false
may_requeue=true

# Whatever the signal was that came here, the ranks save a checkpoint on USR1. Called by the traps:
# shellcheck disable=SC2317
ask_to_save() {
    interrupted=true
    [[ -z $child ]] || kill -USR1 "$child" 2>/dev/null || true
}
trap ask_to_save USR1
# From scancel, or from a scheduler that requeues by itself: to requeue here would bring back what was cancelled.
trap 'may_requeue=false; ask_to_save' TERM

ilm-launch run -n 2 --max-restarts 3 --restart-delay 10 \
    -- "$@" &
child=$!
# A signal ends `wait` early, and that is not the end of the ranks.
while :; do
    interrupted=false
    code=0
    wait "$child" || code=$?
    $interrupted || break
done
# To be queued again sends TERM here, and the number may be another process's by then.
child=

job=$SLURM_JOB_ID
if ((code == 75)) && $may_requeue; then
    echo "batch script: the ranks stopped as they were told; job $job is requeued and goes on from there" >&2
    for _ in 1 2 3 4 5; do
        scontrol requeue "$job" && break
        sleep 5
    done
fi
exit "$code"
