#!/usr/bin/env bash
# Put this checkout and its Python on all workers of a slice, and mount the disk they share.
#
#   PROJECT=... ZONE=... TPU=regions NFS=10.0.0.2:/share tpu_scripts/setup.sh [--dry-run]
#
# The committed state of the checkout is copied (no access to a repository is needed) to ~/lingregions, with the versions
# of requirements.lock in ~/lingregions/.venv. NFS or BUCKET is mounted at MOUNT; without either the slice must have one
# worker, and its results go when it goes. Running it again renews all of it. Settings: common.sh.
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
[[ -z ${NFS:-} || -z ${BUCKET:-} ]] || fail "\$NFS and \$BUCKET are both set: one disk can be mounted at $MOUNT"
[[ $MOUNT == /* ]] || fail "\$MOUNT is '$MOUNT': an absolute folder is needed"
[[ -z ${NFS:-} || $NFS == *:/* ]] || fail "\$NFS is '$NFS': it must be host:/share"
await

place=$(quote "$MOUNT")
mount="mountpoint -q $place || { sudo mkdir -p $place &&"
if [[ -n ${NFS:-} ]]; then
  share=$(quote "$NFS")
  mount+=" { command -v mount.nfs > /dev/null || sudo apt-get -qq install -y nfs-common; } &&"
  mount+=" sudo mount -t nfs $share $place && sudo chmod a+rwx $place; } || exit 1"
elif [[ -n ${BUCKET:-} ]]; then
  share=$(quote "${BUCKET#gs://}")
  # What one host writes the others must see: no cached metadata. Trees are finished by renaming a folder.
  mount+=" { command -v gcsfuse > /dev/null || { echo 'this image has no gcsfuse: install it' >&2; false; }; } &&"
  mount+=" sudo chown \"\$USER\" $place &&"
  mount+=" gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=100000 $share $place; } || exit 1"
else
  say "neither \$NFS nor \$BUCKET is set: fine for a slice of one worker, and its results go when it goes"
  mount=true
fi

archive=$(mktemp -d)/lingregions.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
say "copying the checkout"
call git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz --output="$archive" HEAD
call gcloud compute tpus tpu-vm scp "$archive" "$TPU":lingregions.tar.gz "${where[@]}" --worker=all
say "installing on all workers"
remote all "set -e; $mount; mkdir -p lingregions; tar -xzf lingregions.tar.gz -C lingregions; cd lingregions; \
sed -n '/^uv==/,/^#/p' requirements.lock | python3 -m pip install --quiet --user --require-hashes -r /dev/stdin; export PATH=\$HOME/.local/bin:\$PATH; \
test -x .venv/bin/python || uv venv --quiet --python 3.11 .venv; \
uv pip install --quiet --python .venv/bin/python -c requirements.lock -e '.[tpu,report]'; \
.venv/bin/lingregions --help > /dev/null"
