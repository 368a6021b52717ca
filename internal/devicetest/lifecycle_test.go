//go:build device

package devicetest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Adding and deleting: what is refused, how long it takes, what is left.

// smallClone is a clone of a file system of 16 MiB.
func smallClone(t *testing.T, args ...string) (*clone, *fileTree) {
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	files := m.newExt4(m.random(), source, 2*mib)
	return m.addClone(source, dest, m.missing("meta"), args...), files
}

// expectFailure checks the exit code of a command and that its message says all of that.
func (m *machine) expectFailure(o outcome, code int, says ...string) {
	m.Helper()
	m.Logf("exit status %d: %s", o.code, strings.TrimSpace(o.stderr))
	if o.code != code {
		m.Errorf("exit status %d, expected %d", o.code, code)
	}
	for _, text := range says {
		if !strings.Contains(o.stderr, text) {
			m.Errorf("the message does not say %q", text)
		}
	}
}

// delLimit is how long del of an idle device may take.
const delLimit = 2 * time.Second

// del is refused while the clone is mounted, or open, and names who holds it; the clone goes on. Then del
// takes less than 2 s and leaves nothing (newMachine checks that).
func TestDelWhileMounted(t *testing.T) {
	runs.On(t, "7.3", runs.OrdinaryClock, runs.CountingClock)
	c, files := smallClone(t)
	files.mount(c.path)
	c.m.expectFailure(c.m.try(command, "del", c.name), exit.Busy, files.root)
	files.check(nil)
	files.unmount()

	v := c.m.open(c.path, os.O_RDWR)
	c.m.expectFailure(c.m.try(command, "del", c.name), exit.Busy, strconv.Itoa(os.Getpid()))
	v.close()

	c.waitHydrated()
	c.m.within(delLimit, "del of an idle device", c.timeDel)
}

// timeDel is how long del takes.
func (c *clone) timeDel() time.Duration {
	c.m.Helper()
	from := time.Now()
	c.del()
	return time.Since(from)
}

// A deletion in the middle of hydration takes as long as copies in flight do.
func TestDelWhileHydrating(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock, runs.OrdinaryClockInFull)
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 64, mbps: 8}), m.nullBlk("dst", nullOptions{mib: 64})
	c := m.addClone(source, dest, m.missing("meta"))
	m.within(2*delLimit, "del during hydration", c.timeDel)
}

// An interrupt does what del does: nothing while the device is in use.
func TestInterrupt(t *testing.T) {
	runs.On(t, "6.18")
	c, files := smallClone(t)
	pid := c.status().PID
	files.mount(c.path)
	signal := func() {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
	}
	signal()
	files.check(nil)
	if got := c.status().PID; got != pid {
		t.Errorf("the daemon is process %d, it was %d", got, pid)
	}
	files.unmount()
	signal()
	c.m.waitFor(cleanLimit, "the daemon to end", func() error {
		if len(daemons()) > 0 {
			return errors.New("it is there")
		}
		return nil
	})
	c.path = ""
	c.m.expectFailure(c.m.try(command, "status", c.name), exit.NoClone)
	c.add()
	files.mount(c.path)
	files.check(nil)
	files.unmount()
	c.del()
}

