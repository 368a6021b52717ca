package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

func checkClones(h *machine, f *findings) {
	all, err := h.clones()
	if err != nil {
		f.unknown("The clones cannot be listed: %v.", err)
		return
	}
	well := 0
	for i := range all {
		s := &all[i]
		text := fmt.Sprintf("Clone %s is %s: %s", s.Name, s.State, s.Reason)
		switch {
		case s.State == control.StateDead || s.State == control.StateSilent:
			f.problem(exit.NoAnswer, text, s.Action)
		case s.State == control.StateStalled || s.State == control.StateFailed || s.Mode != "" && s.Mode != "rw":
			f.warn(text, s.Action)
		default:
			well++
		}
	}
	if well > 0 || len(all) == 0 {
		f.ok("%s without trouble.", text.Plural(int64(well), "clone"))
	}
}

func checkLeftDevices(h *machine, f *findings) {
	left, err := h.orphans()
	if err != nil {
		f.unknown("Devices that nobody serves cannot be looked for: %v.", err)
		return
	}
	for _, def := range left {
		f.problem(exit.NoAnswer, def.Device+" belongs to a clone that has neither a daemon nor a definition any more: whoever uses it waits forever.",
			"`ublk-clone prune` deletes it; the `ublk-clone add` that made the clone goes on where it was.")
	}
	for _, name := range leftover.LeftUnders(control.Dir(h.dir), h.path("/sys")) {
		f.warn("The device-mapper device over the destination of clone "+name+" is left, and the clone is gone: nobody else can use the destination.", "`ublk-clone prune` removes it.")
	}
	if len(f.all) == 0 {
		f.ok("No device belongs to a clone that has neither a daemon nor a definition.")
	}
}

// checkDisks looks at the destinations of clones: whether the kernel flushes what has a cache, and
// takes writes.
func checkDisks(h *machine, f *findings) {
	all, err := h.clones()
	if err != nil {
		f.unknown("The clones cannot be listed: %v.", err)
		return
	}
	for i := range all {
		if disk := h.diskOf(all[i].Dest); disk != "" {
			checkDisk(h, f, all[i].Dest, disk)
		}
	}
	if len(f.all) == 0 {
		f.ok("The destinations of clones are flushed where they have a cache.")
	}
}

// diskOf is the sysfs directory of the disk that path is, or is a partition of; "" for a file.
func (h *machine) diskOf(path string) string {
	node, err := filepath.EvalSymlinks(h.path(path))
	if err != nil {
		return ""
	}
	dir, err := filepath.EvalSymlinks(h.path("sys/class/block", filepath.Base(node)))
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return filepath.Dir(dir)
	}
	return dir
}

func checkDisk(h *machine, f *findings, name, disk string) {
	read := func(path string) string {
		b, _ := os.ReadFile(path)
		return strings.TrimSpace(string(b))
	}
	if read(filepath.Join(disk, "ro")) == "1" {
		f.warn("The destination "+name+" has become read-only: writes of users fail.", "See the kernel's log (`dmesg`); then `blockdev --setrw "+name+"`.")
	}
	caches, _ := filepath.Glob(filepath.Join(disk, "device/scsi_disk/*/cache_type"))
	for _, path := range caches {
		if strings.HasPrefix(read(path), "write back") && read(filepath.Join(disk, "queue/write_cache")) == "write through" {
			f.warn("The destination "+name+" has a write cache, and the kernel was told not to flush it: a power cut loses what was flushed.",
				"`echo write back > /sys/block/"+filepath.Base(disk)+"/queue/write_cache`, unless its cache is safe.")
		}
	}
}

func checkService(h *machine, f *findings) {
	definitions, _ := filepath.Glob(h.path(definitionsDir, "*.toml"))
	if len(definitions) == 0 {
		f.ok("There is no definition under %s.", definitionsDir)
		return
	}
	for _, path := range definitions {
		if h.definition == nil {
			break
		}
		if err := h.definition(path); err != nil {
			f.problem(exit.Usage, fmt.Sprintf("%s cannot be used: %v.", filepath.Join(definitionsDir, filepath.Base(path)), err), "Correct it: its clone does not come up at the next start of the machine.")
		}
	}
	for _, dir := range []string{"etc", "run", "usr/local/lib", "usr/lib", "lib"} {
		if h.there(dir, "systemd/system/ublk-clone@.service") {
			if len(f.all) == 0 {
				f.ok("%s under %s, and the unit that starts them.", text.Plural(int64(len(definitions)), "definition"), definitionsDir)
			}
			return
		}
	}
	f.warn(fmt.Sprintf("There are definitions under %s, and no unit ublk-clone@.service: nobody starts these clones.", definitionsDir),
		"Install the package of ublk-clone, or its units.")
}
