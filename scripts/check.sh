#!/usr/bin/env bash
# The quick gate. Prints only what is wrong, and the time at the end. `check.sh style` is its part that `make test` leaves out.
set -euo pipefail
cd "$(dirname "$0")/.."
begun=$SECONDS
go=${GO:-go}
unformatted=$(gofmt -l .)
[ -z "$unformatted" ] || { echo "not formatted (gofmt -w):"; echo "$unformatted"; exit 1; }
$go tool -modfile=tools/go.mod staticcheck ./...
if [ "${1:-}" != style ]; then
  $go vet ./...
  $go test -short -parallel 4 -timeout 5m ./cmd/... ./internal/...
fi
echo "check: ok in $((SECONDS - begun)) s"
