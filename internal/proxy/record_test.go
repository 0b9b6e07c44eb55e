// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func fullRecord() *Record {
	return &Record{
		ID: 7, Readonly: true, AgeMS: 1234, IdleS: 5, DueS: 6, Proto: 3, DB: 9, Authed: true, User: "ann\xff", Pass: "pä\x00\xfess", Quiet: true, Skip: true,
		Multi: true, Poison: true, Lax: true, Maint: true, Told: 11, Name: "n", Lib: "l", LibVer: "1", Shown: "ann\xff", Last: "CLIENT", LastSub: "LIST", NoEvict: true, NoTouch: true,
		Far: netip.MustParseAddrPort("127.0.0.1:1234"), Door: "/x", SaidFar: netip.MustParseAddrPort("[::1]:5"), Preface: HeaderOptional, Begun: true,
		Wrote: 3, WroteAt: 99, Input: []byte("*1\r\n$4\r\nPI\x00\xff"),
		Own: &Own{
			Subs: [kinds][]octets{{"a", "b\xff"}, {"p*"}, nil}, Watch: true, Lost: true, Monitor: true, Tracking: [][]byte{[]byte("CLIENT"), []byte("TRACKING")}, Caching: "yes", DB: -1,
			Txn:      &Txn{Caching: "no", Log: [][]byte{[]byte("MULTI")}, DB: 2, Broken: true},
			Upstream: &Upstream{Epoch: 4, Node: "n1", Addr: "h:1", Process: "r", History: "h", RunID: "r2", ClientID: "8", Input: []byte("$5\r\n")},
		},
	}
}

func TestARecordSurvivesTheWay(t *testing.T) {
	want := fullRecord()
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestEveryFieldOfARecordIsTested: a field that fullRecord leaves out could be lost on the way unseen.
func TestEveryFieldOfARecordIsTested(t *testing.T) {
	for _, v := range []any{*fullRecord(), *fullRecord().Own, *fullRecord().Own.Txn, *fullRecord().Own.Upstream} {
		r := reflect.ValueOf(v)
		for i := range r.NumField() {
			if name := r.Type().Field(i).Name; r.Field(i).IsZero() && name != "Format" && name != "SaidOur" {
				t.Errorf("%s.%s is not set", r.Type().Name(), name)
			}
		}
	}
}

func TestARecordOfAnotherFormatIsRefused(t *testing.T) {
	b, err := fullRecord().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{
		"a later format":   bytes.Replace(b, []byte(`"format":2`), []byte(`"format":3`), 1),
		"no format":        bytes.Replace(b, []byte(`"format":2,`), nil, 1),
		"an unknown field": bytes.Replace(b, []byte(`"id":7`), []byte(`"id":7,"news":1`), 1),
		"no id":            bytes.Replace(b, []byte(`"id":7`), []byte(`"id":0`), 1),
		"protocol 4":       bytes.Replace(b, []byte(`"proto":3`), []byte(`"proto":4`), 1),
		"half of it":       b[:len(b)/2],
		"nothing":          nil,
	} {
		if bytes.Equal(bad, b) {
			t.Fatalf("%s: the record was not changed", what)
		}
		if r, err := DecodeRecord(bad); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %+v %v", what, r, err)
		}
	}
	_, err = DecodeRecord(bytes.Replace(b, []byte(`"format":2`), []byte(`"format":3`), 1))
	if err == nil || !strings.Contains(err.Error(), "it has format 3, this version knows 2") {
		t.Errorf("the message does not name the versions: %v", err)
	}
}
