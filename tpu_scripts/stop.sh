#!/usr/bin/env bash
# Ask the run on all workers to stop at its next safe point; what is finished is kept, run.sh goes on from there.
#
#   PROJECT=... ZONE=... TPU=regions tpu_scripts/stop.sh [--dry-run]
#
# Settings: common.sh.
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
# The bracket keeps the pattern from matching the shell that runs this.
remote all "pkill -TERM -f 'lingregions [r]un' || true"
