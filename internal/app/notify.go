// SPDX-License-Identifier: Apache-2.0

package app

import (
	"log/slog"
	"net"
	"os"
)

// notify tells systemd (units of Type=notify) how this member is: READY=1, or MAINPID= of the process that took over.
func notify(log *slog.Logger, state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"}) // @ in front stands for an abstract name
	if err == nil {
		_, err = c.Write([]byte(state))
		_ = c.Close()
	}
	if err != nil {
		log.Warn("tell systemd", "state", state, "err", err)
	}
}
