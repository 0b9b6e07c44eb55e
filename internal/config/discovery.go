// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/nameserver"
	"redoubt/internal/topo"
)

// DNS is the face that answers DNS for one zone.
type DNS struct {
	Listen string        `yaml:"listen"` // UDP and TCP; empty: none
	Zone   string        `yaml:"zone"`
	TTL    topo.Duration `yaml:"ttl"`
}

// Consul is the agent that services are announced to.
type Consul struct {
	Address   string        `yaml:"address"` // of the agent beside this member; empty: nothing is announced
	Token     string        `yaml:"token"`
	TokenFile string        `yaml:"token-file"` // has the token, in place of Token
	TLS       StoreTLS      `yaml:"tls"`        // of an address with https://
	Service   string        `yaml:"service"`    // default: the deployment's name
	KeyPrefix string        `yaml:"key-prefix"` // of the topology's keys; empty: none
	TTL       topo.Duration `yaml:"ttl"`        // of the checks
}

// Secret is the token, read from its file where there is one.
func (c Consul) Secret() (string, error) { return secret(c.Token, c.TokenFile) }

// complete: relative files start at base.
func (c *Consul) complete(base string) {
	below(base, &c.TokenFile)
	c.TLS.complete(base)
}

// checkTTLLeast leaves the time to renew a check over a slow agent.
const checkTTLLeast = time.Second

func (c Config) validateConsul(f *findings) {
	if c.Consul.Address == "" {
		return
	}
	if u, err := url.Parse(c.Consul.Address); err != nil || !strings.Contains(c.Consul.Address, "://") {
		f.address("consul.address", c.Consul.Address, false)
	} else if u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		f.add("consul.address", "%q: write host:port, or a URL with http or https", c.Consul.Address)
	}
	if _, err := c.Consul.Secret(); err != nil {
		f.add("consul.token-file", "%v", err)
	}
	c.Consul.TLS.validate(f, "consul.tls")
	if c.Consul.TLS != (StoreTLS{}) && !strings.HasPrefix(c.Consul.Address, "https://") {
		f.add("consul.tls", "the address does not begin with https://")
	}
	if d := c.Consul.TTL.D(); d < checkTTLLeast || d > time.Minute {
		f.add("consul.ttl", "%s: use %s to 1m: what is published outlives a dead member for so long", d, checkTTLLeast)
	}
	if c.Consul.Service != "" {
		f.id("consul.service", c.Consul.Service)
	}
	if strings.HasPrefix(c.Consul.KeyPrefix, "/") || strings.HasSuffix(c.Consul.KeyPrefix, "/") {
		f.add("consul.key-prefix", "%q: write it without a slash at its ends", c.Consul.KeyPrefix)
	}
}

// Address is a floating address, which one healthy member with a proxy holds.
type Address struct {
	IP        string `yaml:"ip"`        // with the length of its network, like 10.0.0.100/24; empty: none
	Interface string `yaml:"interface"` // of this member
}

