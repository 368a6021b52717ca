package blockdev

import (
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Users that no process shows. Before 7.0 the driver cannot stop a device only if nobody uses it,
// so the kernel is asked in other ways. An exclusive open tells of mounts, device-mapper, swap and
// LIO, wherever they are. Who opens a device without claiming it and has no descriptor in /proc (a
// descriptor on its way through a socket, one that only an io_uring holds, a target in the kernel)
// is found by counting:
//
//	each open of ublkbN, of ublkcN and of ublk-control takes a reference of the module (bdev_open, block/bdev.c,
//	chrdev_open, fs/char_dev.c, misc_open, drivers/char/misc.c, 6.12), and gives it back when the description is closed
//
// What is left when all that can be seen is taken off is somebody unknown. The count is of the
// driver and not of one device, so everything that other ublk devices can explain is taken off too,
// rather too much than too little.

// ublkName is the node of a ublk device, as the kernel and its servers call it.
var ublkName = regexp.MustCompile(`^ublk(b[0-9]+(p[0-9]+)?|c[0-9]+|-control)$`)

// HiddenUsers looks for users of a ublk block device that Holders does not find: those that it can
// name, and how many opens of ublk devices are left that nothing explains.
func HiddenUsers(path string) (named []Holder, unknown int) {
	count := func() int { return int(number(host.sys, "module", "ublk_drv", "refcnt")) } // 0: not a module, or none
	before := count()
	u, device := host.ublk(), filepath.Base(path)
	opens := u.uses()
	unknown = min(before, count()) - opens.seen()
	if unknown <= 0 {
		return nil, 0
	}
	for _, o := range u.withoutDescriptor(opens) {
		unknown--
		if o.name == device || strings.HasPrefix(o.name, device+"p") {
			named = append(named, Holder{Kind: "process", PID: o.pid, Command: text(u.proc, strconv.Itoa(o.pid), "comm")})
		}
	}
	return named, max(0, unknown)
}

// ublkDevices are all ublk block devices of the machine and their partitions.
type ublkDevices struct {
	tree
	numbers map[uint64]string // their names by number
}

// ublk looks for the ublk block devices and their partitions.
func (t tree) ublk() ublkDevices {
	numbers := map[uint64]string{}
	for _, pattern := range []string{"block/ublkb*/dev", "block/ublkb*/ublkb*/dev"} {
		found, _ := filepath.Glob(filepath.Join(t.sys, pattern))
		for _, path := range found {
			if dev, ok := parseDev(text(path)); ok {
				numbers[dev] = filepath.Base(filepath.Dir(path))
			}
		}
	}
	return ublkDevices{tree: t, numbers: numbers}
}

// ublkOpen is an open of a ublk device that a process shows.
type ublkOpen struct {
	name string
	pid  int
	fd   int
}

// ublkUse is what can be seen of the use of all ublk devices.
type ublkUse struct {
	opens  []ublkOpen // one for each open description
	kernel int        // by the kernel itself: mounts, swap, devices on top, targets
}

func (u ublkUse) seen() int { return len(u.opens) + u.kernel }

// has says whether a process has a descriptor of that device.
func (u ublkUse) has(pid int, name string) bool {
	for _, o := range u.opens {
		if o.pid == pid && o.name == name {
			return true
		}
	}
	return false
}

// uses is what can be seen of the use of all ublk devices.
func (u ublkDevices) uses() ublkUse {
	var all ublkUse
	for _, pid := range u.pids() {
		for _, o := range u.descriptors(pid) {
			if !isDuplicate(all.opens, o) {
				all.opens = append(all.opens, o)
			}
		}
	}
	all.kernel = u.mounted() + u.swapped() + u.onTop() + len(u.exportHolders(objectOfAll(u.numbers)))
	return all
}

// descriptors are a process's descriptors of ublk devices. A device that was deleted under its user
// is known by its name only, one with a node elsewhere by its number only.
func (u ublkDevices) descriptors(pid int) (all []ublkOpen) {
	found, _ := filepath.Glob(filepath.Join(u.proc, strconv.Itoa(pid), "fd", "*"))
	for _, path := range found {
		to := linkTarget(path)
		if !strings.HasPrefix(to, "/") {
			continue
		}
		name := ublkBase(to)
		if name == "" {
			st, err := u.stat(path)
			if err != nil || !st.IsBlock() || u.numbers[st.Rdev] == "" {
				continue
			}
			name = u.numbers[st.Rdev]
		}
		fd, _ := strconv.Atoi(filepath.Base(path))
		all = append(all, ublkOpen{name: name, pid: pid, fd: fd})
	}
	return all
}

func objectOfAll(numbers map[uint64]string) (u object) {
	for dev := range numbers {
		u.devs = append(u.devs, dev)
	}
	return u
}

// ublkBase is the name of the ublk device that a path leads to, "" if it is none.
func ublkBase(path string) string {
	name := filepath.Base(strings.TrimSuffix(path, " (deleted)"))
	if ublkName.MatchString(name) {
		return name
	}
	return ""
}

// isDuplicate says whether a descriptor leads to a description that was seen: a dup, or one that a
// child has inherited.
func isDuplicate(seen []ublkOpen, o ublkOpen) bool {
	for _, s := range seen {
		if s.name != o.name {
			continue
		}
		if same, err := sys.SameDescription(s.pid, s.fd, o.pid, o.fd); err == nil && same {
			return true
		}
	}
	return false
}

// mounted counts the file systems on ublk devices, in all mount namespaces that a process is in.
func (u ublkDevices) mounted() int {
	systems := map[uint64]bool{}
	for m := range u.allMounts() {
		if dev := mountedDev(m); u.numbers[dev] != "" || ublkBase(m.Source) != "" {
			systems[dev] = true
		}
	}
	return len(systems)
}

func (u ublkDevices) swapped() (n int) {
	for path := range u.swaps() {
		if ublkBase(path) != "" {
			n++
		}
	}
	return n
}

// onTop counts the devices that are made of ublk devices.
func (u ublkDevices) onTop() (n int) {
	for _, pattern := range []string{"block/ublkb*/holders/*", "block/ublkb*/ublkb*/holders/*"} {
		found, _ := filepath.Glob(filepath.Join(u.sys, pattern))
		n += len(found)
	}
	found, _ := filepath.Glob(filepath.Join(u.sys, "block/loop*/loop/backing_file"))
	for _, path := range found {
		if ublkBase(text(path)) != "" {
			n++
		}
	}
	return n
}

// withoutDescriptor are opens that a process holds without a descriptor: files that it has given to
// an io_uring (fdinfo of the ring lists their names), or mapped. A process that has a descriptor of
// the device as well is taken to mean the same open.
func (u ublkDevices) withoutDescriptor(seen ublkUse) (all []ublkOpen) {
	for _, pid := range u.pids() {
		names := map[string]bool{}
		dir := filepath.Join(u.proc, strconv.Itoa(pid))
		rings, _ := filepath.Glob(filepath.Join(dir, "fd", "*"))
		for _, fd := range rings {
			if strings.Contains(linkTarget(fd), "[io_uring]") {
				namesIn(names, text(dir, "fdinfo", filepath.Base(fd)))
			}
		}
		namesIn(names, text(dir, "maps"))
		for name := range names {
			if !seen.has(pid, name) {
				all = append(all, ublkOpen{name: name, pid: pid})
			}
		}
	}
	return all
}

// namesIn collects the ublk devices that the lines of a text end with.
func namesIn(names map[string]bool, lines string) {
	for line := range strings.Lines(lines) {
		line = strings.TrimSpace(line)
		if name := ublkBase(line[strings.LastIndexAny(line, " \t")+1:]); name != "" {
			names[name] = true
		}
	}
}
