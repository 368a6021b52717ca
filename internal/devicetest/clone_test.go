//go:build device

package devicetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/ublk"
)

// command is the program under test.
const command = "ublk-clone"

// clone is one that the test has added.
type clone struct {
	m    *machine
	name string
	args []string // of add
	path string   // /dev/ublkbN, while it exists
}

// status is what the tests read of `status -o json`.
type status struct {
	Name       string `json:"name"`
	UUID       string `json:"uuid"`
	Device     string `json:"device"`
	DMName     string `json:"dm_name"`
	DMDevice   string `json:"dm_device"`
	PID        int    `json:"pid"`
	State      string `json:"state"`
	Reason     string `json:"reason"`
	Action     string `json:"action"`
	Mode       string `json:"mode"`
	Size       int64  `json:"size"`
	RegionSize int64  `json:"region_size"`
	Bytes      struct {
		Hydrated  int64 `json:"hydrated"`
		Copied    int64 `json:"copied"`
		Written   int64 `json:"written"`
		Discarded int64 `json:"discarded"`
		Remaining int64 `json:"remaining"`
	} `json:"bytes"`
	Regions struct {
		Hydrated  uint64 `json:"hydrated"`
		Total     uint64 `json:"total"`
		Hydrating uint64 `json:"hydrating"`
	} `json:"regions"`
	BadRanges []badRange     `json:"bad_ranges"`
	Warnings  []string       `json:"warnings"`
	Settings  map[string]any `json:"settings"`
	LastEvent uint64         `json:"last_event"`
	Holders   []struct {
		Kind  string `json:"kind"`
		Where string `json:"where"`
	} `json:"holders"`
	Failed []struct {
		Side     string `json:"side"`
		Requests int    `json:"requests"`
	} `json:"failed"`
	Queues []struct {
		Requests uint64 `json:"requests"`
	} `json:"queues"`
}

// badRange is one that could not be copied, in bytes.
type badRange struct {
	Offset   int64 `json:"offset"`
	Length   int64 `json:"length"`
	Attempts int   `json:"attempts"`
}

// same says that both are the same bytes.
func (b badRange) same(other badRange) bool {
	return b.Offset == other.Offset && b.Length == other.Length
}

// newClone names a clone that add starts; it is deleted when the test ends.
func (m *machine) newClone(source, dest, metadata *disk, args ...string) *clone {
	c := &clone{m: m, name: "test", args: addArgs(source, dest, metadata, args...)}
	m.Cleanup(c.abandon)
	return c
}

// addArgs are the arguments of add behind the name.
func addArgs(source, dest, metadata *disk, args ...string) []string {
	args = append([]string{"--source", source.path, "--dest", dest.path, "--metadata", metadata.path}, args...)
	if how := os.Getenv("ZERO_COPY"); how != "" {
		args = append(args, "--zero-copy", how)
	}
	return args
}

// addClone makes a clone and starts it.
func (m *machine) addClone(source, dest, metadata *disk, args ...string) *clone {
	m.Helper()
	c := m.newClone(source, dest, metadata, args...)
	c.add()
	return c
}

// add is `add`, which prints the device.
func (c *clone) add() {
	c.m.Helper()
	c.path = strings.TrimSpace(c.m.run(command, append([]string{"add", c.name}, c.args...)...))
	if _, err := os.Stat(c.path); err != nil {
		c.m.Fatalf("add has printed %q: %v", c.path, err)
	}
}

// del is `del`, which must succeed.
func (c *clone) del() {
	c.m.Helper()
	c.m.run(command, "del", c.name)
	c.path = ""
}

// abandon deletes the clone if the test did not get so far: by the command, else by ending the daemon
// and the device, so that later tests find a clean machine.
func (c *clone) abandon() {
	log, err := os.ReadFile(filepath.Join(runDir, c.name+".log"))
	deleted := c.path == "" && (err != nil || !c.m.Failed()) // del removes the log, an add that failed leaves one
	if deleted {
		return
	}
	if c.m.Failed() {
		c.m.Logf("the daemon's log (%v):\n%s", err, log)
	}
	o := c.m.try(command, "del", c.name)
	if o.code == 0 {
		return
	}
	c.m.Logf("del: exit status %d: %s", o.code, o.stderr)
	for _, pid := range daemons() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
	}
	if err := deleteDevices(); err != nil {
		c.m.Logf("delete devices: %v", err)
	}
	if err := os.RemoveAll(runDir); err != nil {
		c.m.Log(err)
	}
}

