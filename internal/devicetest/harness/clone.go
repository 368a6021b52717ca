package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// Command is the program under test.
const Command = "ublk-clone"

// Clone is one that the test has added.
type Clone struct {
	M    *Machine
	Name string
	Args []string // of add
	Path string   // /dev/ublkbN, or the layer's, while it exists
}

// Status is what the tests read of `status -o json`.
type Status struct {
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
		Direct    int64 `json:"direct"`
	} `json:"bytes"`
	Regions struct {
		Hydrated  uint64 `json:"hydrated"`
		Total     uint64 `json:"total"`
		Hydrating uint64 `json:"hydrating"`
	} `json:"regions"`
	BadRanges []BadRange     `json:"bad_ranges"`
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

// BadRange is one that could not be copied, in bytes.
type BadRange struct {
	Offset   int64 `json:"offset"`
	Length   int64 `json:"length"`
	Attempts int   `json:"attempts"`
}

// same says that both are the same bytes.
func (b BadRange) same(other BadRange) bool {
	return b.Offset == other.Offset && b.Length == other.Length
}

// NewClone names a clone that add starts; it is deleted when the test ends.
func (m *Machine) NewClone(source, dest, metadata *Disk, args ...string) *Clone {
	c := &Clone{M: m, Name: "test", Args: AddArgs(source, dest, metadata, append(args, m.layerArgs(args)...)...)}
	m.Cleanup(c.Abandon)
	return c
}

// layerArgs give a clone a layer in a run that wants it, unless the test does (runs.Layered). It goes
// after the clone.
func (m *Machine) layerArgs(args []string) []string {
	if !runs.Layer() || slices.Contains(args, "--dm") {
		return nil
	}
	name := LayerName
	if m.layers++; m.layers > 1 {
		name += strconv.Itoa(m.layers)
	}
	m.Cleanup(func() { m.Try("dmsetup", "remove", "--retry", name) }) // of a clone whose daemon the test has left dead
	return []string{"--dm", name}
}

// AddArgs are the arguments of add behind the name.
func AddArgs(source, dest, metadata *Disk, args ...string) []string {
	args = append([]string{"--source", source.Path, "--dest", dest.Path, "--metadata", metadata.Path}, args...)
	if how := os.Getenv("ZERO_COPY"); how != "" {
		args = append(args, "--zero-copy", how)
	}
	return args
}

// AddClone makes a clone and starts it.
func (m *Machine) AddClone(source, dest, metadata *Disk, args ...string) *Clone {
	m.Helper()
	c := m.NewClone(source, dest, metadata, args...)
	c.Add()
	return c
}

// Add is `add`, which prints the device.
func (c *Clone) Add() {
	c.M.Helper()
	c.Path = Opened(c.M.MustRun(Command, append([]string{"add", c.Name}, c.Args...)...))
	if _, err := os.Stat(c.Path); err != nil {
		c.M.Fatalf("add has printed %q: %v", c.Path, err)
	}
}

// NameDir has the links by which users know clones.
const NameDir = "/dev/ublk-clone"

// Opened is the path of the device that add or recover has printed: behind the clone's link, which
// leads to it. Releases before have printed that path itself.
func Opened(printed string) string {
	path := strings.TrimSpace(printed)
	to, err := os.Readlink(path)
	if filepath.Dir(path) != NameDir || err != nil {
		return path
	}
	return filepath.Join(NameDir, to)
}

// Del is `del`, which must succeed.
func (c *Clone) Del() {
	c.M.Helper()
	if runs.Layer() {
		c.M.Logf("%d bytes are direct", c.Status().Bytes.Direct)
	}
	c.M.MustRun(Command, "del", c.Name)
	c.Path = ""
}

// Abandon deletes the clone if the test did not get so far: by the command, else by ending the
// daemon and the device, so that later tests find a clean machine.
func (c *Clone) Abandon() {
	log, err := os.ReadFile(filepath.Join(RunDir, c.Name+".log"))
	deleted := c.Path == "" && (err != nil || !c.M.Failed()) // del removes the log, an add that failed leaves one
	if deleted {
		return
	}
	if c.M.Failed() {
		c.M.Logf("the daemon's log (%v):\n%s", err, log)
	}
	o := c.M.Try(Command, "del", c.Name)
	if o.Code == 0 {
		return
	}
	c.M.Logf("del: exit status %d: %s", o.Code, o.Stderr)
	for _, pid := range Daemons() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := DeleteDevices(); err != nil {
		c.M.Logf("delete devices: %v", err)
	}
	_ = os.RemoveAll(RunDir)
}

