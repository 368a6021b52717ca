package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/text"
	"github.com/ublk-clone/ublk-clone/ublk"
)

func checkPermission(h *machine, f *findings) {
	switch {
	case !h.isRoot():
		f.unknown("This is not root: what only root can see is not looked at, and clones need root.")
	case !h.may(capSysAdmin):
		f.problem(exit.Denied, "This is root without CAP_SYS_ADMIN: it may neither use the ublk driver nor mount the tmpfs of the live maps.",
			"Run it outside of the container or service that has taken the capability away, or give it back there.")
	default:
		f.ok("This is root, with CAP_SYS_ADMIN.")
	}
}

func checkKernel(h *machine, f *findings) {
	release := h.Release()
	bad := false
	for _, k := range kernelFaults {
		if k.of(release) {
			f.add(k.level, k.code, k.text, k.action)
			bad = bad || k.level != levelOK
		}
	}
	if !bad {
		f.ok("Linux %s: it has no known faults.", release)
	}
}

const controlNode = "dev/ublk-control"

func checkDriver(h *machine, f *findings) {
	if !h.there(controlNode) {
		_, err := os.Stat(h.path("sys/module/ublk_drv"))
		advice := ublk.DriverAdvice(h.Release(), err == nil, h.path("lib/modules"))
		f.problem(exit.Feature, "The ublk driver is not there: no /dev/ublk-control."+h.configHint(),
			text.Capital(advice)+". With a line ublk_drv in /etc/modules-load.d/ublk.conf it is loaded at every start of the machine.")
		return
	}
	if err := h.write(h.path(controlNode)); err != nil {
		if !h.isRoot() {
			f.unknown("The ublk driver is there; only root may use it.")
			return
		}
		f.problem(exit.Denied, fmt.Sprintf("/dev/ublk-control cannot be opened: %v.", err), "Look for what keeps root from it: a container's list of devices, SELinux, AppArmor.")
		return
	}
	f.ok("The ublk driver is there, and /dev/ublk-control may be opened.")
}

// configHint says what the kernel's configuration says of the driver, if that is there to be read.
func (h *machine) configHint() string {
	const option = "CONFIG_BLK_DEV_UBLK"
	for line := range strings.Lines(h.text("boot/config-" + h.Release())) {
		if strings.Contains(line, option+"=") || strings.Contains(line, option+" is not set") {
			return " The kernel's configuration says: " + strings.TrimPrefix(strings.TrimSpace(line), "# ") + "."
		}
	}
	return ""
}

func checkRing(h *machine, f *findings) {
	const sysctl = "`sysctl kernel.io_uring_disabled=0`, and look under /etc/sysctl.d for what has set it."
	if n, ok := h.number("proc/sys/kernel/io_uring_disabled"); ok && (n == 2 || n == 1 && !h.may(capSysAdmin)) {
		f.problem(exit.Feature, fmt.Sprintf("io_uring, which does all I/O, is switched off: kernel.io_uring_disabled is %d.", n), sysctl)
		return
	}
	err := h.ring()
	switch {
	case err == nil:
		f.ok("io_uring works.")
	case errors.Is(err, fs.ErrPermission):
		f.problem(exit.Feature, fmt.Sprintf("io_uring is refused: %v. A seccomp filter does that, as in many containers.", err),
			"Allow io_uring_setup, io_uring_enter and io_uring_register there, or run it outside.")
	case errors.Is(err, syscall.ENOSYS):
		f.problem(exit.Feature, "This kernel was built without io_uring (CONFIG_IO_URING).", "Use another kernel.")
	case errors.Is(err, syscall.ENOMEM):
		f.problem(exit.Feature, fmt.Sprintf("An io_uring cannot be made: %v.", err), "Free some memory, or raise the limit of locked memory.")
	default:
		f.problem(exit.Feature, fmt.Sprintf("An io_uring cannot be made: %v.", err), "Use another kernel; 6.12 and later are tested.")
	}
}

