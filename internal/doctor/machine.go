package doctor

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/ublk"
	"github.com/ublk-clone/ublk-clone/ublk/uring"
)

// machine is the machine as doctor sees it. Files are looked for under root, and what no file tells
// is asked by a function; tests put a directory and functions of their own there, with a problem
// planted.
type machine struct {
	root    string // "/"
	dir     string // of sockets and definitions
	records string
	maps    string

	owner   func(path string) (uid int, err error)
	free    func(path string) (int64, error) // bytes of its file system
	write   func(path string) error          // whether this process may
	ring    func() error                     // whether io_uring can be used
	driver  func() (ublk.Features, error)    // what the driver offers
	noSwap  func() error                     // whether a tmpfs can be kept from swap
	program func(name string) (string, error)
	clones  func() ([]control.Status, error)
	orphans func() ([]definition.Definition, error)
	// definition says what is wrong with a definition under /etc.
	definition func(path string) error
}

// definitionsDir has the definitions that units are started from.
const definitionsDir = etc.DefaultDefinedDir

// ThisMachine is this machine.
func ThisMachine(dir control.Dir, clones func() ([]control.Status, error), check func(name string) error) *machine {
	return &machine{
		root: "/", dir: string(dir), records: string(records.DefaultDir()), maps: livemap.Dir,
		owner: sys.Owner, free: sys.FreeAt, write: sys.MayWrite, ring: tryRing, driver: askDriver, noSwap: sys.TryNoSwap,
		program: exec.LookPath,
		clones:  sync.OnceValues(clones),
		orphans: func() ([]definition.Definition, error) { return leftover.Orphans(dir) },
		definition: func(path string) error {
			return check(strings.TrimSuffix(filepath.Base(path), etc.Suffix))
		},
	}
}

// tryRing makes an io_uring such as the control of the driver needs, and closes it.
func tryRing() error {
	result := make(chan error)
	guard.Go("try a ring", func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		ring, err := uring.NewRing(uring.Options{Entries: 4, BigSQE: true})
		if err == nil {
			err = ring.Close()
		}
		result <- err
	})
	return <-result
}

// askDriver asks the driver what it offers.
func askDriver() (ublk.Features, error) {
	driver, err := ublk.OpenControl()
	if err != nil {
		return ublk.Features{}, err
	}
	defer driver.Close()
	ctx, cancel := context.WithTimeout(context.Background(), control.LookLimit)
	defer cancel()
	return driver.Features(ctx)
}

// path is where a path of the machine is found.
func (h *machine) path(elem ...string) string {
	return filepath.Join(append([]string{h.root}, elem...)...)
}

// text is the content of a file in one line, "" if it cannot be read.
func (h *machine) text(elem ...string) string {
	b, err := os.ReadFile(h.path(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// number is a file's content as a number.
func (h *machine) number(elem ...string) (int64, bool) {
	n, err := strconv.ParseInt(h.text(elem...), 10, 64)
	return n, err == nil
}

func (h *machine) there(elem ...string) bool {
	_, err := sys.StatPath(h.path(elem...)) // which waits for no server
	return err == nil
}

// field is the rest of the line of a file that begins with this name.
func (h *machine) field(file, name string) string {
	for line := range strings.Lines(h.text(file)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func (h *machine) Release() string { return h.text("proc/sys/kernel/osrelease") }

// isRoot says whether this process is root's.
func (h *machine) isRoot() bool {
	ids := strings.Fields(h.field("proc/self/status", "Uid:"))
	return len(ids) > 1 && ids[1] == "0" // the effective one
}

// capability is one of those that clones use (include/uapi/linux/capability.h).
type capability uint

const (
	capIPCLock     capability = 14
	capSysAdmin    capability = 21
	capSysResource capability = 24
)

// may says whether this process has the capability.
func (h *machine) may(c capability) bool {
	mask, err := strconv.ParseUint(h.field("proc/self/status", "CapEff:"), 16, 64)
	return err == nil && mask>>c&1 != 0
}

// hardLimit is the limit that this process cannot go beyond by itself: -1 = none.
func (h *machine) hardLimit(name string) (int64, bool) {
	f := strings.Fields(h.field("proc/self/limits", name)) // soft, hard, unit
	if len(f) < 2 {
		return 0, false
	}
	if f[1] == "unlimited" {
		return -1, true
	}
	n, err := strconv.ParseInt(f[1], 10, 64)
	return n, err == nil
}

// mountOn is what is mounted on a directory, nil for nothing.
func (h *machine) mountOn(directory string) *mountinfo.Info {
	f, err := os.Open(h.path("proc/self/mountinfo"))
	if err != nil {
		return nil
	}
	defer f.Close()
	all, err := mountinfo.GetMountsFromReader(f, mountinfo.SingleEntryFilter(directory))
	if err != nil || len(all) == 0 {
		return nil
	}
	return all[0]
}

// kernelVersion is as many numbers of a release as can be compared: 6.18.15+deb13 is {6, 18, 15}.
type kernelVersion [3]int

func parseRelease(release string) (v kernelVersion) {
	for i, part := range strings.SplitN(release, ".", 3) {
		digits := part[:len(part)-len(strings.TrimLeft(part, "0123456789"))]
		v[i], _ = strconv.Atoi(digits)
		if digits != part {
			break
		}
	}
	return v
}

func (v kernelVersion) before(other kernelVersion) bool {
	for i := range v {
		if v[i] != other[i] {
			return v[i] < other[i]
		}
	}
	return false
}
