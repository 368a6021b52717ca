//go:build device

package devicetest

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Adding and deleting: what is refused, how long it takes, what is left.

// smallClone is a clone of a file system of 16 MiB.
func smallClone(t *testing.T, args ...string) (*harness.Clone, *harness.FileTree) {
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	files := m.NewExt4(m.Random(), source, 2*harness.MiB)
	return m.AddClone(source, dest, m.Missing("meta"), args...), files
}

// delLimit is how long del of an idle device may take.
const delLimit = 2 * time.Second

// del is refused while the clone is mounted, or open, and names who holds it; the clone goes on.
// Then del takes less than 2 s and leaves nothing (New checks that).
func TestDelWhileMounted(t *testing.T) {
	runs.On(t, "7.3", runs.OrdinaryClock, runs.CountingClock)
	c, files := smallClone(t)
	files.Mount(c.Path)
	c.M.ExpectFailure(c.M.Try(harness.Command, "del", c.Name), exit.Busy, files.Root)
	files.Check(nil)
	files.Unmount()

	v := c.M.Open(c.Path, os.O_RDWR)
	c.M.ExpectFailure(c.M.Try(harness.Command, "del", c.Name), exit.Busy, strconv.Itoa(os.Getpid()))
	v.Close()

	c.WaitHydrated()
	c.M.Within(delLimit, "del of an idle device", func() time.Duration { return timeDel(c) })
}

// timeDel is how long del takes.
func timeDel(c *harness.Clone) time.Duration {
	c.M.Helper()
	from := time.Now()
	c.Del()
	return time.Since(from)
}

// A deletion in the middle of hydration takes as long as copies in flight do.
func TestDelWhileHydrating(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock, runs.OrdinaryClockInFull, runs.Sampled)
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 64, MBps: 8}), m.NullBlk("dst", harness.NullOptions{MiB: 64})
	c := m.AddClone(source, dest, m.Missing("meta"))
	m.Within(2*delLimit, "del during hydration", func() time.Duration { return timeDel(c) })
}

// An interrupt does what del does: nothing while the device is in use.
func TestInterrupt(t *testing.T) {
	runs.On(t, "6.18")
	c, files := smallClone(t)
	pid := c.Status().PID
	files.Mount(c.Path)
	signal := func() {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
	}
	signal()
	files.Check(nil)
	if got := c.Status().PID; got != pid {
		t.Errorf("the daemon is process %d, it was %d", got, pid)
	}
	files.Unmount()
	signal()
	c.M.WaitFor(harness.CleanLimit, "the daemon to end", func() error {
		if len(harness.Daemons()) > 0 {
			return errors.New("it is there")
		}
		return nil
	})
	c.Path = ""
	c.M.ExpectFailure(c.M.Try(harness.Command, "status", c.Name), exit.NoClone)
	c.Add()
	files.Mount(c.Path)
	files.Check(nil)
	files.Unmount()
	c.Del()
}

