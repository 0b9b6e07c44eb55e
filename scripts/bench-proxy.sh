#!/usr/bin/env bash
# Compares the proxy with others, from a clean machine on: installs what is missing, builds the comparison, runs it.
# Everything on the command line goes to it, see `bin/bench-proxy -h`. predixy is not packaged: the binary that
# PREDIXY names, or a predixy on PATH, takes part; without one it is left out, and the report says so.
set -euo pipefail
cd "$(dirname "$0")/.."

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo

install() {
  if command -v apt-get >/dev/null; then
    $sudo env DEBIAN_FRONTEND=noninteractive sh -c "apt-get update -qq && apt-get install -y -qq --no-install-recommends $1" >/dev/null 2>&1
  else
    false
  fi || echo "could not install $1 here; it is left out unless you install it" >&2
}

# peer PROGRAM PACKAGE: packages start a service of their own on its standard port; the comparison starts its own.
peer() {
  if ! command -v "$1" >/dev/null; then
    echo "installing $2 ..." >&2
    install "$2"
    if command -v systemctl >/dev/null && systemctl is-active --quiet "$2" 2>/dev/null; then
      $sudo systemctl disable --now --quiet "$2" || true
    fi
  fi
}

scripts/deps.sh server
command -v redis-benchmark >/dev/null || command -v valkey-benchmark >/dev/null || { echo "installing redis-benchmark ..." >&2; install redis-tools; }
peer nutcracker nutcracker
peer haproxy haproxy

mkdir -p bin
${GO:-go} -C bench build -trimpath -o ../bin/bench-proxy ./proxy
exec bin/bench-proxy "$@"
