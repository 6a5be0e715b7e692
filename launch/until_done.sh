#!/usr/bin/env bash
# Runs a command so that its starter can tell "finished" from "saved and stopped". The other launchers use it.
#
#   bash launch/until_done.sh medclip train --config configs/demo/mae.py --workdir runs/mae ...
#
# SIGTERM and SIGINT are handed to the command, which saves and ends with 0. This script then ends with 143, as
# a process does that SIGTERM has ended: Kubernetes or a loop starts it again, and the run resumes from there.
# With STOP_AT_EOF=1 it also stops when its standard input closes, as it does when an ssh connection breaks.
# Nothing here needs a change.
set -uo pipefail

stopped="" interrupted="" child=""
trap 'stopped=1 interrupted=1; [[ -n $child ]] && kill -TERM "$child" 2>/dev/null' TERM INT

"$@" </dev/null &
child=$!
# A signal that came before there was a child.
[[ -n $stopped ]] && kill -TERM "$child" 2>/dev/null
watcher=""
if [[ -n ${STOP_AT_EOF:-} ]]; then
  (cat >/dev/null && kill -TERM $$) <&0 >/dev/null 2>&1 &
  watcher=$!
fi

# A signal ends `wait` before the command has ended.
while interrupted=""; wait "$child"; code=$?; [[ -n $interrupted ]]; do :; done

[[ -n $watcher ]] && kill "$watcher" 2>/dev/null
if [[ -n $stopped && $code -eq 0 ]]; then
  exit 143
fi
exit "$code"
