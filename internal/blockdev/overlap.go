package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

// overlaps says whether two devices with these spans share bytes. Known stretches are compared; an
// unknown one shares bytes with a device that is the whole node. Two unknown ones are siblings (two
// logical volumes on one disk, two files on one file system) and share nothing.
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

// spans is what a device or file of this size lies on, itself first: partition on disk, loop on
// file, device-mapper and md on their members, file on the device of its file system.
func (t tree) spans(st sys.Stat, size int64) []span {
	c := climb{tree: t}
	c.from(st, span{first: 0, end: size, exact: true, self: true}, levels)
	return c.found
}

// climb goes down from a device to all that it lies on, and notes the spans.
type climb struct {
	tree
	found []span
}

func (c *climb) from(st sys.Stat, s span, levels int) {
	if levels == 0 {
		return
	}
	if st.IsBlock() {
		c.block(st.Rdev, s, levels)
		return
	}
	s.node = fmt.Sprintf("file %s inode %d", devName(st.Dev), st.Inode)
	c.found = append(c.found, s)
	if dev, ok := c.fsDevice(st.Dev); ok {
		c.block(dev, span{}, levels-1)
	}
}

// block adds the block device and goes on with what it lies on.
func (c *climb) block(rdev uint64, s span, levels int) {
	s.node = "block " + devName(rdev)
	c.found = append(c.found, s)
	dir := c.dir(rdev)
	if dir == "" || levels == 0 || isLayer(dir) {
		return
	}
	if id := diskName(dir); id != "" {
		s.node = "disk " + id
		c.found = append(c.found, s)
	}
	s.self = false
	if isPartition(dir) {
		c.partition(dir, s, levels-1)
	} else if st, err := c.backing(dir); err == nil {
		c.from(st, s.shift(number(dir, "loop", "offset")), levels-1)
	} else {
		c.slaves(rdev, s, levels-1)
	}
}

// isLayer says that a device is the layer of a clone that is not finished (package dm). Like the
// clone's block device it lies on nothing: that extents of it may lead to the destination is
// between the two, and no other device has bytes in common with it.
func isLayer(dir string) bool {
	uuid, ours := strings.CutPrefix(text(dir, "dm", "uuid"), "UBLK-CLONE-")
	over, _ := filepath.Glob(filepath.Join(dir, "slaves", "ublkb*"))
	return ours && !strings.HasPrefix(uuid, "DEST-") && len(over) > 0
}

func (c *climb) partition(dir string, s span, levels int) {
	if disk, ok := parseDev(text(filepath.Dir(dir), "dev")); ok {
		c.block(disk, s.shift(number(dir, "start")*512), levels)
	}
}

// slaves: where a table is linear throughout it is known on which stretches of which devices s
// lies, so that two logical volumes on one disk can be told from two that share bytes of it.
func (c *climb) slaves(rdev uint64, s span, levels int) {
	if pieces, ok := c.linear(rdev, s); ok {
		for _, p := range pieces {
			c.block(p.dev, p.span, levels)
		}
		return
	}
	for _, dev := range slaves(c.dir(rdev)) {
		c.block(dev, span{}, levels)
	}
}

// piece is a stretch of a device that a device-mapper device leads to.
type piece struct {
	dev  uint64
	span span
}

// linear are the pieces that a known stretch of a device-mapper device with a linear table lies on.
func (t tree) linear(rdev uint64, s span) (pieces []piece, ok bool) {
	if !s.exact || t.targets == nil || text(t.dir(rdev), "dm", "name") == "" {
		return nil, false
	}
	table, err := t.targets(rdev)
	if err != nil || len(table) == 0 {
		return nil, false
	}
	for _, target := range table {
		if target.Type == "error" || target.Type == "zero" {
			continue
		}
		word, begin, _ := strings.Cut(target.Params, " ")
		dev, isNumber := parseDev(word)
		at, err := strconv.ParseInt(begin, 10, 64)
		if target.Type != "linear" || !isNumber || err != nil {
			return nil, false
		}
		first, end := int64(target.Start)*512, int64(target.Start+target.Sectors)*512
		part := span{first: max(s.first, first), end: min(s.end, end), exact: true}
		if part.first < part.end {
			pieces = append(pieces, piece{dev, part.shift(at*512 - first)})
		}
	}
	return pieces, true
}

// shift is the same stretch seen from the device below, on which it begins at off bytes.
func (s span) shift(off int64) span {
	s.first, s.end = s.first+off, s.end+off
	return s
}

// backing is the file or device behind a loop device, given its sysfs directory. The driver knows
// it, whatever its name leads to by now.
func (t tree) backing(dir string) (sys.Stat, error) {
	path := text(dir, "loop", "backing_file")
	if path == "" {
		return sys.Stat{}, os.ErrNotExist
	}
	named, err := t.stat(path)
	if t.loop == nil {
		return named, err
	}
	known, errKnown := t.loop(nodePath(dir))
	if errKnown != nil || err == nil && objectOf(known).is(named) {
		return named, err
	}
	return known, nil
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
func (t tree) shared(a, b node) string {
	return shared(t.spans(a.stat, a.size), t.spans(b.stat, b.size))
}

func shared(a, b []span) string {
	for _, x := range a {
		for _, y := range b {
			if x.overlaps(y) {
				return x.node
			}
		}
	}
	return ""
}

// apart refuses, with exit code 14 whatever the flags, a device that shares bytes with one of the
// others, directly or through partitions, loop devices and device-mapper.
func (t tree) apart(n node, others []*Device) error {
	for _, other := range others {
		node := t.shared(n, other.node)
		if node == "" {
			continue
		}
		return &exit.Error{
			Code: exit.Refused, Doing: fmt.Sprintf("use %s %s as the %s and", other.role, other.path, n.role), Object: n.path,
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
