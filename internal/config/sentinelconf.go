// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strings"
)

// SentinelConf is what an adoption takes from a sentinel.conf: what a Sentinel does not tell.
type SentinelConf struct {
	RequirePass string
	Masters     map[string]SentinelMaster // by name
}

// SentinelMaster is one master of it.
type SentinelMaster struct {
	AuthPass, AuthUser     string
	Notification, Reconfig string // programs
}

// Scripts are the programs under the names that SENTINEL SET knows; nil: there are none.
func (m SentinelMaster) Scripts() map[string]string {
	s := map[string]string{}
	if m.Notification != "" {
		s["notification-script"] = m.Notification
	}
	if m.Reconfig != "" {
		s["client-reconfig-script"] = m.Reconfig
	}
	if len(s) == 0 {
		return nil
	}
	return s
}

// ParseSentinelConf reads a sentinel.conf. Lines that an adoption has no use for are passed over.
func ParseSentinelConf(data []byte, name string) (SentinelConf, error) {
	c := SentinelConf{Masters: map[string]SentinelMaster{}}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		words, err := confWords(line)
		if err != nil {
			return c, Problems{{File: name, Line: n, Text: err.Error()}}
		}
		if strings.EqualFold(words[0], "requirepass") && len(words) == 2 {
			c.RequirePass = words[1]
		}
		if !strings.EqualFold(words[0], "sentinel") || len(words) != 4 {
			continue
		}
		m := c.Masters[words[2]]
		switch strings.ToLower(words[1]) {
		case "auth-pass":
			m.AuthPass = words[3]
		case "auth-user":
			m.AuthUser = words[3]
		case "notification-script":
			m.Notification = words[3]
		case "client-reconfig-script":
			m.Reconfig = words[3]
		default:
			continue
		}
		c.Masters[words[2]] = m
	}
	return c, nil
}

// confWords splits a line of the servers' configuration: words, or texts in quotes.
func confWords(line string) ([]string, error) {
	var words []string
	for line = strings.TrimLeft(line, " \t"); line != ""; line = strings.TrimLeft(line, " \t") {
		quote := line[0]
		if quote != '"' && quote != '\'' {
			i := strings.IndexAny(line, " \t")
			if i < 0 {
				i = len(line)
			}
			words, line = append(words, line[:i]), line[i:]
			continue
		}
		var b strings.Builder
		i := 1
		for ; i < len(line) && line[i] != quote; i++ {
			if line[i] == '\\' && i+1 < len(line) && (quote == '"' || line[i+1] == quote) {
				i++
			}
			b.WriteByte(line[i])
		}
		if i >= len(line) {
			return nil, fmt.Errorf("a quote is not closed")
		}
		words, line = append(words, b.String()), line[i+1:]
	}
	return words, nil
}
