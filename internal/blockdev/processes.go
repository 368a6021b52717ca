package blockdev

import (
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// processes is what procfs shows: processes, what they have mounted and open, and what is swap.
type processes struct {
	proc string // where procfs is mounted
	stat func(path string) (sys.Stat, error)
}

// pids are the processes, in ascending order.
func (p processes) pids() []int {
	entries, err := os.ReadDir(p.proc)
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// mounts are the mounts of one process's view.
func (p processes) mounts(pid string) []*mountinfo.Info {
	f, err := os.Open(filepath.Join(p.proc, pid, "mountinfo"))
	if err != nil {
		return nil
	}
	defer f.Close()
	return parseMounts(f)
}

func parseMounts(r io.Reader) []*mountinfo.Info {
	infos, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return nil
	}
	return infos
}

// mountedDev is the number of the device or file system that is mounted.
func mountedDev(m *mountinfo.Info) uint64 { return sys.Mkdev(uint32(m.Major), uint32(m.Minor)) }

// allMounts are the mounts of every mount namespace that a process is in.
func (p processes) allMounts() iter.Seq[*mountinfo.Info] {
	return func(yield func(*mountinfo.Info) bool) {
		seen := map[string]bool{}
		for _, pid := range p.pids() {
			name := strconv.Itoa(pid)
			ns := linkTarget(filepath.Join(p.proc, name, "ns", "mnt"))
			if ns == "" || seen[ns] {
				continue
			}
			seen[ns] = true
			for _, m := range p.mounts(name) {
				if !yield(m) {
					return
				}
			}
		}
	}
}

// swaps are the paths of what is used as swap.
func (p processes) swaps() iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range strings.Lines(text(p.proc, "swaps")) {
			path, _, _ := strings.Cut(line, " ")
			if strings.HasPrefix(path, "/") && !yield(path) {
				return
			}
		}
	}
}

// fsDevice is the block device of a file system, given st_dev of a file on it.
// Where st_dev is anonymous (btrfs) the mount table names it.
func (p processes) fsDevice(dev uint64) (uint64, bool) {
	if sys.Major(dev) != 0 {
		return dev, true
	}
	for _, m := range p.mounts("self") {
		if mountedDev(m) != dev || !strings.HasPrefix(m.Source, "/") {
			continue
		}
		if st, err := p.stat(m.Source); err == nil && st.IsBlock() {
			return st.Rdev, true
		}
	}
	return 0, false
}

// driver is the name under which /proc/devices has the major number of a device.
func (p processes) driver(disk uint64) string {
	major := strconv.FormatUint(uint64(sys.Major(disk)), 10)
	_, list, _ := strings.Cut(text(p.proc, "devices"), "Block devices:")
	for line := range strings.Lines(list) {
		if number, name, _ := strings.Cut(strings.TrimSpace(line), " "); number == major {
			return name
		}
	}
	return ""
}

// mountHolders looks through the mounts of every mount namespace once.
func (p processes) mountHolders(u object) []Holder {
	if len(u.devs) == 0 {
		return nil
	}
	var all []Holder
	for m := range p.allMounts() {
		h := Holder{Kind: "mount", Where: m.Mountpoint}
		if (slices.Contains(u.devs, mountedDev(m)) || p.mountedFrom(u, m.Source)) && !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	return all
}

// mountedFrom finds the mounts of file systems with device numbers of their
// own (btrfs) by the device that they name.
func (p processes) mountedFrom(u object, source string) bool {
	if !strings.HasPrefix(source, "/dev/") {
		return false
	}
	st, err := p.stat(source)
	return err == nil && u.is(st)
}

func (p processes) swapHolders(u object) []Holder {
	var all []Holder
	for path := range p.swaps() {
		if st, err := p.stat(path); err == nil && u.is(st) {
			all = append(all, Holder{Kind: "swap", Where: path})
		}
	}
	return all
}

// processHolders are the processes, other than this one, that have the device or file open.
func (p processes) processHolders(u object) []Holder {
	var all []Holder
	for _, pid := range p.pids() {
		if pid != os.Getpid() && p.hasOpen(pid, u) {
			command := text(p.proc, strconv.Itoa(pid), "comm")
			all = append(all, Holder{Kind: "process", PID: pid, Command: command})
		}
	}
	return all
}

func (p processes) hasOpen(pid int, u object) bool {
	dir := filepath.Join(p.proc, strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if st, err := p.stat(filepath.Join(dir, e.Name())); err == nil && u.is(st) {
			return true
		}
	}
	return false
}

// writers are the processes that have the device open to write to it.
func (p processes) writers(u object) (all []Holder) {
	for _, h := range p.processHolders(u) {
		if p.mayWrite(h.PID, u) {
			all = append(all, h)
		}
	}
	return all
}

// mayWrite looks at the flags of the descriptors that a process has of a device.
func (p processes) mayWrite(pid int, u object) bool {
	dir := filepath.Join(p.proc, strconv.Itoa(pid))
	found, _ := filepath.Glob(filepath.Join(dir, "fd", "*"))
	for _, fd := range found {
		st, err := p.stat(fd)
		if err != nil || !u.is(st) {
			continue
		}
		for line := range strings.Lines(text(dir, "fdinfo", filepath.Base(fd))) {
			word, is := strings.CutPrefix(line, "flags:")
			flags, err := strconv.ParseUint(strings.TrimSpace(word), 8, 32)
			if is && err == nil && flags&3 != 0 {
				return true
			}
		}
	}
	return false
}
