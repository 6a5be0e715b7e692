#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster through xpk, which makes a JobSet of one pod for each host.
#
#   bash launch/xpk.sh --cluster CLUSTER --workload mae --tpu-type v5litepod-64 --docker-image IMAGE \
#     --storage STORAGE -- medclip train --config configs/cardiac_clip/mae.py --workdir /storage/runs/mae ...
#
# Change: everything before "--" goes to `xpk workload create` as it is. IMAGE is built by launch/Dockerfile;
# STORAGE was attached by `xpk storage attach`, and shards and workdir lie on it, as the pods see it.
# A pod that is preempted saves (two minutes), then all are started again and resume; so they are when a process
# dies (exit codes 1, 127-255). A config that cannot work (2) ends the workload.
set -euo pipefail
options=()
while [[ $# -gt 0 && $1 != -- ]]; do
  options+=("$1")
  shift
done
if [[ $# -lt 2 || ${#options[@]} -eq 0 ]]; then
  echo "usage: bash launch/xpk.sh --cluster C --workload W --tpu-type T --docker-image I -- medclip train ..." >&2
  exit 2
fi
shift
# `exec`, so that xpk's signals reach the script and not a shell before it.
xpk workload create --max-restarts 50 --restart-on-exit-codes 1 --termination-grace-period-seconds 120 \
  --command "exec bash launch/until_done.sh $(printf '%q ' "$@")" "${options[@]}"
