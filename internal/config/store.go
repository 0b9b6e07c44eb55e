// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The kinds of stores.
const (
	StoreRaft       = "raft"       // the members themselves
	StoreEtcd       = "etcd"       // an etcd of version 3.4 or later
	StoreConsul     = "consul"     // a Consul of version 1.10 or later
	StoreKubernetes = "kubernetes" // the API server that section kubernetes names
)

// Store is where the agreed state lives.
type Store struct {
	Kind    string        `yaml:"kind"`    // "raft", "etcd", "consul" or "kubernetes"
	Listen  string        `yaml:"listen"`  // raft: default: this member's own address in Members; else 0.0.0.0:7380
	Members []StoreMember `yaml:"members"` // raft: the first members, the same list on each of them
	Join    string        `yaml:"join"`    // raft, or: any present member's address

	Endpoints []string `yaml:"endpoints"` // etcd, consul: URLs
	Prefix    string   `yaml:"prefix"`    // all but raft: of all keys; the deployment's name follows
	Username  string   `yaml:"username"`  // etcd
	Password  string   `yaml:"password"`  // etcd
	Token     string   `yaml:"token"`     // consul
	TLS       StoreTLS `yaml:"tls"`       // etcd, consul

	PasswordFile string `yaml:"password-file"` // etcd: has the password, in place of Password
	TokenFile    string `yaml:"token-file"`    // consul: has the token, in place of Token
}

// StoreTLS is how endpoints with https are spoken to.
type StoreTLS struct {
	CA         string `yaml:"ca"`          // file of the authorities that are trusted; empty: the system's
	Cert       string `yaml:"cert"`        // file of this member's own certificate; empty: none
	Key        string `yaml:"key"`         // file of its key
	ServerName string `yaml:"server-name"` // in the endpoints' certificates; empty: the host of the URL
}

// StoreMember is one of the store's first members.
type StoreMember struct {
	ID   string `yaml:"id"`
	Addr string `yaml:"addr"`
}

// Outside reports whether other processes than the members keep the agreed state.
func (s Store) Outside() bool {
	return s.Kind == StoreEtcd || s.Kind == StoreConsul || s.Kind == StoreKubernetes
}

// Root is where all keys of a deployment are, without slashes around.
func (s Store) Root(deployment string) string { return strings.Trim(s.Prefix, "/") + "/" + deployment }

