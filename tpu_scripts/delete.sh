#!/usr/bin/env bash
# Give a slice back, and clear its name; what is on its own disks is gone, a mounted disk or bucket stays.
#
#   PROJECT=... ZONE=... TPU=regions tpu_scripts/delete.sh [--plain] [--dry-run]
#
# A request and its slice, or a TPU VM (--plain tells a dry run which). Nothing there is no error. Settings: common.sh.
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for word in "$@"; do
  case $word in
    --plain) PLAIN=1 ;;
    --dry-run) DRY_RUN=1 ;;
    -h | --help) usage ;;
    *) fail "there is no option $word; see --help" ;;
  esac
done
locate
request=DRY slice=DRY
if [[ $DRY_RUN != 1 ]]; then
  request=$(describe queued-resources state.state)
  slice=$(describe tpu-vm state)
fi
if [[ $request != ABSENT && ! ($DRY_RUN == 1 && $PLAIN == 1) ]]; then # with the slice, if there is one
  call gcloud compute tpus queued-resources delete "$TPU" "${where[@]}" --quiet --force
elif [[ $slice != ABSENT ]]; then
  call gcloud compute tpus tpu-vm delete "$TPU" "${where[@]}" --quiet
else
  say "there is no $TPU"
fi
