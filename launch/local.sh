#!/usr/bin/env bash
# Trains with several processes on this machine.
#
#   bash launch/local.sh 2 medclip train --config configs/demo/mae.py --workdir runs/mae --config.data.shards=shards
#
# A single process uses all GPUs of a machine, so `medclip train` alone is enough for most. Several are for
# machines where one Python process cannot feed all GPUs, which are shared out evenly here, and for trying out
# on a laptop what a cluster will do.
# If a process dies, all end and start again from the last checkpoint, RESTARTS times (3). Ctrl-C and SIGTERM
# save and end; the same command resumes.
set -uo pipefail
if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash launch/local.sh PROCESSES medclip train --config FILE --workdir FOLDER ..." >&2
  exit 2
fi
processes=$1
shift
restarts=${RESTARTS:-3}

if [[ -z ${CUDA_VISIBLE_DEVICES+set} ]] && command -v nvidia-smi >/dev/null; then
  CUDA_VISIBLE_DEVICES=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd, -)
fi
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
share=$((${#gpus[@]} / processes))

pids=() stopped="" interrupted=""
trap 'stopped=1 interrupted=1; kill -TERM "${pids[@]}" 2>/dev/null' TERM INT

for ((attempt = 0; ; attempt++)); do
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
  export JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$processes
  pids=()
  for ((i = 0; i < processes; i++)); do
    export JAX_PROCESS_ID=$i
    if ((share > 0)); then
      CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]:i * share:share}") "$@" </dev/null &
    else
      "$@" </dev/null &
    fi
    pids+=($!)
  done
  failed=0
  for pid in "${pids[@]}"; do
    # A signal ends `wait` before the process has ended.
    while interrupted=""; wait "$pid"; code=$?; [[ -n $interrupted ]]; do :; done
    if [[ $failed -eq 0 ]]; then failed=$code; fi
  done
  if [[ -n $stopped ]]; then
    exit $((failed == 0 ? 143 : failed))
  fi
  if ((failed == 0 || attempt >= restarts)); then
    exit "$failed"
  fi
  echo "launch/local.sh: a process ended with $failed; start $((attempt + 2)) of $((restarts + 1))" >&2
  sleep 2
done