// A daemon that was killed leaves its device. The commands say so, and the same add takes it over.
func TestKilledDaemon(t *testing.T) {
	runs.On(t, "6.12")
	c, files := smallClone(t)
	c.waitHydrated()
	if err := syscall.Kill(c.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.m.waitFor(cleanLimit, "the daemon to end", func() error {
		if len(daemons()) > 0 {
			return errors.New("it is there")
		}
		return nil
	})
	c.path = ""
	c.m.expectFailure(c.m.try(command, "wait", c.name), exit.NoAnswer, "dead")
	c.add()
	if s := c.status(); s.Regions.Hydrated != s.Regions.Total {
		t.Errorf("%d of %d regions are hydrated", s.Regions.Hydrated, s.Regions.Total)
	}
	files.mount(c.path)
	files.check(nil)
	files.unmount()
	c.del()
}

// In the foreground the command is the daemon, and ends by del with exit status 0.
func TestForeground(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	c := m.newClone(source, dest, m.missing("meta"), "--foreground")
	cmd := exec.Command(command, append([]string{"add", c.name}, c.args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	m.waitFor(cleanLimit, "the clone", func() error {
		if o := m.try(command, "table", c.name); o.code != 0 {
			return errors.New(o.stderr)
		}
		return nil
	})
	if pid := c.status().PID; pid != cmd.Process.Pid {
		t.Errorf("the daemon is process %d, the command %d", pid, cmd.Process.Pid)
	}
	c.del()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the command in the foreground: %v", err)
		}
	case <-time.After(cleanLimit):
		t.Error("the command in the foreground does not end")
	}
}

// add with the same words says so and changes nothing; with others it is refused.
func TestAddAgain(t *testing.T) {
	runs.On(t, "7.3")
	c, files := smallClone(t)
	files.mount(c.path)
	pid := c.status().PID
	out := c.m.run(command, append([]string{"add", c.name}, c.args...)...)
	if got := c.status().PID; got != pid || !strings.Contains(out, "unchanged") {
		t.Errorf("the same add says %q; the daemon is process %d, it was %d", out, got, pid)
	}
	other := append([]string{"add", c.name}, c.args...)
	c.m.expectFailure(c.m.try(command, append(other, "--queue-depth", "7")...), exit.Exists, "7")
	files.check(nil)
	files.unmount()
	c.del()
	c.m.expectFailure(c.m.try(command, "del", c.name), exit.NoClone, c.name)
}

// What cannot be a clone is refused, each with its exit code, and leaves nothing.
func TestRefusedAdd(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	small, coarse := m.nullBlk("small", nullOptions{mib: 8}), m.nullBlk("coarse", nullOptions{mib: 16, blocksize: 4096})
	mounted, signed := m.nullBlk("mounted", nullOptions{mib: 16}), m.nullBlk("signed", nullOptions{mib: 16})
	meta := m.missing("meta")
	m.newExt4(m.random(), source, mib)
	files := m.newExt4(m.random(), mounted, mib)
	files.mount(mounted.path)
	m.newExt4(m.random(), signed, mib)
	odd := m.file("odd", 16*mib-100)
	missing := &disk{m: m, path: "/dev/missing"}

	for _, c := range []struct {
		name                   string
		source, dest, metadata *disk
		args                   []string
		code                   int
		says                   string
	}{
		{"no source", missing, dest, meta, nil, exit.Source, missing.path},
		{"no destination", source, missing, meta, nil, exit.Dest, missing.path},
		{"no metadata to open", source, dest, m.missing("missing"), []string{"--open"}, exit.Metadata, "missing"},
		{"odd size of the source", odd, dest, meta, nil, exit.Source, odd.path},
		{"destination too small", source, small, meta, nil, exit.Dest, small.path},
		{"destination mounted", source, mounted, meta, nil, exit.Busy, files.root},
		{"source mounted", mounted, dest, meta, nil, exit.Busy, files.root},
		{"a file system on the destination", source, signed, meta, nil, exit.Refused, "ext4"},
		{"the same device twice", source, source, meta, []string{"--force"}, exit.Refused, source.path},
		{"metadata on the destination", source, dest, dest, []string{"--force"}, exit.Refused, dest.path},
		{"larger blocks on the destination", source, coarse, meta, nil, exit.Refused, "4096"},
		{"wrong region size", source, dest, meta, []string{"--region-size", "5000"}, exit.Usage, "5000"},
	} {
		t.Log(c.name)
		o := m.try(command, append([]string{"add", "test"}, m.newClone(c.source, c.dest, c.metadata, c.args...).args...)...)
		m.expectFailure(o, c.code, c.says)
		if left := devicesAndDaemons(); len(left) > 0 {
			t.Fatalf("%s: left: %v", c.name, left)
		}
	}
	files.unmount()
}

// devicesAndDaemons are the leftovers that are ublk-clone's own.
func devicesAndDaemons() []string {
	var own []string
	for _, name := range leftovers() {
		if strings.Contains(name, "ublk") {
			own = append(own, name)
		}
	}
	return own
}

// faulty is ublk-clone with the build tag faults: UBLK_CLONE_FAULT makes a start fail behind a step.
const (
	faulty   = command + "-faults"
	faultEnv = "UBLK_CLONE_FAULT"
)

// A start that fails behind any of its steps leaves nothing: no device, daemon or socket, and none of
// the files that it made. What was there before is as it was.
func TestAddFailsAtEachStep(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	m.dir = m.ext4Folder(32)
	source := m.file("source", 8*mib)
	m.fillDisk(source, original)
	dest, metadata := m.missing("dest"), m.missing("meta")
	c := m.newClone(source, dest, metadata)
	kept := m.keptFiles()
	step := 1
	for ; ; step += count(2, 1) {
		t.Setenv(faultEnv, strconv.Itoa(step))
		o := m.try(faulty, append([]string{"add", c.name}, c.args...)...)
		if o.code == 0 {
			break
		}
		if !strings.Contains(o.stderr, "step "+strconv.Itoa(step)) {
			t.Fatalf("step %d: exit status %d: %s", step, o.code, o.stderr)
		}
		if left := devicesAndDaemons(); len(left) > 0 {
			t.Fatalf("a failure behind step %d leaves %v", step, left)
		}
		if now := m.keptFiles(); !slices.Equal(now, kept) {
			t.Fatalf("a failure behind step %d leaves %v, there were %v", step, now, kept)
		}
		for _, d := range []*disk{dest, metadata} {
			if _, err := os.Stat(d.path); err == nil {
				t.Fatalf("a failure behind step %d leaves %s", step, d.path)
			}
		}
	}
	t.Logf("%d steps", step-1)
	if step < 5 {
		t.Errorf("a start has more than %d steps", step-1)
	}
	c.path = "up"
	c.waitHydrated()
	c.del()
	newModel(8*mib, 4*kib).check(m, dest.path)
}

// keptFiles are those that outlive daemons: live maps, and records of destinations.
func (m *machine) keptFiles() (all []string) {
	m.Helper()
	for _, folder := range []string{liveMaps, recordDir} {
		found, err := filepath.Glob(folder + "/*")
		if err != nil {
			m.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// A recovery that fails behind any of its steps leaves all as it was: the device and its user, who waits and sees
// no error, the definition, the live map. The next one goes on.
func TestRecoverFailsAtEachStep(t *testing.T) {
	runs.On(t, "6.18")
	c, files := smallClone(t, "--no-hydration")
	files.mount(c.path)
	files.change(c.m.random(), 0.2)
	c.end(syscall.SIGKILL)
	kept := c.m.keptFiles()
	step := 1
	for ; ; step += count(2, 1) {
		t.Setenv(faultEnv, strconv.Itoa(step))
		o := c.m.try(faulty, "recover", c.name)
		if o.code == 0 {
			break
		}
		if !strings.Contains(o.stderr, "step "+strconv.Itoa(step)) {
			t.Fatalf("step %d: exit status %d: %s", step, o.code, o.stderr)
		}
		if s := c.status(); s.State != "dead" || len(s.Holders) != 1 || s.Device != c.path || len(daemons()) > 0 {
			t.Fatalf("a failure behind step %d leaves %+v", step, s)
		}
		if now := c.m.keptFiles(); !slices.Equal(now, kept) {
			t.Fatalf("a failure behind step %d leaves %v, there were %v", step, now, kept)
		}
	}
	t.Logf("%d steps", step-1)
	if step < 10 {
		t.Errorf("a recovery has more than %d steps", step-1)
	}
	files.check(nil)
	files.sync()
	c.hydrateFast()
	c.waitHydrated()
	files.unmount()
	files.examine(c.path)
	c.del()
}
