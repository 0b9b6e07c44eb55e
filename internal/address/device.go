// SPDX-License-Identifier: Apache-2.0

package address

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelTime is for how many seconds the kernel keeps an address that nobody renews: for a host on which both processes are stopped.
const kernelTime = 2

// realDevice is an interface of this machine.
type realDevice struct {
	link   netlink.Link
	addr   *netlink.Addr
	ip     netip.Addr
	mac    net.HardwareAddr
	socket int // for frames; -1: the interface has no neighbours (loopback)
}

func openDevice(name string, prefix netip.Prefix) (*realDevice, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	addr, err := netlink.ParseAddr(prefix.String())
	if err != nil {
		return nil, fmt.Errorf("address %s: %w", prefix, err)
	}
	addr.ValidLft, addr.PreferedLft = kernelTime, kernelTime
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // it has to work at once, and that nobody else has it is agreed
	}
	d := &realDevice{link: link, addr: addr, ip: prefix.Addr(), mac: link.Attrs().HardwareAddr, socket: -1}
	if len(d.mac) != 6 {
		return d, nil
	}
	if d.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open a socket for ARP and neighbour discovery: %w", err)
	}
	return d, nil
}

// Close closes the socket; the address stays as it is.
func (d *realDevice) Close() {
	if d.socket >= 0 {
		_ = unix.Close(d.socket)
	}
}

// Add implements device.
func (d *realDevice) Add() error {
	if err := netlink.AddrReplace(d.link, d.addr); err != nil {
		return fmt.Errorf("add %s to %s: %w", d.addr.IPNet, d.link.Attrs().Name, err)
	}
	return nil
}

// Remove implements device. An address that is not there is no error.
func (d *realDevice) Remove() error {
	if err := netlink.AddrDel(d.link, d.addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove %s from %s: %w", d.addr.IPNet, d.link.Attrs().Name, err)
	}
	return nil
}

// Announce implements device: it tells the neighbours where the address is now.
func (d *realDevice) Announce() error {
	if d.socket < 0 {
		return nil
	}
	frames := [][]byte{neighbourFrame(d.mac, d.ip)}
	if d.ip.Is4() {
		frames = [][]byte{arpFrame(d.mac, d.ip, 1), arpFrame(d.mac, d.ip, 2)} // some listen to requests, some to replies
	}
	for _, f := range frames {
		to := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(f[12:14]), Ifindex: d.link.Attrs().Index, Halen: 6}
		copy(to.Addr[:], f[:6])
		if err := unix.Sendto(d.socket, f, 0, to); err != nil {
			return fmt.Errorf("announce %s: %w", d.ip, err)
		}
	}
	return nil
}

// arpFrame is a gratuitous ARP request (1) or reply (2) for an address.
func arpFrame(mac net.HardwareAddr, ip netip.Addr, operation byte) []byte {
	at, everybody := ip.As4(), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	f := append(append([]byte{}, everybody...), mac...)
	f = append(f, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation)
	f = append(append(f, mac...), at[:]...)
	target := everybody
	if operation == 1 {
		target = make([]byte, 6)
	}
	return append(append(f, target...), at[:]...)
}

// neighbourFrame is an unsolicited neighbour advertisement, with the flag to override, to all nodes (RFC 4861).
func neighbourFrame(mac net.HardwareAddr, ip netip.Addr) []byte {
	from, all := ip.As16(), netip.MustParseAddr("ff02::1").As16()
	body := []byte{136, 0, 0, 0, 0x20, 0, 0, 0}
	body = append(body, from[:]...)
	body = append(append(body, 2, 1), mac...)
	var sum uint32
	for _, part := range [][]byte{from[:], all[:], {0, 0, 0, byte(len(body)), 0, 0, 0, 58}, body} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(body[2:], ^uint16(sum))
	f := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), 58, 255)
	f = append(append(f, from[:]...), all[:]...)
	return append(f, body...)
}
