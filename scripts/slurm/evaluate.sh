#!/usr/bin/env bash
# Written by: ilm-launch slurm evaluate --cluster generic --set 'nodes=1' --set 'partition=gpu' --each '--split validation' --each '--split test data.test=/data/lm1b/heldout.parquet' -- --run-dir runs/lm1b_ilm
# Change the settings there and write it again.
#SBATCH --job-name=lm1b_ilm
#SBATCH --nodes=1
#SBATCH --ntasks=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
#SBATCH --array=0-1
# Slurm warns the batch shell alone, this many seconds before the end, so that the ranks have time to save.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
#SBATCH --exclusive
#SBATCH --mem=0
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
agree nodes 1 "${SLURM_JOB_NUM_NODES:-}"
agree tasks 8 "${SLURM_NTASKS:-}"
agree "CPUs per task" 8 "${SLURM_CPUS_PER_TASK:-}"
# A whole node may bring more than were asked for.
((${SLURM_GPUS_ON_NODE:-0} >= 8)) || differ "GPUs per node" 8 "${SLURM_GPUS_ON_NODE:-}"
[[ " $(srun --mpi=list 2>&1) " =~ [[:space:],]pmix[[:space:],] ]] ||
    fail "srun has no MPI plug-in 'pmix' here; give the cluster's settings another 'mpi', or launcher = \"mpirun\""

case ${SLURM_ARRAY_TASK_ID:-} in
    0) set -- evaluate --run-dir runs/lm1b_ilm --split validation ;;
    1) set -- evaluate --run-dir runs/lm1b_ilm --split test 'data.test=/data/lm1b/heldout.parquet' ;;
    *) fail "this array has no job '${SLURM_ARRAY_TASK_ID:-}'" ;;
esac

# What the worker compares with the time its saves take before it begins one.
export ILM_STOP_LEAD_SECS=300

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

ilm-launch run -n 8 --srun pmix --max-restarts 3 --restart-delay 10 \
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

# The number of one job of an array may stand for all of them.
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
if ((code == 75)) && $may_requeue; then
    echo "batch script: the ranks stopped as they were told; job $job is requeued and goes on from there" >&2
    for _ in 1 2 3 4 5; do
        scontrol requeue "$job" && break
        sleep 5
    done
fi
exit "$code"
