#!/usr/bin/env bash
# Say how a slice is, and with WORKDIR how far the run is: the last lines of its metrics.jsonl.
#
#   PROJECT=... ZONE=... TPU=regions [WORKDIR=/mnt/lingregions/core] tpu_scripts/status.sh [--dry-run]
#
# The first line is one word: READY, WAITING, GONE (taken away or failed), ABSENT or UNKNOWN. Settings: common.sh.
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for word in "$@"; do
  case $word in
    --dry-run) DRY_RUN=1 ;;
    -h | --help) usage ;;
    *) fail "there is no option $word; see --help" ;;
  esac
done
locate
now=$(state)
if [[ $DRY_RUN == 1 ]]; then
  call gcloud compute tpus queued-resources describe "$TPU" "${where[@]}" --format='value(state.state)'
  call gcloud compute tpus tpu-vm describe "$TPU" "${where[@]}" --format='value(state)'
else
  printf '%s\n' "$now"
fi
if [[ $now == READY && -n ${WORKDIR:-} ]]; then
  remote 0 "tail -n 5 $(quote "$WORKDIR/metrics.jsonl")"
fi