// Config reads the files; nil when nothing is set.
func (t StoreTLS) Config() (*tls.Config, error) {
	if t == (StoreTLS{}) {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s has no certificate in PEM form", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("cert and key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// complete fills in what follows from other settings. Relative files start at base.
func (s *Store) complete(base, member string) {
	if s.Listen == "" && s.Outside() {
		s.Listen = "0.0.0.0:7380"
	}
	if s.Listen == "" {
		for _, m := range s.Members {
			if m.ID == member {
				s.Listen = m.Addr
			}
		}
	}
	s.TLS.complete(base)
	below(base, &s.PasswordFile, &s.TokenFile)
}

func (t *StoreTLS) complete(base string) { below(base, &t.CA, &t.Cert, &t.Key) }

// below lets relative files start at base.
func below(base string, files ...*string) {
	for _, file := range files {
		if *file != "" && !filepath.IsAbs(*file) {
			*file = filepath.Join(base, *file)
		}
	}
}

// Secrets are the password and the token, read from their files where there are files.
func (s Store) Secrets() (password, token string, err error) {
	if password, err = secret(s.Password, s.PasswordFile); err != nil {
		return "", "", fmt.Errorf("store.password-file: %w", err)
	}
	if token, err = secret(s.Token, s.TokenFile); err != nil {
		return "", "", fmt.Errorf("store.token-file: %w", err)
	}
	return password, token, nil
}

// secretMax bounds what is read of a secret's file.
const secretMax = 4096

// secret is a value, or what its file has in its first line.
func secret(value, file string) (string, error) {
	if file == "" {
		return value, nil
	}
	if value != "" {
		return "", errors.New("is given as a value, too: write one of them")
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, secretMax))
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	return line, nil
}

// validateOutside checks what only a store outside has.
func (s Store) validateOutside(f *findings) {
	if s.Kind == StoreKubernetes && (len(s.Endpoints) > 0 || s.TLS != (StoreTLS{})) {
		f.add("store.endpoints", "endpoints and tls are for etcd and consul: section kubernetes says where the API server is")
	}
	if len(s.Endpoints) == 0 && s.Kind != StoreKubernetes {
		f.add("store.endpoints", "is missing: write for example [http://10.0.0.1:%d]", map[string]int{StoreEtcd: 2379, StoreConsul: 8500}[s.Kind])
	}
	seen, secure := map[string]string{}, false
	for i, e := range s.Endpoints {
		path := fmt.Sprintf("store.endpoints[%d]", i)
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || u.Port() == "" || u.Hostname() == "" || u.Path != "" || u.User != nil || !slices.Contains([]string{"http", "https"}, u.Scheme) {
			f.add(path, "%q: write http:// or https://, host and port, and nothing more", e)
			continue
		}
		f.unique(seen, path, "endpoint "+e)
		secure = secure || u.Scheme == "https"
	}
	if strings.Trim(s.Prefix, "/") == "" {
		f.add("store.prefix", "is empty: the keys would lie among those of others")
	}
	if len(s.Members) > 0 || s.Join != "" {
		f.add("store", "members and join are for kind: raft; with %s each member that starts is one of them", s.Kind)
	}
	if s.Kind != StoreEtcd && s.Username+s.Password+s.PasswordFile != "" {
		f.add("store.username", "username and password are for etcd: use token")
	}
	if s.Kind != StoreConsul && s.Token+s.TokenFile != "" {
		f.add("store.token", "is for consul: use username and password")
	}
	if (s.Username == "") != (s.Password+s.PasswordFile == "") {
		f.add("store.username", "username and password, or password-file, belong together")
	}
	if _, _, err := s.Secrets(); err != nil {
		f.add("store", "%v", err)
	}
	s.TLS.validate(f, "store.tls")
	if s.TLS != (StoreTLS{}) && !secure && s.Kind != StoreKubernetes {
		f.add("store.tls", "no endpoint begins with https://")
	}
}

func (t StoreTLS) validate(f *findings, path string) {
	if (t.Cert == "") != (t.Key == "") {
		f.add(path+".cert", "cert and key belong together")
	} else if _, err := t.Config(); err != nil {
		f.add(path, "%v", err)
	}
}

// ParseStoreURL reads etcd://host:port,host:port/prefix, and its like with etcds, consul and consuls for TLS. Files with secrets and
// certificates, and the name of a user, follow as ?username=…&password-file=…&token-file=…&ca=…&cert=…&key=…&server-name=….
func ParseStoreURL(text string) (Store, error) {
	if strings.HasPrefix(text, StoreKubernetes+"://") {
		s, _, err := ParseKubernetesURL(text)
		return s, err
	}
	scheme, rest, ok := strings.Cut(text, "://")
	kind, secure := strings.CutSuffix(scheme, "s")
	s := Store{Kind: kind}
	if !ok || !s.Outside() || s.Kind == StoreKubernetes {
		return Store{}, fmt.Errorf("%q: write etcd://host:port, consul://host:port, or several of them as host:port,host:port; etcds and consuls for TLS", text)
	}
	rest, query, _ := strings.Cut(rest, "?")
	if err := s.parseQuery(query); err != nil {
		return Store{}, fmt.Errorf("%q: %w", text, err)
	}
	hosts, prefix, _ := strings.Cut(rest, "/")
	s.Prefix = strings.Trim(prefix, "/")
	for _, h := range strings.Split(hosts, ",") {
		s.Endpoints = append(s.Endpoints, map[bool]string{true: "https://", false: "http://"}[secure]+h)
	}
	return s, nil
}

func (s *Store) parseQuery(query string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return err
	}
	files := map[string]*string{"password-file": &s.PasswordFile, "token-file": &s.TokenFile, "ca": &s.TLS.CA, "cert": &s.TLS.Cert, "key": &s.TLS.Key}
	words := map[string]*string{"username": &s.Username, "server-name": &s.TLS.ServerName}
	for name, v := range values {
		to := cmp.Or(files[name], words[name])
		switch {
		case to == nil || len(v) != 1:
			return fmt.Errorf("%s is not known, or there more than once: write username, password-file, token-file, ca, cert, key and server-name", name)
		case files[name] != nil && !filepath.IsAbs(v[0]):
			return fmt.Errorf("%s=%s: write the whole path", name, v[0])
		}
		*to = v[0]
	}
	return nil
}
