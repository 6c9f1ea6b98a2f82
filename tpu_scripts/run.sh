#!/usr/bin/env bash
# Run an experiment on all workers of a slice; running it again goes on in the same work directory.
#
#   PROJECT=... ZONE=... TPU=regions WORKDIR=/mnt/lingregions/core tpu_scripts/run.sh [--keep] [--spot] [--dry-run] -- \
#     --config=configs/core_removal.py:llama2_7b --config.model.source=/mnt/lingregions/Llama-2-7b-hf
#
# Words after -- go to `lingregions run`; --workdir and machine.distributed are added.
# --keep   until it is finished: a slice that was taken away is deleted, asked for again (TYPE, SPOT or --spot), set up,
#          and the run resumed; a run that fails RETRIES times (3) on a slice that is there ends this.
# Ends with the run's own code. Settings: common.sh.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=tpu_scripts/common.sh
source "$here/common.sh"

keep=0
while (($#)); do
  case $1 in
    --keep) keep=1 ;;
    --spot) SPOT=1 ;;
    --plain) PLAIN=1 ;;
    --dry-run) DRY_RUN=1 ;;
    -h | --help) usage ;;
    --) shift && break ;;
    *) fail "there is no option $1; words for the run itself come after --" ;;
  esac
  shift
done
locate
need WORKDIR "the work directory on the workers, such as $MOUNT/core"
[[ $WORKDIR == /* ]] || fail "\$WORKDIR is '$WORKDIR': a folder on the workers is needed, from the root; mount a bucket"
(($#)) || fail "nothing to run: give at least -- --config=configs/core_removal.py:llama2_7b"
[[ " $*" != *" --workdir"* ]] || fail "give the work directory as \$WORKDIR, not as --workdir"
if ((keep)); then
  need TYPE "accelerator type, to ask for the slice again"
  [[ -n ${NFS:-}${BUCKET:-} && $WORKDIR == "$MOUNT"/* ]] ||
    fail "--keep needs a work directory that outlives the slice: set \$NFS or \$BUCKET, and \$WORKDIR below $MOUNT"
fi
export DRY_RUN SPOT PLAIN MOUNT POLL

command="cd lingregions && exec .venv/bin/lingregions run \
$(quote "$@" --workdir="$WORKDIR" --config.machine.distributed=True)"

if ! ((keep)); then
  await
  remote all "$command"
  exit
fi

left=${RETRIES:-3}
while true; do
  case $(state) in
    READY)
      code=0
      remote all "$command" || code=$?
      if ((code == 0)); then exit 0; fi
      if ((code == 2)); then fail "the run cannot start (see above)"; fi
      sleep "$POLL" # the loss of a slice shows late
      if [[ $(state) == READY ]]; then
        left=$((left - 1))
        ((left > 0)) || fail "the run failed ${RETRIES:-3} times on a slice that is there; its last code is $code"
        say "the run ended with code $code, the slice is there: once more"
      fi
      ;;
    GONE)
      say "$TPU was taken away: asking for it again"
      "$here/delete.sh"
      ;;
    ABSENT)
      "$here/create.sh" --wait || { sleep "$POLL" && continue; }
      "$here/setup.sh" || sleep "$POLL"
      ;;
    *) sleep "$POLL" ;;
  esac
done
