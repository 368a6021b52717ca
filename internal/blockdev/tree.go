package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// tree is the kernel's own account of its devices and processes. Tests put a
// directory of their own in its place.
type tree struct {
	sys string // where sysfs is mounted
	processes
	// targets is the table of a device-mapper device; nil: nobody can be asked.
	targets func(rdev uint64) ([]sys.DMTarget, error)
	// loop is what lies behind a loop device; nil: nobody can be asked.
	loop func(path string) (sys.Stat, error)
	// claimed says whether somebody has a block device open exclusively.
	claimed func(path string) bool
}

var host = tree{sys: "/sys", processes: processes{proc: "/proc", stat: sys.StatPath}, targets: targets, loop: sys.LoopBacking, claimed: claimed}

// targets asks device-mapper.
func targets(rdev uint64) ([]sys.DMTarget, error) {
	dm, err := sys.OpenDM()
	if err != nil {
		return nil, err
	}
	defer dm.Close()
	return dm.Targets(rdev)
}

// claimed asks the kernel, which gives a device, its partitions and its disk to one at a time:
// mounts, swap, what lies on top and daemons alike.
func claimed(path string) bool {
	f, err := sys.Open(path, os.O_RDONLY|os.O_EXCL, 0)
	if err == nil {
		err = f.Close()
	}
	return errors.Is(err, syscall.EBUSY)
}

// dir is the sysfs directory of a block device, or "" if it has none.
func (t tree) dir(rdev uint64) string {
	link := filepath.Join(t.sys, "dev", "block", devName(rdev))
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return ""
	}
	return dir
}

// devName is a device number as sysfs writes it, MAJOR:MINOR.
func devName(dev uint64) string { return fmt.Sprintf("%d:%d", sys.Major(dev), sys.Minor(dev)) }

// NumberedPath gives the path of a block device that is named by its number,
// MAJOR:MINOR, as device-mapper does. A word of another form is no number.
func NumberedPath(role Role, word string) (path string, isNumber bool, err error) {
	return host.numberedPath(role, word)
}

func (t tree) numberedPath(role Role, word string) (path string, isNumber bool, err error) {
	dev, ok := parseDev(word)
	if !ok {
		return "", false, nil
	}
	dir := t.dir(dev)
	if dir == "" {
		return "", true, failure(role, role.code(), "find", word, errors.New("no block device has this number"), "`lsblk` shows the numbers.")
	}
	return nodePath(dir), true, nil
}

// nodePath is the path of the device that has this directory in sysfs.
func nodePath(dir string) string {
	name := filepath.Base(dir)
	for line := range strings.Lines(text(dir, "uevent")) {
		if node, found := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); found {
			name = node // the directory has '!' where the node has '/'
		}
	}
	return filepath.Join("/dev", name)
}

// parseDev reads MAJOR:MINOR.
func parseDev(s string) (uint64, bool) {
	major, minor, _ := strings.Cut(strings.TrimSpace(s), ":")
	a, errMajor := strconv.ParseUint(major, 10, 32)
	b, errMinor := strconv.ParseUint(minor, 10, 32)
	return sys.Mkdev(uint32(a), uint32(b)), errMajor == nil && errMinor == nil
}

// text is the content of an attribute without its newline, "" if there is none.
func text(elem ...string) string {
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(b), "\n")
}

// linkTarget is what a link says, "" if it is none.
func linkTarget(path string) string {
	to, err := os.Readlink(path)
	if err != nil {
		return ""
	}
	return to
}

// number is the content of an attribute as a number, 0 if there is none.
func number(elem ...string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(text(elem...)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// queue is an attribute of the queue of the device at dir, a number; a partition has its disk's.
func queue(dir, attribute string) int64 {
	return number(diskOf(dir), "queue", attribute)
}

// depth is how many requests each of the queues of a block device's hardware takes at a time
// (nr_requests), and how many queues there are. 0 is not known; it looks at most so many levels
// down.
func (t tree) depth(rdev uint64, levels int) (requests, queues int) {
	if levels == 0 {
		return 0, 0
	}
	dir := t.dir(rdev)
	for _, below := range slaves(diskOf(dir)) {
		if n, q := t.depth(below, levels-1); n > 0 && (requests == 0 || n*q < requests*queues) {
			requests, queues = n, q
		}
	}
	if requests > 0 {
		return requests, queues
	}
	hardware, _ := filepath.Glob(filepath.Join(diskOf(dir), "mq", "[0-9]*"))
	return int(queue(dir, "nr_requests")), max(1, len(hardware))
}

// slaves are the devices that the one at dir is made of.
func slaves(dir string) []uint64 {
	var devs []uint64
	found, _ := filepath.Glob(filepath.Join(dir, "slaves", "*", "dev"))
	for _, path := range found {
		if dev, ok := parseDev(text(path)); ok {
			devs = append(devs, dev)
		}
	}
	return devs
}

// diskOf is the sysfs directory of the disk that a partition is on, or of the device itself.
func diskOf(dir string) string {
	if isPartition(dir) {
		return filepath.Dir(dir)
	}
	return dir
}

// isPartition says whether a sysfs directory is that of a partition; its disk is the directory
// above.
func isPartition(dir string) bool { return text(dir, "partition") != "" }

// partitions are the device numbers of the partitions of the disk at dir.
func partitions(dir string) []uint64 {
	var devs []uint64
	found, _ := filepath.Glob(filepath.Join(dir, "*", "partition"))
	for _, p := range found {
		if dev, ok := parseDev(text(filepath.Dir(p), "dev")); ok {
			devs = append(devs, dev)
		}
	}
	return devs
}
