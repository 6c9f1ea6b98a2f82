#!/usr/bin/env bash
# What the scripts of this folder share: settings, checks, the dry run, the state of a slice. Sourced, never run.
#
# Settings are environment variables; a file of `export NAME=value` lines, sourced before, is a good place for them.
#   PROJECT, ZONE   of Google Cloud                        TPU       name of the slice
#   TYPE            accelerator type, such as v5litepod-16  RUNTIME   image; chosen by TYPE when unset
#   SPOT=1          cheaper, may be taken away              PLAIN=1   a TPU VM now or never, instead of a queued request
#   WORKDIR         work directory on the workers; with several workers on a disk that all of them mount:
#   NFS             host:/share to mount at MOUNT           BUCKET    or a bucket to mount there with gcsfuse
#   MOUNT           where; /mnt/lingregions when unset      DRY_RUN=1 print every command, run none

DRY_RUN=${DRY_RUN:-0} SPOT=${SPOT:-0} PLAIN=${PLAIN:-0} MOUNT=${MOUNT:-/mnt/lingregions} POLL=${POLL:-30}

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  exit 2
}

say() {
  printf '%s\n' "--> $1" >&2
}

usage() { # the comment at the top of the script
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
  exit 0
}

need() { # NAME MEANING: the variable must hold something
  [[ -n ${!1:-} ]] || fail "\$$1 is not set ($2)"
}

locate() { # which slice is meant
  need PROJECT "the Google Cloud project"
  need ZONE "such as us-west4-a"
  need TPU "the name of the slice"
  [[ $TPU =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail "\$TPU is '$TPU': a name has small letters, digits and dashes, and begins with a letter"
  where=(--project="$PROJECT" --zone="$ZONE")
}

quote() { # words as a shell reads them, in one line
  local word line=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

call() { # run a command, or print it
  if [[ $DRY_RUN == 1 ]]; then quote "$@"; else "$@"; fi
}

remote() { # WORKER COMMAND: run a command on one worker, or on all
  call gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker="$1" --command="$2"
}

describe() { # KIND FIELD: a field of the slice, ABSENT, or UNKNOWN when the answer is lost
  local answer
  if answer=$(gcloud compute tpus "$1" describe "$TPU" "${where[@]}" --format="value($2)" 2>&1); then
    printf '%s\n' "${answer:-UNKNOWN}"
  elif [[ $answer == *NOT_FOUND* || $answer == *"not found"* ]]; then
    printf 'ABSENT\n'
  else
    printf '%s\n' "$answer" >&2
    printf 'UNKNOWN\n'
  fi
}

state() { # READY, WAITING, GONE (taken away or failed), ABSENT or UNKNOWN
  local found
  if [[ $DRY_RUN == 1 ]]; then
    printf 'READY\n'
    return
  fi
  found=$(describe queued-resources state.state)
  # Ask the slice itself: a plain one has no request, and a spot slice is lost minutes before its request says so.
  if [[ $found == ACTIVE || $found == ABSENT ]]; then found=$(describe tpu-vm state); fi
  case $found in
    READY | ABSENT | UNKNOWN) printf '%s\n' "$found" ;;
    SUSPENDED | SUSPENDING | FAILED | PREEMPTED | TERMINATED | STOPPED) printf 'GONE\n' ;;
    *) printf 'WAITING\n' ;;
  esac
}

await() { # wait until the slice is ready, or say that it will not be
  local now before=""
  while now=$(state) && [[ $now == WAITING || $now == UNKNOWN ]]; do
    [[ $now == "$before" ]] || say "$TPU: $now"
    before=$now
    sleep "$POLL"
  done
  [[ $now == READY ]] || fail "$TPU is $now"
}
