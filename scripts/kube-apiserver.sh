#!/usr/bin/env bash
# Builds the real API server of Kubernetes, for tests, into the user's cache, and prints where it is. Once: about 6 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../tools/kube-apiserver"
version=$(awk '$1 == "k8s.io/kubernetes" {print $2}' go.mod)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/redoubt
bin=$dir/kube-apiserver-$version
if [ ! -x "$bin" ]; then
  mkdir -p "$dir"
  echo "building kube-apiserver $version, once ..." >&2
  minor=${version#v1.}
  stamp=k8s.io/component-base/version
  ${GO:-go} build -o "$bin.new" -ldflags "-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=${minor%%.*}" k8s.io/kubernetes/cmd/kube-apiserver
  mv "$bin.new" "$bin"
fi
command -v etcd >/dev/null || echo "tests with it need etcd, too: install etcd-server" >&2
echo "$bin"