// betterFeatures are those of the driver that clones do without.
var betterFeatures = []struct {
	has     func(ublk.Features) bool
	what    string
	version string
}{
	{func(f ublk.Features) bool { return f.AutoBufReg && f.UserCopy }, "the memory of users is not copied", "6.16"},
	{func(f ublk.Features) bool { return f.Quiesce }, "a restart keeps users waiting less", "6.16"},
	{func(f ublk.Features) bool { return f.SafeStop }, "the driver itself stops no device that somebody has open", "7.0"},
	{func(f ublk.Features) bool { return f.NoAutoPartScan }, "new devices are not searched for partitions", "7.0"},
}

func checkFeatures(h *machine, f *findings) {
	if !h.there(controlNode) || h.ring() != nil {
		f.unknown("The driver cannot be asked what it offers, because it is missing or io_uring does not work.")
		return
	}
	got, err := h.driver()
	switch {
	case errors.Is(err, fs.ErrPermission):
		f.unknown("Only root with CAP_SYS_ADMIN can ask the driver what it offers.")
		return
	case errors.Is(err, ublk.ErrNotSupported):
		f.problem(exit.Feature, "The driver is too old: "+err.Error()+".", "Use a kernel from 6.5 on; 6.12 and later are tested.")
		return
	case err != nil:
		f.problem(exit.Feature, fmt.Sprintf("The driver does not answer: %v.", err), "See the kernel's log (`dmesg`).")
		return
	}
	if err := ublk.Needed(got); err != nil {
		f.problem(exit.Feature, "The driver lacks what clones need: "+err.Error()+".", "Use a newer kernel; 6.12 and later are tested.")
		return
	}
	var lacks []string
	for _, b := range betterFeatures {
		if !b.has(got) {
			lacks = append(lacks, b.what+" (from "+b.version+" on)")
		}
	}
	if len(lacks) == 0 {
		f.ok("The driver offers all that clones need and use.")
		return
	}
	f.ok("The driver offers all that clones need. With newer ones %s.", strings.Join(lacks, "; "))
}

func checkDevices(h *machine, f *findings) {
	limit, ok := h.number("sys/module/ublk_drv/parameters/ublks_max")
	if !ok {
		f.unknown("The driver says how many devices it takes only when it is loaded.")
		return
	}
	there, _ := filepath.Glob(h.path("sys/class/ublk-char/*"))
	n := int64(len(there))
	old := parseRelease(h.Release()).before(kernelVersion{6, 15, 0})
	if old && n >= limit {
		f.warn(fmt.Sprintf("There are %s, and ublks_max is %d: the kernels of that time take no more, unless they were mended (Debian's 6.12 counts only those of other users than root).",
			text.Plural(n, "ublk device"), limit),
			"If `add` is refused: `echo 256 > /sys/module/ublk_drv/parameters/ublks_max`, and a line options ublk_drv ublks_max=256 in /etc/modprobe.d/ublk.conf.")
		return
	}
	f.ok("There are %s; the driver takes %d of users without privileges and any number of root's.", text.Plural(n, "ublk device"), limit)
	if old {
		f.all[len(f.all)-1].Text = fmt.Sprintf("There are %s of at most %d.", text.Plural(n, "ublk device"), limit)
	}
}

func checkMemory(h *machine, f *findings) {
	var kib int64
	if _, err := fmt.Sscanf(h.field("proc/meminfo", "MemAvailable:"), "%d kB", &kib); err != nil {
		f.unknown("The available memory could not be determined.")
		return
	}
	free, need := kib<<10, footprint.UsualNeed()
	const action = "Free some memory, or add fewer clones. `ublk-clone add --dry-run` says what one will take."
	switch {
	case free < need:
		f.problem(exit.Other, fmt.Sprintf("%s of memory is left; a clone locks %s at its start.", text.Size(free), text.Size(need)), action)
	case free < 3*need:
		f.warn(fmt.Sprintf("%s of memory is left; each clone locks %s at its start, and more while it copies.", text.Size(free), text.Size(need)), action)
	default:
		f.ok("%s of memory is left; a clone locks %s.", text.Size(free), text.Size(need))
	}
}

