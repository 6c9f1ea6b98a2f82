#!/usr/bin/env bash
# Ask for a TPU slice: a queued request (it waits until there is room), or with --plain a TPU VM at once.
#
#   PROJECT=... ZONE=us-west4-a TPU=regions TYPE=v5litepod-16 tpu_scripts/create.sh [--spot] [--plain] [--wait] [--dry-run]
#
# --spot    may be taken away, and costs much less (SPOT=1)     --wait     return when the slice is ready
# --plain   no queue: succeeds or fails now (PLAIN=1)           --dry-run  print the commands, run none (DRY_RUN=1)
# A slice that is there already is left as it is. Settings: common.sh.
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

wait=0
for word in "$@"; do
  case $word in
    --spot) SPOT=1 ;;
    --plain) PLAIN=1 ;;
    --wait) wait=1 ;;
    --dry-run) DRY_RUN=1 ;;
    -h | --help) usage ;;
    *) fail "there is no option $word; see --help" ;;
  esac
done
locate
need TYPE "accelerator type, such as v5litepod-16, v4-32, v5p-64, v6e-8"

if [[ -z ${RUNTIME:-} ]]; then
  case $TYPE in
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) RUNTIME=tpu-ubuntu2204-base ;;
    *) fail "\$TYPE is '$TYPE', whose image is not known here: set \$RUNTIME" ;;
  esac
fi

if [[ $DRY_RUN != 1 ]]; then
  now=$(state)
  case $now in
    ABSENT) ;;
    GONE) fail "$TPU was taken away or has failed; tpu_scripts/delete.sh clears its name" ;;
    UNKNOWN) fail "the state of $TPU cannot be had (see above)" ;;
    *)
      say "$TPU is there already: $now"
      if [[ $wait == 1 ]]; then await; fi
      exit 0
      ;;
  esac
fi

slice=("${where[@]}" --accelerator-type="$TYPE")
if [[ $SPOT == 1 ]]; then slice+=(--spot); fi
if [[ $PLAIN == 1 ]]; then
  call gcloud compute tpus tpu-vm create "$TPU" "${slice[@]}" --version="$RUNTIME"
else
  call gcloud compute tpus queued-resources create "$TPU" "${slice[@]}" --node-id="$TPU" --runtime-version="$RUNTIME"
fi
if [[ $wait == 1 ]]; then await; fi
