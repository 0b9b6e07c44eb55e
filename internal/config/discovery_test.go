// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettingsOfDiscovery(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.tmpl"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{ // path of the one problem; empty: none
		{`dns: {listen: "10.0.0.1:53", zone: redis.example.com., ttl: 0s}`, ""},
		{`dns: {listen: "host:53"}`, "dns.listen"},
		{`dns: {listen: "10.0.0.1:53", zone: "a..b"}`, "dns.zone"},
		{`dns: {listen: "10.0.0.1:53", ttl: 1500ms}`, "dns.ttl"},
		{`dns: {listen: "10.0.0.1:53", ttl: 1m}`, "dns.ttl"},
		{`dns: {listen: "10.0.0.1:6379"}`, "dns.listen"}, // the proxy's port
		{`templates: [{source: a.tmpl, target: a, mode: 0640, timeout: 1s}]`, ""},
		{`templates: [{source: b.tmpl, target: a}]`, "templates[0].source"},
		{`templates: [{source: a.tmpl}]`, "templates[0].target"},
		{`templates: [{source: a.tmpl, target: a.tmpl}]`, "templates[0].target"},
		{`templates: [{source: a.tmpl, target: a}, {source: a.tmpl, target: a}]`, "templates[1].target"},
		{`templates: [{source: a.tmpl, target: a, mode: "9"}]`, "templates[0].mode"},
		{`templates: [{source: a.tmpl, target: a, timeout: 1h}]`, "templates[0].timeout"},
		{`consul: {address: "127.0.0.1:8500"}`, ""},
		{`consul: {address: "https://consul.example.com"}`, ""},
		{`consul: {address: "ftp://x"}`, "consul.address"},
		{`consul: {address: nowhere}`, "consul.address"},
		{`consul: {address: "127.0.0.1:8500", ttl: 100ms}`, "consul.ttl"},
		{`consul: {address: "127.0.0.1:8500", key-prefix: /a}`, "consul.key-prefix"},
		{`address: {ip: 10.0.0.100/24, interface: eth0}`, ""},
		{`address: {ip: "fd00::64", interface: eth0}`, ""},
		{`address: {ip: 10.0.0.100/24}`, "address.interface"},
		{`address: {ip: 127.0.0.1/8, interface: lo}`, "address.ip"},
		{`address: {ip: everywhere, interface: eth0}`, "address.ip"},
		{`api: {listen: "127.0.0.1:7379", checks-listen: "0.0.0.0:7379"}`, "api.checks-listen"},
	} {
		text := string(Sample)
		section, _, _ := strings.Cut(c.text, ":")
		lines := strings.Split(text, "\n")
		kept, skip := lines[:0:0], false
		for _, l := range lines { // the sample without that section
			if l != "" && !strings.HasPrefix(l, " ") {
				skip = strings.HasPrefix(l, section+":")
			}
			if !skip {
				kept = append(kept, l)
			}
		}
		_, err := Parse([]byte(strings.Join(kept, "\n")+"\n"+c.text+"\n"), "f", dir)
		switch ps, _ := err.(Problems); {
		case c.want == "" && err != nil, c.want != "" && (len(ps) != 1 || ps[0].Path != c.want):
			t.Errorf("%s: %v, want a problem at %q", c.text, err, c.want)
		}
	}
}

func TestNamesThatAreOneInDNSAreRefused(t *testing.T) {
	text := strings.ReplaceAll(string(Sample), "{id: n2, host: h2,", "{id: N1, host: h2,") + "\ndns: {listen: \"10.0.0.1:53\"}\n"
	text = strings.Replace(text, "\ndns:                         #", "\n#", 1)
	text = strings.Replace(text, "\n  # listen: \"\"               # for example 10.0.0.1:53", "\n#", 1)
	_, err := Parse([]byte(text), "f", "/")
	if err == nil || !strings.Contains(err.Error(), `"n1" and "N1" are the same name in DNS (n1)`) && !strings.Contains(err.Error(), `"N1" and "n1"`) {
		t.Errorf("error %v", err)
	}
}