func checkMemoryLock(h *machine, f *findings) {
	limit, ok := h.hardLimit("Max locked memory")
	switch {
	case !h.isRoot() || !ok:
		f.unknown("Only root can see whether a daemon may lock its memory.")
	case limit >= 0 && !h.may(capSysResource):
		f.warn(fmt.Sprintf("A daemon cannot lock its memory: the limit is %s, and CAP_SYS_RESOURCE, which lifts it, is missing. "+
			"When memory is short the clone may be slow, or hang if it holds swap.", text.Size(limit)),
			"Give it that capability, or lift the limit: `ulimit -l unlimited`, LimitMEMLOCK=infinity.")
	default:
		f.ok("A daemon may lock its memory.")
	}
}

func checkReclaim(h *machine, f *findings) {
	switch {
	case !h.isRoot():
		f.unknown("Only root can see how the kernel treats a daemon when memory is short.")
	case !h.may(capSysResource):
		f.warn("CAP_SYS_RESOURCE is missing: the kernel may kill daemons when memory runs out, and wait for a daemon while it frees memory for that very daemon.",
			"Give daemons CAP_SYS_RESOURCE.")
	default:
		f.ok("The kernel spares daemons, and does not wait for them, when memory is short.")
	}
}

// openFilesNeed is how many a daemon with some queues has open at most, with all its control
// connections.
const openFilesNeed = 128

func checkOpenFiles(h *machine, f *findings) {
	limit, ok := h.hardLimit("Max open files")
	switch {
	case !ok:
		f.unknown("The limit of open files could not be determined.")
	case limit >= 0 && limit < openFilesNeed:
		f.warn(fmt.Sprintf("A process may have %d files open; a daemon may need %d.", limit, openFilesNeed), "Raise the limit: `ulimit -n 1024`, LimitNOFILE=1024.")
	default:
		f.ok("A daemon may open as many files as it needs.")
	}
}

// mapsNeed is what the live map of a clone takes at the start, in bytes.
const mapsNeed = 2 * footprint.FirstPages << 12

func checkLiveMaps(h *machine, f *findings) {
	m := h.mountOn(h.maps)
	if m == nil {
		checkNoSwap(h, f)
		return
	}
	if m.FSType != "tmpfs" {
		f.problem(exit.Other, fmt.Sprintf("A file system of type %s is mounted on %s: no clone can start, because its live map must be on a tmpfs.", m.FSType, h.maps),
			"`umount "+h.maps+"`; the next `ublk-clone add` mounts the right one.")
		return
	}
	free, err := h.free(h.path(h.maps))
	switch {
	case err != nil:
		f.unknown("How full %s is could not be determined: %v.", h.maps, err)
	case free < mapsNeed:
		f.problem(exit.Other, fmt.Sprintf("%s is left in %s: the live map of another clone does not fit, and existing clones fail writes that need another page.", text.Size(free), h.maps),
			"`mount -o remount,size=1G "+h.maps+"` makes it larger. Only files of ublk-clone belong there.")
	case !strings.Contains(","+m.VFSOptions+",", ",noswap,"):
		f.warn("The tmpfs on "+h.maps+" may be swapped out: with swap on a clone its next daemon would wait for itself.",
			"When no clone is there, `umount "+h.maps+"`: the next `ublk-clone add` mounts one that is not swapped.")
	default:
		f.ok("The tmpfs of the live maps exists and is not swapped out; %s is left.", text.Size(free))
	}
}

// checkNoSwap is for a machine without a clone since its start.
func checkNoSwap(h *machine, f *findings) {
	err := h.noSwap()
	old := parseRelease(h.Release()).before(kernelVersion{6, 4, 0})
	switch {
	case errors.Is(err, syscall.EINVAL) || err != nil && old:
		f.problem(exit.Feature, "This kernel cannot keep a tmpfs from being swapped out, which the live maps need: Linux 6.4 can.", "Use a newer kernel.")
	case err != nil:
		f.unknown("Only root can test whether a tmpfs can be kept out of swap; this kernel should be able to.")
	default:
		f.ok("The tmpfs of the live maps is mounted by the first clone; it can be kept from swap.")
	}
}

