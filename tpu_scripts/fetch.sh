#!/usr/bin/env bash
# Copy the results of a run here: report, tables, regions, metrics; with --all also scores, checkpoints, resume points.
#
#   PROJECT=... ZONE=... TPU=regions WORKDIR=/mnt/lingregions/core tpu_scripts/fetch.sh [--all] [--dry-run] FOLDER
#
# FOLDER is made; what is in it of an earlier fetch is renewed. Settings: common.sh.
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

folder="" exclude=" --exclude=./scores --exclude=./checkpoints --exclude=./resume"
for word in "$@"; do
  case $word in
    --all) exclude="" ;;
    --dry-run) DRY_RUN=1 ;;
    -h | --help) usage ;;
    -*) fail "there is no option $word; see --help" ;;
    *) folder=$word ;;
  esac
done
locate
need WORKDIR "the work directory on the workers"
[[ -n $folder ]] || fail "where to? Give a folder"
archive=$(mktemp -d)/results.tar
trap 'rm -rf "$(dirname "$archive")"' EXIT
remote 0 "tar -C $(quote "$WORKDIR")$exclude -cf /tmp/lingregions-results.tar ."
call gcloud compute tpus tpu-vm scp "$TPU":/tmp/lingregions-results.tar "$archive" "${where[@]}" --worker=0
remote 0 "rm /tmp/lingregions-results.tar"
call mkdir -p "$folder"
call tar -C "$folder" -xf "$archive"
