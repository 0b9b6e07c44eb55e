// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"net"
	"os"
	"strings"

	"redoubt/internal/proxy"
)

// Listening sockets on their way to another process, and there.

// copyPorts copies every listening socket, so that nobody is refused while neither process listens.
func (m *member) copyPorts(h *heir) error {
	add := func(name, addr string, f *os.File) {
		h.ports = append(h.ports, name+" "+addr)
		h.files = append(h.files, f)
	}
	if m.front != nil {
		f, err := m.front.File()
		if err != nil {
			return err
		}
		add("front", m.o.Config.Proxy.Listen, f)
	} else if p := m.units[0].proxy; p != nil {
		ports, err := p.Ports()
		if err != nil {
			return err
		}
		for _, p := range ports {
			add("proxy", p.Addr, p.File)
		}
	}
	if late := m.lateSentinel.Load(); late != nil {
		m.sentinel = late
	}
	for _, face := range []struct {
		name, addr string
		file       func() (*os.File, error)
		on         bool
	}{
		{"sentinel", m.o.Config.Sentinel.Listen, m.sentinel.File, m.sentinel != nil}, {"api", m.o.Config.API.Listen, m.api.File, m.api != nil},
		{"checks", m.o.Config.API.ChecksListen, m.api.ChecksFile, m.api != nil && m.o.Config.API.ChecksListen != ""},
	} {
		if !face.on {
			continue
		}
		f, err := face.file()
		if err != nil {
			return err
		}
		add(face.name, face.addr, f)
	}
	return nil
}

// inheritance are listening sockets that were open before.
type inheritance struct {
	ports []string // name and address, with a space between them
	files []*os.File
}

// of returns what was inherited under a name, with its addresses.
func (i inheritance) of(name string) []proxy.Port {
	var some []proxy.Port
	for n, p := range i.ports {
		if face, addr, _ := strings.Cut(p, " "); face == name && n < len(i.files) {
			some = append(some, proxy.Port{Addr: addr, File: i.files[n]})
		}
	}
	return some
}

// listener returns the inherited port of a face; nil: there is none at this address.
func (i inheritance) listener(name, addr string) (net.Listener, error) {
	for _, port := range i.of(name) {
		if port.Addr == addr {
			l, err := net.FileListener(port.File)
			if err != nil {
				return nil, fmt.Errorf("take over the port of the %s: %w", name, err)
			}
			return l, nil
		}
	}
	return nil, nil
}

func (i inheritance) close() {
	for _, f := range i.files {
		_ = f.Close()
	}
}
