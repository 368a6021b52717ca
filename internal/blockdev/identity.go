package blockdev

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Identity tells whether a device is the one of last time. ID never holds a
// name such as /dev/sdb, which the next boot may give to another disk; it is
// "" where a device has nothing to tell it by, and then the size alone counts.
type Identity struct {
	ID   string `json:"id"`
	Size int64  `json:"size"` // bytes
}

// Identity finds the identity: for a file its file system and inode, for a disk its WWID or serial
// number, for a partition its disk's and where it begins, for device-mapper and md their UUID, for
// a loop device that of what is behind it.
func (d *Device) Identity() (Identity, error) {
	if d.id == nil {
		id, err := d.identify()
		if err != nil {
			return Identity{}, d.fail("identify", err, "")
		}
		d.id = &id
	}
	return Identity{ID: *d.id, Size: d.size}, nil
}

func (d *Device) identify() (string, error) {
	if d.IsBlock() {
		return host.identifyBlock(d.stat.Rdev), nil
	}
	id, err := sys.FSID(d.fd())
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("file:%x:%d", id, d.stat.Inode), nil
}

func (t tree) identifyBlock(rdev uint64) string {
	dir := t.dir(rdev)
	if dir == "" {
		return ""
	}
	if isPartition(dir) {
		disk := ownName(filepath.Dir(dir))
		if disk == "" {
			return ""
		}
		return fmt.Sprintf("%s@%d", disk, number(dir, "start")*512)
	}
	if st, err := t.backing(dir); err == nil && !st.IsBlock() {
		return fmt.Sprintf("loop:%d@%d", st.Inode, number(dir, "loop", "offset"))
	}
	return ownName(dir)
}

// ownName is what a disk, given its sysfs directory, says of itself.
func ownName(dir string) string {
	for _, attr := range []struct{ kind, path string }{
		{"dm", "dm/uuid"}, {"md", "md/uuid"},
		{"wwid", "wwid"}, {"wwid", "device/wwid"},
		{"serial", "serial"}, {"serial", "device/serial"},
	} {
		if id := strings.Join(strings.Fields(text(dir, attr.path)), " "); id != "" {
			return attr.kind + ":" + id
		}
	}
	return ""
}
