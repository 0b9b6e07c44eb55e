// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"
)

// checksPort is the second port, which takes no orders. A nil one does nothing.
type checksPort struct {
	ln   net.Listener
	http *http.Server
}

func (s *Server) openChecks() error {
	ln := s.o.ChecksListener
	if ln == nil {
		if s.o.ChecksListen == "" {
			return nil
		}
		var err error
		if ln, err = net.Listen("tcp", s.o.ChecksListen); err != nil {
			return fmt.Errorf("listen for checks on %s: %w", s.o.ChecksListen, err)
		}
	}
	s.checks = &checksPort{limit(ln, connectionsMax), &http.Server{
		Handler: s.ChecksHandler(), ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}}
	return nil
}

// run serves in a goroutine; what it returns ends that and waits for it.
func (c *checksPort) run(log *slog.Logger) (end func()) {
	if c == nil {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.http.Serve(c.ln); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the port for checks is closed", "err", err)
		}
	}()
	return func() { c.http.Close(); <-done }
}

// ChecksAddr returns where the port for load balancers and monitors is; empty without one.
func (s *Server) ChecksAddr() string {
	if s.checks == nil {
		return ""
	}
	return s.checks.ln.Addr().String()
}

// ChecksFile is File of that port.
func (s *Server) ChecksFile() (*os.File, error) {
	if s.checks == nil {
		return nil, errors.New("hand over the port for checks: there is none")
	}
	return fileOf(s.checks.ln)
}
