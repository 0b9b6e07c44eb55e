#!/usr/bin/env bash
# Builds helm, for the manifests and their test, into the user's cache, and prints where it is. Once: some minutes.
set -euo pipefail
cd "$(dirname "$0")/../tools/helm"
version=$(awk '$1 == "helm.sh/helm/v3" {print $2}' go.mod)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/redoubt
bin=$dir/helm-$version
if [ ! -x "$bin" ]; then
  mkdir -p "$dir"
  echo "building helm $version, once ..." >&2
  CGO_ENABLED=0 ${GO:-go} build -o "$bin.new" -ldflags "-s -w" helm.sh/helm/v3/cmd/helm
  mv "$bin.new" "$bin"
fi
echo "$bin"