// Prefix is the address with the length of its network; invalid: there is none.
func (a Address) Prefix() (netip.Prefix, error) {
	if a.IP == "" {
		return netip.Prefix{}, nil
	}
	if ip, err := netip.ParseAddr(a.IP); err == nil {
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	return netip.ParsePrefix(a.IP)
}

func (c Config) validateAddress(f *findings) {
	if c.Address.IP == "" {
		return
	}
	p, err := c.Address.Prefix()
	if err != nil || !p.IsValid() || p.Addr().IsUnspecified() || p.Addr().IsMulticast() || p.Addr().IsLoopback() {
		f.add("address.ip", "%q: write an address of your network that no machine has, with the length of the network, for example 10.0.0.100/24", c.Address.IP)
	}
	if c.Address.Interface == "" || len(c.Address.Interface) > 15 {
		f.add("address.interface", "%q: write the name of the interface on this machine, for example eth0", c.Address.Interface)
	}
	host, _, err := net.SplitHostPort(c.Proxy.Listen)
	if ip := net.ParseIP(host); err != nil || host != "" && (ip == nil || !ip.IsUnspecified()) {
		f.add("address.ip", "needs a proxy that listens on all addresses of this machine: proxy.listen is %q, write for example 0.0.0.0:6379", c.Proxy.Listen)
	}
}

// Template is a file that is made from a template when the topology changes.
type Template struct {
	Source  string        `yaml:"source"`  // the template; relative to the file
	Target  string        `yaml:"target"`  // what is made of it; relative to the file
	Check   string        `yaml:"check"`   // shell command that judges a new text, $FILE
	Reload  string        `yaml:"reload"`  // shell command that loads the target, $FILE
	Mode    string        `yaml:"mode"`    // permissions of the target, in octal; default: those that it has, or 0644
	Timeout topo.Duration `yaml:"timeout"` // of each command
}

// The bounds of templates.
const (
	templatesMax    = 64
	commandTime     = topo.Duration(10 * time.Second)
	commandTimeMost = 10 * time.Minute
)

// Perm returns the permissions of the target; zero: as they are.
func (t Template) Perm() (fs.FileMode, error) {
	if t.Mode == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(t.Mode, 8, 16)
	if err == nil && (n > 0o777 || n == 0) {
		err = fmt.Errorf("%s: use 0001 to 0777", t.Mode)
	}
	return fs.FileMode(n), err
}

// completeDiscovery makes paths absolute.
func (c *Config) completeDiscovery(base string) {
	for i := range c.Templates {
		t := &c.Templates[i]
		for _, path := range []*string{&t.Source, &t.Target} {
			if *path != "" && !filepath.IsAbs(*path) {
				*path = filepath.Join(base, *path)
			}
		}
		t.Timeout = cmp.Or(t.Timeout, commandTime)
	}
}

func (c Config) validateTemplates(f *findings) {
	if len(c.Templates) > templatesMax {
		f.add("templates", "%d templates: use at most %d", len(c.Templates), templatesMax)
	}
	targets := map[string]string{}
	for i, t := range c.Templates {
		at := fmt.Sprintf("templates[%d]", i)
		switch _, err := os.Stat(t.Source); {
		case t.Source == "":
			f.add(at+".source", "is missing: the path of a template")
		case err != nil:
			f.add(at+".source", "cannot be read: %v", err)
		}
		if t.Target == "" {
			f.add(at+".target", "is missing: the path of the file to make")
		}
		if t.Target == t.Source && t.Target != "" {
			f.add(at+".target", "is the template itself")
		}
		f.unique(targets, at+".target", "target "+t.Target)
		if _, err := t.Perm(); err != nil {
			f.add(at+".mode", "%q: write permissions in octal, for example 0640", t.Mode)
		}
		if d := t.Timeout.D(); d < 0 || d > commandTimeMost {
			f.add(at+".timeout", "%s: use at most %s", d, commandTimeMost)
		}
	}
}

// ttlMost bounds how long a name may outlive what it stands for.
const ttlMost = 10 * time.Second

// validateDiscovery checks what makes the deployment found.
func (c Config) validateDiscovery(f *findings) {
	if c.DNS.Listen != "" {
		c.validateDNS(f)
	}
	c.validateTemplates(f)
	c.validateConsul(f)
	c.validateAddress(f)
}

func (c Config) validateDNS(f *findings) {
	f.address("dns.listen", c.DNS.Listen, true)
	zone := strings.TrimSuffix(c.DNS.Zone, ".")
	if len(zone) > 150 || !regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`).MatchString(zone) {
		f.add("dns.zone", "%q is no zone: write for example redis.example.com, at most 150 characters", c.DNS.Zone)
	}
	if d := c.DNS.TTL.D(); d < 0 || d > ttlMost || d%time.Second != 0 {
		f.add("dns.ttl", "%s: use whole seconds from 0s to %s: a name must not outlive its primary for longer", d, ttlMost)
	}
	if host, _, err := net.SplitHostPort(c.DNS.Listen); err == nil && net.ParseIP(host) == nil && host != "" {
		f.add("dns.listen", "%q: write an address, not a name: this is what answers names", c.DNS.Listen)
	}
	for i, d := range c.Deployments {
		shards, nodes := map[string]string{}, map[string]string{}
		for _, u := range d.Units() {
			at := fmt.Sprintf("deployments[%d]", i)
			if u.Shard != "" {
				f.sameLabel(shards, at+".shards", u.Shard)
			}
			for _, n := range u.Nodes {
				f.sameLabel(nodes, at, n.ID)
			}
		}
	}
}

// sameLabel refuses names that differ as ids and are the same in DNS.
func (f *findings) sameLabel(seen map[string]string, path, name string) {
	label := nameserver.Label(name)
	if first, ok := seen[label]; ok && first != name {
		f.add(path, "%q and %q are the same name in DNS (%s): rename one, or leave dns.listen out", first, name, label)
	}
	seen[label] = name
}