// runDir is where the daemons keep their sockets.
const runDir = "/run/ublk-clone"

// deleteDevices asks the driver to stop and delete all devices, whose daemons are dead.
func deleteDevices() error {
	ids, err := ublk.List()
	if err != nil || len(ids) == 0 {
		return err
	}
	ctl, err := ublk.OpenControl()
	if err != nil {
		return err
	}
	defer ctl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cleanLimit)
	defer cancel()
	for _, id := range ids {
		err = errors.Join(err, ctl.StopDev(ctx, id), ctl.DelDev(ctx, id))
	}
	return err
}

// status is what the daemon answers, as it does to the command: that would be a process to start, which takes a
// guest without KVM a hundred times as long. Where there is none to ask it is what the command prints.
func (c *clone) status() status {
	c.m.Helper()
	if s := c.askedStatus(); s != nil {
		return *s
	}
	return c.printedStatus()
}

// askedStatus asks the daemon itself; nil: there is none.
func (c *clone) askedStatus() *status {
	conn, err := net.Dial("unix", filepath.Join(runDir, c.name+".sock"))
	if err != nil {
		return nil
	}
	defer conn.Close()
	var answer struct {
		Status *status `json:"status"`
	}
	if _, err := conn.Write([]byte(`{"verb":"status"}` + "\n")); err != nil {
		return nil
	}
	if err := errors.Join(conn.SetReadDeadline(time.Now().Add(standLimit)), json.NewDecoder(conn).Decode(&answer)); err != nil {
		return nil
	}
	return answer.Status
}

// printedStatus is `status -o json`.
func (c *clone) printedStatus() status {
	c.m.Helper()
	out := c.m.run(command, "status", c.name, "-o", "json")
	var report struct {
		Schema string   `json:"schema"`
		Clones []status `json:"clones"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		c.m.Fatalf("status of %s: %v: %s", c.name, err, out)
	}
	if report.Schema != "ublk-clone/v1" || len(report.Clones) != 1 || report.Clones[0].Name != c.name {
		c.m.Fatalf("status of %s: %s", c.name, out)
	}
	return report.Clones[0]
}

// dmLine is `status -o dm`: dm-clone's line in fields, after "START LENGTH clone".
type dmLine struct {
	hydrated, total uint64 // regions
	features        []string
	mode            string
}

// dmStatus reads `status -o dm`, whose fields are dm-clone's: 8 u/t REGION h/t HYDRATING nf f* na a* MODE.
func (c *clone) dmStatus() dmLine {
	c.m.Helper()
	text := strings.TrimSpace(c.m.run(command, "status", c.name, "-o", "dm"))
	f := strings.Fields(text)
	var d dmLine
	bad := func() { c.m.Fatalf("dm status of %s: %q", c.name, text) }
	if len(f) < 9 || f[2] != "clone" {
		bad()
	}
	if n, _ := fmt.Sscanf(f[6], "%d/%d", &d.hydrated, &d.total); n != 2 {
		bad()
	}
	n, err := strconv.Atoi(f[8])
	if err != nil || len(f) < 9+n+1 {
		bad()
	}
	d.features, d.mode = f[9:9+n], f[len(f)-1]
	return d
}

// message is `message`.
func (c *clone) message(words ...string) {
	c.m.Helper()
	if out := c.m.run(command, append([]string{"message", c.name}, words...)...); out != "" {
		c.m.Errorf("message %s prints %q", strings.Join(words, " "), out)
	}
}

// hydrateSlowly turns hydration on at a pace that leaves time to look at it: region by region.
func (c *clone) hydrateSlowly() {
	c.m.Helper()
	c.message("hydration_batch_size", "1")
	c.message("hydration_threshold", "1")
	c.message("enable_hydration")
}

// hydrateFast turns hydration on at full pace.
func (c *clone) hydrateFast() {
	c.m.Helper()
	c.message("hydration_threshold", "1024")
	c.message("hydration_batch_size", "256")
	c.message("enable_hydration")
}

// waitHydrated is `wait`, and checks that the status says so too.
func (c *clone) waitHydrated() status {
	c.m.Helper()
	args := []string{"wait", c.name, "--timeout", hydrateLimit.String()}
	c.m.must(c.m.tryFor(hydrateLimit+commandLimit(), command, args...), command, args...)
	s := c.status()
	if s.State != "hydrated" || s.Regions.Hydrated != s.Regions.Total || s.Bytes.Remaining != 0 || s.Bytes.Hydrated != s.Size {
		c.m.Fatalf("wait has returned with status %+v", s)
	}
	return s
}
