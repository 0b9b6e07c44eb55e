#!/usr/bin/env bash
# The quick gate. Prints only what is wrong, and the time at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
begun=$SECONDS
go=${GO:-go}
unformatted=$(gofmt -l cmd internal test)
[ -z "$unformatted" ] || { echo "not formatted (gofmt -w):"; echo "$unformatted"; exit 1; }
$go vet ./...
$go tool -modfile=tools/go.mod staticcheck ./...
$go test -short -timeout 5m ./cmd/... ./internal/...
echo "check: ok in $((SECONDS - begun)) s"
