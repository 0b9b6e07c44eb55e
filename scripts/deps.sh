#!/usr/bin/env bash
# Installs what is missing, quietly, and does nothing when everything is there.
#   deps.sh server    a redis-server (or valkey-server)
#   deps.sh stores    an etcd
#   deps.sh chaos     also ip, iptables, mkfs.ext4
#   deps.sh clients   also redis-cli, python3 with redis, node with ioredis, dig
#   deps.sh matrix    also PHP, Ruby, Sidekiq, Celery and all Node packages of test/clients
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
[ "$what" != server ] || exit 0

if [ "$what" = stores ]; then
  command -v etcd >/dev/null && exit 0
  echo "installing etcd-server ..." >&2
  install etcd-server
  # Its package starts one of its own on 2379; tests start theirs elsewhere.
  if command -v systemctl >/dev/null && systemctl is-active --quiet etcd 2>/dev/null; then
    $sudo systemctl disable --now --quiet etcd || true
  fi
  exit 0
fi
command -v ip >/dev/null || { echo "installing iproute2 ..." >&2; install iproute2; }
command -v iptables >/dev/null || { echo "installing iptables ..." >&2; install iptables; }
[ "$what" != chaos ] || command -v mkfs.ext4 >/dev/null || { echo "installing e2fsprogs ..." >&2; install e2fsprogs; }
[ "$what" = clients ] || [ "$what" = matrix ] || exit 0

command -v redis-cli >/dev/null || { echo "installing redis-cli ..." >&2; install redis-tools; }
py=/usr/bin/python3
if ! "$py" -c 'import redis' 2>/dev/null; then
  echo "installing python3-redis ..." >&2
  install python3 python3-redis
fi
if command -v npm >/dev/null && ! (cd test/clients && node -e 'for (const p of Object.keys(require("./package.json").dependencies)) require.resolve(p)') 2>/dev/null; then
  echo "installing the Node packages of test/clients ..." >&2
  # npm 11 refuses a lock file of its own that lacks optional packages of other platforms; install takes it.
  (cd test/clients && { npm ci --silent --no-audit --no-fund || npm install --silent --no-save --no-audit --no-fund; } >/dev/null 2>&1)
fi
command -v dig >/dev/null || { echo "installing dig ..." >&2; install dnsutils || echo "without dig a test of DNS is left out" >&2; }
[ "$what" = matrix ] || exit 0

# lacks CHECK PACKAGE…: installs the packages if the check fails. Their names are Debian's and Ubuntu's.
lacks() {
  bash -c "$1" >/dev/null 2>&1 && return 0
  shift
  echo "installing $* ..." >&2
  install "$@"
}
command -v npm >/dev/null || echo "without node and npm, ioredis, node-redis, BullMQ and express are left out" >&2
lacks 'php -r "exit(extension_loaded(\"redis\") ? 0 : 1);"' php-cli php-redis
lacks 'ruby -e "require %q(redis)"' ruby ruby-redis
lacks 'command -v sidekiq' ruby-sidekiq
lacks "$py -c 'import celery'" celery python3-celery