// A daemon that was killed leaves its device. The commands say so, and the same add takes it over.
func TestKilledDaemon(t *testing.T) {
	runs.On(t, "6.12", runs.Layered)
	c, files := smallClone(t)
	c.WaitHydrated()
	if err := syscall.Kill(c.Status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.M.WaitFor(harness.CleanLimit, "the daemon to end", func() error {
		if len(harness.Daemons()) > 0 {
			return errors.New("it is there")
		}
		return nil
	})
	c.Path = ""
	c.M.ExpectFailure(c.M.Try(harness.Command, "wait", c.Name), exit.NoAnswer, "dead")
	c.Add()
	if s := c.Status(); s.Regions.Hydrated != s.Regions.Total {
		t.Errorf("%d of %d regions are hydrated", s.Regions.Hydrated, s.Regions.Total)
	}
	files.Mount(c.Path)
	files.Check(nil)
	files.Unmount()
	c.Del()
}

// In the foreground the command is the daemon, and ends by del with exit status 0.
func TestForeground(t *testing.T) {
	runs.On(t, "6.12")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	c := m.NewClone(source, dest, m.Missing("meta"), "--foreground")
	cmd := exec.Command(harness.Command, append([]string{"add", c.Name}, c.Args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	m.WaitFor(harness.CleanLimit, "the clone", func() error {
		if o := m.Try(harness.Command, "table", c.Name); o.Code != 0 {
			return errors.New(o.Stderr)
		}
		return nil
	})
	if pid := c.Status().PID; pid != cmd.Process.Pid {
		t.Errorf("the daemon is process %d, the command %d", pid, cmd.Process.Pid)
	}
	c.Del()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the command in the foreground: %v", err)
		}
	case <-time.After(harness.CleanLimit):
		t.Error("the command in the foreground does not end")
	}
}

// add with the same words says so and changes nothing; with others it is refused.
func TestAddAgain(t *testing.T) {
	runs.On(t, "7.3")
	c, files := smallClone(t)
	files.Mount(c.Path)
	pid := c.Status().PID
	out := c.M.MustRun(harness.Command, append([]string{"add", c.Name}, c.Args...)...)
	if got := c.Status().PID; got != pid || !strings.Contains(out, "unchanged") {
		t.Errorf("the same add says %q; the daemon is process %d, it was %d", out, got, pid)
	}
	other := append([]string{"add", c.Name}, c.Args...)
	c.M.ExpectFailure(c.M.Try(harness.Command, append(other, "--queue-depth", "7")...), exit.Exists, "7")
	files.Check(nil)
	files.Unmount()
	c.Del()
	c.M.ExpectFailure(c.M.Try(harness.Command, "del", c.Name), exit.NoClone, c.Name)
}

// What cannot be a clone is refused, each with its exit code, and leaves nothing.
func TestRefusedAdd(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	small, coarse := m.NullBlk("small", harness.NullOptions{MiB: 8}), m.NullBlk("coarse", harness.NullOptions{MiB: 16, Blocksize: 4096})
	mounted, signed := m.NullBlk("mounted", harness.NullOptions{MiB: 16}), m.NullBlk("signed", harness.NullOptions{MiB: 16})
	meta := m.Missing("meta")
	m.NewExt4(m.Random(), source, harness.MiB)
	files := m.NewExt4(m.Random(), mounted, harness.MiB)
	files.Mount(mounted.Path)
	m.NewExt4(m.Random(), signed, harness.MiB)
	odd := m.File("odd", 16*harness.MiB-100)
	missing := &harness.Disk{M: &m.Devices, Path: "/dev/missing"}

	for _, c := range []struct {
		name                   string
		source, dest, metadata *harness.Disk
		args                   []string
		code                   int
		says                   string
	}{
		{"no source", missing, dest, meta, nil, exit.Source, missing.Path},
		{"no destination", source, missing, meta, nil, exit.Dest, missing.Path},
		{"no metadata to open", source, dest, m.Missing("missing"), []string{"--open"}, exit.Metadata, "missing"},
		{"odd size of the source", odd, dest, meta, nil, exit.Source, odd.Path},
		{"destination too small", source, small, meta, nil, exit.Dest, small.Path},
		{"destination mounted", source, mounted, meta, nil, exit.Busy, files.Root},
		{"source mounted", mounted, dest, meta, nil, exit.Busy, files.Root},
		{"a file system on the destination", source, signed, meta, nil, exit.Refused, "ext4"},
		{"the same device twice", source, source, meta, []string{"--force"}, exit.Refused, source.Path},
		{"metadata on the destination", source, dest, dest, []string{"--force"}, exit.Refused, dest.Path},
		{"larger blocks on the destination", source, coarse, meta, nil, exit.Refused, "4096"},
		{"wrong region size", source, dest, meta, []string{"--region-size", "5000"}, exit.Usage, "5000"},
	} {
		t.Log(c.name)
		o := m.Try(harness.Command, append([]string{"add", "test"}, m.NewClone(c.source, c.dest, c.metadata, c.args...).Args...)...)
		m.ExpectFailure(o, c.code, c.says)
		if left := devicesAndDaemons(); len(left) > 0 {
			t.Fatalf("%s: left: %v", c.name, left)
		}
	}
	files.Unmount()
}

// devicesAndDaemons are the leftovers that are ublk-clone's own.
func devicesAndDaemons() []string {
	var own []string
	for _, name := range harness.Leftovers() {
		if strings.Contains(name, "ublk") {
			own = append(own, name)
		}
	}
	return own
}

// faulty is ublk-clone with the build tag faults: UBLK_CLONE_FAULT makes a start fail behind a
// step.
const (
	faulty   = harness.Command + "-faults"
	faultEnv = "UBLK_CLONE_FAULT"
)

// A start that fails behind any of its steps leaves nothing: no device, daemon or socket, and none
// of the files that it made. What was there before is as it was.
func TestAddFailsAtEachStep(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	m.Dir = m.Ext4Dir(32)
	source := m.File("source", 8*harness.MiB)
	m.FillDisk(source, harness.Original)
	dest, metadata := m.Missing("dest"), m.Missing("meta")
	c := m.NewClone(source, dest, metadata)
	kept := m.KeptFiles()
	step := 1
	for ; ; step += harness.Count(2, 1) {
		t.Setenv(faultEnv, strconv.Itoa(step))
		o := m.Try(faulty, append([]string{"add", c.Name}, c.Args...)...)
		if o.Code == 0 {
			break
		}
		if !strings.Contains(o.Stderr, "step "+strconv.Itoa(step)) {
			t.Fatalf("step %d: exit status %d: %s", step, o.Code, o.Stderr)
		}
		if left := devicesAndDaemons(); len(left) > 0 {
			t.Fatalf("a failure behind step %d leaves %v", step, left)
		}
		if now := m.KeptFiles(); !slices.Equal(now, kept) {
			t.Fatalf("a failure behind step %d leaves %v, there were %v", step, now, kept)
		}
		for _, d := range []*harness.Disk{dest, metadata} {
			if _, err := os.Stat(d.Path); err == nil {
				t.Fatalf("a failure behind step %d leaves %s", step, d.Path)
			}
		}
	}
	t.Logf("%d steps", step-1)
	if step < 5 {
		t.Errorf("a start has more than %d steps", step-1)
	}
	c.Path = "up"
	c.WaitHydrated()
	c.Del()
	harness.NewModel(8*harness.MiB, 4*harness.KiB).Check(m, dest.Path)
}

// A recovery that fails behind any of its steps leaves all as it was: the device and its user, who
// waits and sees no error, the definition, the live map. The next one goes on.
func TestRecoverFailsAtEachStep(t *testing.T) {
	runs.On(t, "6.18", runs.Layered, runs.Sampled)
	c, files := smallClone(t, "--no-hydration")
	files.Mount(c.Path)
	files.Change(c.M.Random(), 0.2)
	c.End(syscall.SIGKILL)
	kept := c.M.KeptFiles()
	step := 1
	for ; ; step += harness.Count(2, 1) {
		t.Setenv(faultEnv, strconv.Itoa(step))
		o := c.M.Try(faulty, "recover", c.Name)
		if o.Code == 0 {
			break
		}
		if !strings.Contains(o.Stderr, "step "+strconv.Itoa(step)) {
			t.Fatalf("step %d: exit status %d: %s", step, o.Code, o.Stderr)
		}
		if s := c.Status(); s.State != "dead" || len(s.Holders) != 1 || cmp.Or(s.DMDevice, s.Device) != c.Path || len(harness.Daemons()) > 0 {
			t.Fatalf("a failure behind step %d leaves %+v", step, s)
		}
		if now := c.M.KeptFiles(); !slices.Equal(now, kept) {
			t.Fatalf("a failure behind step %d leaves %v, there were %v", step, now, kept)
		}
	}
	t.Logf("%d steps", step-1)
	if step < 10 {
		t.Errorf("a recovery has more than %d steps", step-1)
	}
	files.Check(nil)
	files.Sync()
	c.HydrateFast()
	c.WaitHydrated()
	files.Unmount()
	files.Fsck(c.Path)
	c.Del()
}