// RunDir is where the daemons keep their sockets.
const RunDir = "/run/ublk-clone"

// DeleteDevices asks the driver to stop and delete all devices, whose daemons are dead.
func DeleteDevices() error {
	ids, err := ublk.List()
	if err != nil || len(ids) == 0 {
		return err
	}
	ctl, err := ublk.OpenControl()
	if err != nil {
		return err
	}
	defer ctl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), CleanLimit)
	defer cancel()
	for _, id := range ids {
		err = errors.Join(err, ctl.StopDev(ctx, id), ctl.DelDev(ctx, id))
	}
	return err
}

// Status is what the daemon answers, as it does to the command: that would be a process to start,
// which takes a guest without KVM a hundred times as long. Where there is none to ask it is what
// the command prints.
func (c *Clone) Status() Status {
	c.M.Helper()
	if s := c.AskedStatus(); s != nil {
		return *s
	}
	return c.PrintedStatus()
}

// AskedStatus asks the daemon itself; nil: there is none.
func (c *Clone) AskedStatus() *Status {
	conn, err := net.Dial("unix", filepath.Join(RunDir, c.Name+".sock"))
	if err != nil {
		return nil
	}
	defer conn.Close()
	var answer struct {
		Status *Status `json:"status"`
	}
	if _, err := conn.Write([]byte(`{"verb":"status"}` + "\n")); err != nil {
		return nil
	}
	if err := errors.Join(conn.SetReadDeadline(time.Now().Add(StandLimit)), json.NewDecoder(conn).Decode(&answer)); err != nil {
		return nil
	}
	return answer.Status
}

// PrintedStatus is `status -o json`.
func (c *Clone) PrintedStatus() Status {
	c.M.Helper()
	out := c.M.MustRun(Command, "status", c.Name, "-o", "json")
	var report struct {
		Schema string   `json:"schema"`
		Clones []Status `json:"clones"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		c.M.Fatalf("status of %s: %v: %s", c.Name, err, out)
	}
	if report.Schema != "ublk-clone/v1" || len(report.Clones) != 1 || report.Clones[0].Name != c.Name {
		c.M.Fatalf("status of %s: %s", c.Name, out)
	}
	return report.Clones[0]
}

// DmLine is `status -o dm`: dm-clone's line in fields, after "START LENGTH clone".
type DmLine struct {
	hydrated, total uint64 // regions
	Features        []string
	mode            string
}

// DMStatus reads `status -o dm`, whose fields are dm-clone's: 8 u/t REGION h/t HYDRATING nf f* na
// a* MODE.
func (c *Clone) DMStatus() DmLine {
	c.M.Helper()
	text := strings.TrimSpace(c.M.MustRun(Command, "status", c.Name, "-o", "dm"))
	f := strings.Fields(text)
	var d DmLine
	bad := func() { c.M.Fatalf("dm status of %s: %q", c.Name, text) }
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
	d.Features, d.mode = f[9:9+n], f[len(f)-1]
	return d
}

// Message is `message`.
func (c *Clone) Message(words ...string) {
	c.M.Helper()
	if out := c.M.MustRun(Command, append([]string{"message", c.Name}, words...)...); out != "" {
		c.M.Errorf("message %s prints %q", strings.Join(words, " "), out)
	}
}

// HydrateSlowly turns hydration on at a pace that leaves time to look at it: region by region.
func (c *Clone) HydrateSlowly() {
	c.M.Helper()
	c.Message("hydration_batch_size", "1")
	c.Message("hydration_threshold", "1")
	c.Message("enable_hydration")
}

// HydrateFast turns hydration on at full pace.
func (c *Clone) HydrateFast() {
	c.M.Helper()
	c.Message("hydration_threshold", "1024")
	c.Message("hydration_batch_size", "256")
	c.Message("enable_hydration")
}

// WaitHydrated is `wait`, and checks that the status says so too.
func (c *Clone) WaitHydrated() Status {
	c.M.Helper()
	args := []string{"wait", c.Name, "--timeout", HydrateLimit.String()}
	c.M.Must(c.M.TryFor(HydrateLimit+CommandLimit(), Command, args...), Command, args...)
	s := c.Status()
	if s.State != "hydrated" || s.Regions.Hydrated != s.Regions.Total || s.Bytes.Remaining != 0 || s.Bytes.Hydrated != s.Size {
		c.M.Fatalf("wait has returned with status %+v", s)
	}
	return s
}
