package blockdev

import (
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Instance tells a device or file from every other of the same boot: two that are equal are of the
// same one. Another boot, or a device that was taken out and put in again, has another instance.
type Instance struct {
	Number uint64 // of a block device; of a file, that of its file system
	Disk   uint64 // sequence number of a disk (Documentation/ABI/stable/sysfs-block); inode of a file
	Birth  int64  // of a file, nanoseconds since 1970; 0: not known
	Tree   [16]byte
}

func (t tree) instance(st sys.Stat) Instance {
	sum := sha256.Sum256([]byte(t.describe(st, levels)))
	m := Instance{Number: st.Dev, Disk: st.Inode, Birth: st.Birth, Tree: [16]byte(sum[:])}
	if st.IsBlock() {
		m.Number, m.Disk, m.Birth = st.Rdev, uint64(number(diskOf(t.dir(st.Rdev)), "diskseq")), 0
	}
	return m
}

// describe names all that a device lies on. A device-mapper device that has got another table, or a
// loop device another file, is another device, though its number stays.
func (t tree) describe(st sys.Stat, levels int) string {
	if !st.IsBlock() {
		return fmt.Sprintf("file %s %d %d", devName(st.Dev), st.Inode, st.Birth)
	}
	dir := t.dir(st.Rdev)
	if dir == "" || levels == 0 {
		return devName(st.Rdev)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "block %s of disk %d from %d", devName(st.Rdev), number(diskOf(dir), "diskseq"), number(dir, "start"))
	if back, err := t.backing(dir); err == nil {
		fmt.Fprintf(&b, " at %d of (%s)", number(dir, "loop", "offset"), t.describe(back, levels-1))
	}
	if text(dir, "dm", "name") != "" && t.targets != nil {
		table, _ := t.targets(st.Rdev)
		fmt.Fprintf(&b, " %v", table)
	}
	for _, dev := range slaves(diskOf(dir)) {
		fmt.Fprintf(&b, " (%s)", t.describe(sys.BlockStat(dev), levels-1))
	}
	return b.String()
}
