// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"redoubt/internal/topo"
)

// promise is the highest epoch that this node has promised to: on disk before anybody hears of it (SAFETY A6). The file
// is replaced atomically and carries a checksum; a damaged one is an error, because forgetting a promise loses writes.
type promise struct {
	path  string
	epoch topo.Epoch
}

type promiseFile struct {
	Epoch topo.Epoch `json:"epoch"`
	CRC   uint32     `json:"crc"`
}

func openPromise(dir string) (*promise, error) {
	p := &promise{path: filepath.Join(dir, "promise.json")}
	b, err := os.ReadFile(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the promise: %w", err)
	}
	var f promiseFile
	if err := json.Unmarshal(b, &f); err != nil || f.CRC != crcOf(f.Epoch) {
		return nil, fmt.Errorf("%s is damaged: this node may have promised an epoch that it has forgotten; remove the node from the deployment and add it again as a new one", p.path)
	}
	p.epoch = f.Epoch
	return p, nil
}

func crcOf(e topo.Epoch) uint32 { return crc32.ChecksumIEEE(fmt.Appendf(nil, "redoubt promise %d", e)) }

// keep writes the promise and returns when it is on disk.
func (p *promise) keep(e topo.Epoch) error {
	if e <= p.epoch {
		return nil
	}
	b, err := json.Marshal(promiseFile{Epoch: e, CRC: crcOf(e)})
	if err != nil {
		return err
	}
	if err := replaceFile(p.path, b); err != nil {
		return fmt.Errorf("keep the promise of epoch %d: %w", e, err)
	}
	p.epoch = e
	return nil
}

func replaceFile(path string, b []byte) error {
	tmp, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
