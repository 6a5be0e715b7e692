#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice: makes it, installs this folder on every host, runs the command on all of
# them, and does so again when the slice is preempted or a host fails, until the run is finished.
#
#   NAME=medclip ZONE=us-east5-b TYPE=v5litepod-64 VERSION=v2-alpha-tpuv5-lite STORAGE=10.0.0.2:/share \
#     bash launch/tpu_pod.sh medclip train --config configs/cardiac_clip/mae.py --workdir /storage/runs/mae ...
#
# Change: the variables above, your project (`gcloud config set project`), CREATE for other options than spot.
# STORAGE is an NFS share (Filestore) that every host mounts as /storage: shards and workdir lie there.
# Run it where it can stay, such as a small VM, in tmux: the slice lives as long as the run, and is deleted when
# the run is finished (KEEP=1 keeps it). Ctrl-C and SIGTERM save, end, and keep the slice.
set -uo pipefail
if [[ $# -eq 0 || -z ${NAME:-} || -z ${ZONE:-} || -z ${TYPE:-} || -z ${VERSION:-} || -z ${STORAGE:-} ]]; then
  echo "usage: NAME=... ZONE=... TYPE=... VERSION=... STORAGE=... bash launch/tpu_pod.sh medclip train ..." >&2
  exit 2
fi
pause=${PAUSE:-30}
failures=0
command=$(printf '%q ' "$@")
# The lock lets a second start wait for a first one whose connection was lost.
run="cd medclip && . venv/bin/activate && flock medclip.lock bash launch/until_done.sh $command"
archive=medclip.tar.gz
install="mkdir -p medclip && tar xzf $archive -C medclip && cd medclip \
  && { mountpoint -q /storage || { sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common \
  && sudo mkdir -p /storage && sudo mount -t nfs $STORAGE /storage; }; } \
  && python3 -m venv venv && venv/bin/pip install -q '.[tpu]'"

tpu() { # tpu VERB ARGUMENTS...
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$NAME" --zone "$ZONE" --quiet "$@"
}
on_all_hosts() { tpu ssh --worker=all --command "$1"; }
stop() {
  trap '' TERM INT
  on_all_hosts "pkill -TERM -f '[l]aunch/until_done.sh'"
  wait
  echo "launch/tpu_pod.sh: the run saves and ends; the same command resumes" >&2
  exit 143
}
trap stop TERM INT
temporary=$(mktemp -d)
trap 'rm -r "$temporary"' EXIT

while :; do
  state=$(tpu describe --format='value(state)' 2>/dev/null)
  case $state in
    READY) ;;
    "")
      echo "launch/tpu_pod.sh: making $NAME" >&2
      # shellcheck disable=SC2086  # CREATE holds several options
      tpu create --accelerator-type "$TYPE" --version "$VERSION" ${CREATE:---spot} || sleep "$pause"
      continue
      ;;
    CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | DELETING | STOPPING | HIDING)
      sleep "$pause"
      continue
      ;;
    *)
      echo "launch/tpu_pod.sh: $NAME is $state, making it anew" >&2
      tpu delete || sleep "$pause"
      continue
      ;;
  esac
  began=$SECONDS
  # In the background, so that a signal is heard at once. Tracked files only: no shards, no runs.
  (
    git ls-files -z | tar --null --files-from - -czf "$temporary/$archive" &&
      gcloud compute tpus tpu-vm scp "$temporary/$archive" "$NAME:" --zone "$ZONE" --worker=all --quiet &&
      on_all_hosts "$install" && on_all_hosts "$run"
  ) &
  wait $! && break
  # Preemptions cost no try; three failures within an hour each, on a slice that stays up, are an error.
  if ((SECONDS - began < 3600)) && [[ $(tpu describe --format='value(state)' 2>/dev/null) == READY ]]; then
    failures=$((failures + 1))
    if ((failures == 3)); then
      echo "launch/tpu_pod.sh: failed three times on a healthy slice; look at the output above" >&2
      exit 1
    fi
  else
    failures=0
  fi
  sleep "$pause"
done
[[ -n ${KEEP:-} ]] || tpu delete
