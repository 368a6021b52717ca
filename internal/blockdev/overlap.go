package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// span is a stretch of a node of the device tree on which a device lies.
type span struct {
	node       string // "block 8:1", "file 8:1 inode 1234", "disk naa.5000..."
	first, end int64  // bytes, half open
	exact      bool   // first and end are known; false below device-mapper, md and file systems
	self       bool   // the node is the device itself
}

// overlaps says whether two devices with these spans share bytes. Known
// stretches are compared; an unknown one shares bytes with a device that is
// the whole node. Two unknown ones are siblings (two logical volumes on one
// disk, two files on one file system) and share nothing.
func (a span) overlaps(b span) bool {
	switch {
	case a.node != b.node:
		return false
	case a.exact && b.exact:
		return a.first < b.end && b.first < a.end
	}
	return a.self || b.self
}

// levels bounds the climb, should the tree have a circle.
const levels = 32

// spans is what a device or file of this size lies on, itself first: partition
// on disk, loop on file, device-mapper and md on their members, file on the
// device of its file system.
func (t tree) spans(st sys.Stat, size int64) []span {
	self := span{first: 0, end: size, exact: true, self: true}
	return t.climb(nil, st, self, levels)
}

func (t tree) climb(found []span, st sys.Stat, s span, levels int) []span {
	if levels == 0 {
		return found
	}
	if st.IsBlock() {
		return t.climbBlock(found, st.Rdev, s, levels)
	}
	s.node = fmt.Sprintf("file %s inode %d", devName(st.Dev), st.Inode)
	found = append(found, s)
	if dev, ok := t.fsDevice(st.Dev); ok {
		found = t.climbBlock(found, dev, span{}, levels-1)
	}
	return found
}

// climbBlock adds the block device and goes on with what it lies on.
func (t tree) climbBlock(found []span, rdev uint64, s span, levels int) []span {
	s.node = "block " + devName(rdev)
	found = append(found, s)
	dir := t.dir(rdev)
	if dir == "" || levels == 0 {
		return found
	}
	if id := diskName(dir); id != "" {
		s.node = "disk " + id
		found = append(found, s)
	}
	s.self = false
	if isPartition(dir) {
		return t.climbPartition(found, dir, s, levels-1)
	}
	if st, err := t.backing(dir); err == nil {
		s = s.shift(number(dir, "loop", "offset"))
		return t.climb(found, st, s, levels-1)
	}
	return t.climbSlaves(found, dir, levels-1)
}

func (t tree) climbPartition(found []span, dir string, s span, levels int) []span {
	disk, ok := parseDev(text(filepath.Dir(dir), "dev"))
	if !ok {
		return found
	}
	return t.climbBlock(found, disk, s.shift(number(dir, "start")*512), levels)
}

func (t tree) climbSlaves(found []span, dir string, levels int) []span {
	for _, dev := range slaves(dir) {
		found = t.climbBlock(found, dev, span{}, levels)
	}
	return found
}

// shift is the same stretch seen from the device below, on which it begins at
// off bytes.
func (s span) shift(off int64) span {
	s.first, s.end = s.first+off, s.end+off
	return s
}

// backing is the file or device behind a loop device, given its sysfs folder.
func (t tree) backing(dir string) (sys.Stat, error) {
	path := text(dir, "loop", "backing_file")
	if path == "" {
		return sys.Stat{}, os.ErrNotExist
	}
	return t.stat(path)
}

// fsDevice is the block device of a file system, given st_dev of a file on it.
// Where st_dev is anonymous (btrfs) the mount table names it.
func (t tree) fsDevice(dev uint64) (uint64, bool) {
	if sys.Major(dev) != 0 {
		return dev, true
	}
	for _, m := range t.mounts("self") {
		if sys.Mkdev(uint32(m.Major), uint32(m.Minor)) != dev || !strings.HasPrefix(m.Source, "/") {
			continue
		}
		if st, err := t.stat(m.Source); err == nil && st.IsBlock() {
			return st.Rdev, true
		}
	}
	return 0, false
}

// diskName is a name that two paths to one disk share, "" where the disk has
// none that is unique in the world (a "t10." name may be made up).
func diskName(dir string) string {
	for _, attr := range []string{"wwid", "device/wwid"} {
		id := text(dir, attr)
		for _, unique := range []string{"naa.", "eui.", "uuid."} {
			if strings.HasPrefix(id, unique) {
				return id
			}
		}
	}
	return ""
}

// shared is the node on which two devices overlap, "" if they do not.
func (t tree) shared(a, b *Device) string {
	spansB := t.spans(b.stat, b.size)
	for _, x := range t.spans(a.stat, a.size) {
		for _, y := range spansB {
			if x.overlaps(y) {
				return x.node
			}
		}
	}
	return ""
}

// apart refuses, with exit code 14 whatever the flags, a device that shares
// bytes with one of the others, directly or through partitions, loop devices
// and device-mapper.
func (t tree) apart(d *Device, others []*Device) error {
	for _, other := range others {
		node := t.shared(d, other)
		if node == "" {
			continue
		}
		return &exit.Error{
			Code: exit.Refused, Doing: fmt.Sprintf("use %s %s as the %s and", other.role, other.path, d.role), Object: d.path,
			Cause: errors.New("they overlap on " + node), Next: "Source, destination and metadata must be three different devices.",
		}
	}
	return nil
}

// pathSize is the size in bytes of what a path names, which is not open yet.
func (t tree) pathSize(st sys.Stat) int64 {
	if dir := t.dir(st.Rdev); st.IsBlock() && dir != "" {
		return number(dir, "size") * 512
	}
	return st.Size
}
