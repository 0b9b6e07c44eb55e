#!/usr/bin/env bash
# Installs what is missing, quietly, and does nothing when everything is there.
#   deps.sh server    a redis-server (or valkey-server)
#   deps.sh clients   also redis-cli, python3 with redis, node with ioredis
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-server}

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo

install() {
  if command -v apt-get >/dev/null; then
    $sudo env DEBIAN_FRONTEND=noninteractive sh -c "apt-get update -qq && apt-get install -y -qq --no-install-recommends $*" >/dev/null 2>&1
  elif command -v dnf >/dev/null; then $sudo dnf install -y -q "$@" >/dev/null
  elif command -v apk >/dev/null; then $sudo apk add --quiet "$@" >/dev/null
  elif command -v pacman >/dev/null; then $sudo pacman -S --noconfirm --quiet "$@" >/dev/null
  elif command -v brew >/dev/null; then brew install --quiet "$@" >/dev/null
  else
    echo "Please install: $* (no known package manager here)" >&2
    exit 1
  fi
}

if ! command -v redis-server >/dev/null && ! command -v valkey-server >/dev/null; then
  echo "installing redis-server ..." >&2
  install redis-server
  # Packages start a server of their own on 6379; Redoubt starts its own, elsewhere.
  if command -v systemctl >/dev/null && systemctl is-active --quiet redis-server 2>/dev/null; then
    $sudo systemctl disable --now --quiet redis-server || true
  fi
fi
[ "$what" = clients ] || exit 0

command -v redis-cli >/dev/null || { echo "installing redis-cli ..." >&2; install redis-tools; }
command -v ip >/dev/null || { echo "installing iproute2 ..." >&2; install iproute2; }
command -v iptables >/dev/null || { echo "installing iptables ..." >&2; install iptables; }
py=/usr/bin/python3
if ! "$py" -c 'import redis' 2>/dev/null; then
  echo "installing python3-redis ..." >&2
  install python3 python3-redis
fi
if command -v npm >/dev/null && [ ! -d test/clients/node_modules/ioredis ]; then
  echo "installing ioredis ..." >&2
  (cd test/clients && npm ci --silent --no-audit --no-fund >/dev/null)
fi
