// SPDX-License-Identifier: Apache-2.0

package route

// KeysMove is what a shard's proxy answers in place of a command that it will not send any more, because keys are about to become another shard's.
const KeysMove = "TRYAGAIN the command was not executed: keys are about to change their shard"
