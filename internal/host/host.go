package host

import (
	"encoding/hex"
	"errors"
	"os"
	"strings"

	"github.com/ublk-clone/ublk-clone/metadata"
)

// Identities reads the machine's and the boot's.
func Identities() (machine, boot metadata.UUID, err error) {
	if machine, err = readUUID("/etc/machine-id"); errors.Is(err, os.ErrNotExist) {
		machine, err = metadata.UUID{}, nil // a machine without: all such are one
	}
	if err == nil {
		boot, err = readUUID("/proc/sys/kernel/random/boot_id")
	}
	return machine, boot, err
}

func readUUID(path string) (u metadata.UUID, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return u, err
	}
	digits := strings.ReplaceAll(strings.TrimSpace(string(b)), "-", "")
	if n, err := hex.Decode(u[:], []byte(digits[:min(len(digits), 2*len(u))])); err != nil || n != len(u) {
		return metadata.UUID{}, nil // "uninitialized", while the first boot is under way
	}
	return u, nil
}
