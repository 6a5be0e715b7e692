#!/usr/bin/env bash
# Trains on several machines over ssh, one process on each; no scheduler needed.
#
#   bash launch/ssh.sh node1,node2 medclip train --config configs/cardiac_clip/mae.py --workdir runs/mae ...
#
# Needed: ssh without a password; this folder, the shards and the workdir under the same path on every machine;
# port PORT (12355) of the first open to the others. Set SETUP to what must come before, such as
# SETUP='. venv/bin/activate'.
# If a machine or its connection is lost, all end and start again from the last checkpoint, RESTARTS times (20).
# Ctrl-C and SIGTERM save and end everywhere; the same command resumes.
set -uo pipefail
if [[ $# -lt 2 ]]; then
  echo "usage: bash launch/ssh.sh HOST,HOST medclip train --config FILE --workdir FOLDER ..." >&2
  exit 2
fi
IFS=, read -ra hosts <<<"$1"
shift
restarts=${RESTARTS:-20}
coordinator=${hosts[0]#*@}:${PORT:-12355}
command=$(printf '%q ' "$@")

# The remote side stops when this pipe closes, so nothing continues unwatched.
pipe=$(mktemp -d)/open
mkfifo "$pipe"
sleep infinity >"$pipe" &
holder=$!
stopped="" interrupted=""
trap 'stopped=1 interrupted=1; kill "$holder" 2>/dev/null' TERM INT
trap 'kill "$holder" 2>/dev/null; rm -r "$(dirname "$pipe")"' EXIT

for ((attempt = 0; ; attempt++)); do
  pids=()
  for i in "${!hosts[@]}"; do
    ssh -o BatchMode=yes -o ServerAliveInterval=15 "${hosts[i]}" \
      "cd $(printf %q "$PWD") && ${SETUP:-true} && export STOP_AT_EOF=1 \
      JAX_COORDINATOR_ADDRESS=$coordinator JAX_NUM_PROCESSES=${#hosts[@]} JAX_PROCESS_ID=$i \
      && exec bash launch/until_done.sh $command" <"$pipe" &
    pids+=($!)
  done
  failed=0
  for pid in "${pids[@]}"; do
    # A signal ends `wait` before ssh has ended.
    while interrupted=""; wait "$pid"; code=$?; [[ -n $interrupted ]]; do :; done
    if [[ $failed -eq 0 ]]; then failed=$code; fi
  done
  if [[ -n $stopped || $failed -eq 0 ]] || ((attempt >= restarts)); then
    exit "$failed"
  fi
  echo "launch/ssh.sh: a machine ended with $failed; start $((attempt + 2)) of $((restarts + 1))" >&2
  sleep "${PAUSE:-30}"
done
