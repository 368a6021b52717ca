package blockdev

import (
	"crypto/sha256"
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

// Identity finds the identity: for a file its file system and inode, for a
// disk its WWID or serial number, for a partition its disk's and where it
// begins, for device-mapper and md their UUID, for a loop device that of what
// is behind it.
func (d *Device) Identity() (Identity, error) {
	id, err := d.identify()
	if err != nil {
		return Identity{}, d.fail("identify", err, "")
	}
	return Identity{ID: id, Size: d.size}, nil
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

// Birth is when the file was made, or the one behind a loop device, in
// nanoseconds since 1970; 0 where nobody knows. It tells a file from a later
// one with the same number.
func (d *Device) Birth() int64 {
	if !d.IsBlock() {
		return d.stat.Birth
	}
	if dir := host.dir(d.stat.Rdev); dir != "" {
		if st, err := host.backing(dir); err == nil {
			return st.Birth
		}
	}
	return 0
}

// ownName is what a disk, given its sysfs folder, says of itself.
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

// Fingerprint tells whether a source still has the content of last time. It is
// a sample: a source that is only ever read does not change in part.
type Fingerprint struct {
	Sample [sha256.Size]byte // SHA-256 of the first MiB, then the last
	Mtime  int64             // nanoseconds since 1970, of a file; else 0
}

// sample is how much of each end of the source goes into the fingerprint, in
// bytes.
const sample = 1 << 20

// Fingerprint reads the first and the last MiB, but for what direct I/O cannot
// read behind the last aligned byte.
func (d *Device) Fingerprint() (Fingerprint, error) {
	m, err := sys.Map(sample, false)
	if err != nil {
		return Fingerprint{}, d.fail("read", err, "")
	}
	defer m.Close()
	end := d.size - d.size%int64(d.Align())
	n := min(sample, end)
	sum := sha256.New()
	for _, off := range []int64{0, end - n} {
		p := m.Bytes()[:n]
		if err := sys.ReadFullAt(d.fd(), p, off); err != nil {
			return Fingerprint{}, d.fail("read", err, "Check the source device.")
		}
		sum.Write(p)
	}
	var f Fingerprint
	sum.Sum(f.Sample[:0])
	if !d.IsBlock() {
		f.Mtime = d.stat.Mtime
	}
	return f, nil
}