func checkRunDir(h *machine, f *findings) {
	info, err := os.Stat(h.path(h.dir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.ok("%s is made by the first clone.", h.dir)
	case err != nil:
		f.unknown("%s cannot be looked at: %v.", h.dir, err)
	case !info.IsDir():
		f.problem(exit.Other, h.dir+", where daemons have their sockets, is not a directory: no clone can be added or asked.", "Move it away.")
	default:
		checkOwn(h, f, h.dir, info.Mode(), "where daemons have their sockets")
	}
}

// checkOwn looks at a directory that is there.
func checkOwn(h *machine, f *findings, dir string, mode fs.FileMode, what string) {
	uid, err := h.owner(h.path(dir))
	denied := h.write(h.path(dir))
	switch {
	case err == nil && uid != 0:
		f.problem(exit.Denied, fmt.Sprintf("%s, %s, belongs to user %d and not to root: who owns it can take it over.", dir, what, uid), "`chown root: "+dir+"`, after a look at what is in it.")
	case !h.isRoot():
		f.unknown("%s is there; only root can look into it.", dir)
	case mode.Perm()&0o077 != 0:
		f.warn(fmt.Sprintf("%s, %s, is open to others (mode %04o).", dir, what, mode.Perm()), "`chmod 700 "+dir+"`; the next `ublk-clone add` does so too where it is its own.")
	case denied != nil:
		f.warn(fmt.Sprintf("%s, %s, cannot be written: %v.", dir, what, denied), "Remount it read-write, or mount a writable file system there.")
	default:
		f.ok("%s, %s, exists and is open to root only.", dir, what)
	}
}

func checkRecords(h *machine, f *findings) {
	const what = "which keeps track of partly hydrated destinations"
	info, err := os.Stat(h.path(h.records))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.ok("%s is made by the first clone.", h.records)
		return
	case err != nil:
		f.unknown("%s cannot be looked at: %v.", h.records, err)
		return
	case !info.IsDir():
		f.warn(h.records+", "+what+", is not a directory: lost metadata would go unnoticed.", "Move it away.")
		return
	}
	checkOwn(h, f, h.records, info.Mode(), what)
	paths, _ := filepath.Glob(h.path(h.records, "*.json"))
	for _, path := range paths {
		checkRecord(h, f, path)
	}
}

// checkRecord looks whether a destination that is partly hydrated still has its metadata.
func checkRecord(h *machine, f *findings, path string) {
	var r records.Record
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	name := filepath.Join(h.records, filepath.Base(path))
	if err != nil {
		f.problem(exit.Metadata, fmt.Sprintf("The record %s cannot be read: %v. Its destination counts as partly hydrated.", name, err), "Remove it if that destination was given up.")
		return
	}
	if h.there(r.Metadata) {
		return
	}
	text := fmt.Sprintf("The destination %s has %s of %s hydrated, and the metadata that says which regions these are, %s, is missing.", r.Dest, text.Size(r.Hydrated), text.Size(r.Size), r.Metadata)
	if !h.there(r.Dest) {
		f.warn(text+" The destination is missing too.", "Do nothing if both are only detached. If that clone was given up, remove "+name+".")
		return
	}
	f.problem(exit.Metadata, text, "Find that metadata: nothing else says what is hydrated. If that clone was given up, remove "+name+".")
}

func checkBlkid(h *machine, f *findings) {
	if _, err := h.program("blkid"); err == nil {
		f.ok("blkid is there, which says what a new destination carries.")
		return
	}
	if !h.isRoot() {
		f.unknown("blkid is not in the PATH of this user.")
		return
	}
	f.problem(exit.Other, "blkid is not in PATH: nobody can say what a new destination carries, so `add` refuses it.",
		"Install util-linux, or add its directory (/usr/sbin or /sbin) to PATH.")
}

func checkMachineID(h *machine, f *findings) {
	if len(h.text("etc/machine-id")) == 0 {
		f.warn("This machine has no /etc/machine-id: metadata that another machine uses, or used when it died, cannot be told from this machine's own.",
			"`systemd-machine-id-setup`, or write 32 hexadecimal digits there.")
		return
	}
	f.ok("This machine can be told from others.")
}
