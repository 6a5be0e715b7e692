#!/usr/bin/env bash
# Prepares shards on many nodes of a SLURM cluster: each task of the array makes one part.
#
#   sbatch --array=1-32 launch/slurm_array.sh medclip prepare --table studies.csv --root scans --out shards --part auto
#
# The last part to end puts all together. (For a sweep, `medclip sweep --emit slurm` writes its own array.)
# Change: cores, memory and time below, or on the line of sbatch, which outranks them; --partition and --account
# as your cluster asks; how many parts. Scans and shards lie on a shared file system.
# A task that is preempted, loses its node or runs out of time is queued again and resumes. Submit all tasks
# again after a failure: finished shards are kept.
#SBATCH --job-name=medclip-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
#SBATCH --output=slurm-%A-%a.txt
#SBATCH --open-mode=append
set -uo pipefail
if [[ $# -eq 0 || -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
  echo "usage: sbatch --array=1-N launch/slurm_array.sh medclip prepare ... --part auto" >&2
  exit 2
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

stopped="" interrupted=""
trap 'stopped=1 interrupted=1; kill -TERM "$step" 2>/dev/null' TERM
srun "$@" &
step=$!
# A signal ends `wait` before the step has ended.
while interrupted=""; wait "$step"; code=$?; [[ -n $interrupted ]]; do :; done

if [[ -n $stopped ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
