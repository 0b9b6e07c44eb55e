// SPDX-License-Identifier: Apache-2.0

// Command redoubt keeps Redis and Valkey up. Everything is in internal/cli.
package main

import (
	"os"

	"redoubt/internal/cli"
)

func main() { os.Exit(cli.Main()) }
