// SPDX-License-Identifier: Apache-2.0

//go:build race

package front

func init() { raced = true }
