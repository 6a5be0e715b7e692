#!/usr/bin/env bash
# Trains on one or many nodes of a SLURM cluster as a single job.
#
#   sbatch --nodes=4 launch/slurm.sh medclip train --config configs/cardiac_clip/mae.py --workdir runs/mae ...
#
# Change: GPUs, cores and time below, or on the line of sbatch, which outranks them; --partition and --account
# as your cluster asks. One task a node drives all its GPUs; --ntasks-per-node=8 gives each GPU its own process.
# The processes find each other through SLURM's variables. Shards and workdir lie on a shared file system.
# A job that is preempted, loses a node or runs out of time saves, is queued again and resumes. One that fails
# stays failed.
#SBATCH --job-name=medclip
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=slurm-%j.txt
#SBATCH --open-mode=append
set -uo pipefail
if [[ $# -eq 0 ]]; then
  echo "usage: sbatch --nodes=N launch/slurm.sh medclip train --config FILE --workdir FOLDER ..." >&2
  exit 2
fi
# srun does not take this over from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# Two minutes before the time is over SLURM signals this script; srun hands the signal on, and the run saves.
stopped="" interrupted=""
trap 'stopped=1 interrupted=1; kill -TERM "$step" 2>/dev/null' TERM
srun --kill-on-bad-exit=1 "$@" &
step=$!
# A signal ends `wait` before the run has ended.
while interrupted=""; wait "$step"; code=$?; [[ -n $interrupted ]]; do :; done

if [[ -n $stopped ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
