//go:build device

package devicetest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// What is hydrated is led straight to the destination by the layer.

// exchangeFault is where an exchange goes wrong in ublk-clone-faults.
const exchangeFault = "UBLK_CLONE_EXCHANGE_FAULT"

const (
	directSize = 48 * harness.MiB
	// directAll is how much of that is direct when all is hydrated: all but the last unit.
	directAll = directSize - harness.MiB
	// directUnder is the private device over the destination.
	directUnder = "test-dest"
	// directLimit is for an exchange, before which the daemon waits up to 10 s.
	directLimit = 60 * time.Second
)

// directBench is a clone with a layer, whose destination can discard, so that it can be led there.
type directBench struct {
	*harness.Clone
	source, dest, meta *harness.Disk
}

// newDirectBench makes it, with its daemon to go wrong behind a step of an exchange; "" for none.
func newDirectBench(t *testing.T, fault string) *directBench {
	program := harness.Command
	if fault != "" {
		t.Setenv(exchangeFault, fault)
		program = faulty
	}
	return newDirectBenchOf(t, program)
}

// newDirectBenchOf makes it with that program.
func newDirectBenchOf(t *testing.T, program string) *directBench {
	t.Helper()
	needDirect(t)
	return newDirectBenchOn(t, program, true)
}

// needDirect skips a test of direct extents on 6.12, where there are none: TestDirectUnfit checks
// that on this kernel, and 6.18 and 7.3 have the test.
func needDirect(t *testing.T) {
	t.Helper()
	if unaligned(t) {
		t.Skip("this kernel's driver does not let the daemon ask for memory as well aligned as null_blk does: nothing is direct (TestDirectUnfit)")
	}
}

// unaligned says that the driver takes no alignment of memory from the daemon.
func unaligned(t *testing.T) bool {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	return strings.HasPrefix(string(release), "6.12.")
}

// newDirectBenchOn makes it with a destination that can discard, or cannot.
func newDirectBenchOn(t *testing.T, program string, discard bool) *directBench {
	m := harness.New(t)
	b := directBenchOf(m, m.NullBlk("src", harness.NullOptions{MiB: directSize / harness.MiB}),
		m.NullBlk("dst", harness.NullOptions{MiB: directSize/harness.MiB + 3, Discard: discard}))
	m.FillDisk(b.source, harness.Original)
	m.FillDisk(b.dest, harness.Junk)
	b.add(program)
	return b
}

// directBenchOf is one of these devices, which is not added yet.
func directBenchOf(m *harness.Machine, source, dest *harness.Disk, args ...string) *directBench {
	b := &directBench{source: source, dest: dest, meta: m.Missing("meta")}
	b.Clone = m.NewClone(b.source, b.dest, b.meta, append(args, "--dm", harness.LayerName, "--no-hydration")...)
	m.Cleanup(func() {
		m.Try("dmsetup", "remove", "--retry", harness.LayerName)
		m.Try("dmsetup", "remove", "--retry", directUnder)
	})
	return b
}

// add is `add` of that program.
func (b *directBench) add(program string) {
	b.M.Helper()
	b.Path = harness.Opened(b.M.MustRun(program, append([]string{"add", b.Name}, b.Args...)...))
}

func (b *directBench) waitDirect(want int64) {
	b.M.Helper()
	waitDirect(b.Clone, b.dest, want)
}

// waitDirect waits until so many bytes lead to the destination, by the table and by the status.
func waitDirect(c *harness.Clone, dest *harness.Disk, want int64) {
	c.M.Helper()
	c.M.WaitFor(directLimit, fmt.Sprintf("%d bytes to be direct", want), func() error {
		if n, said := c.M.LedTo(dest.Number()), c.Status().Bytes.Direct; n != want || said != want {
			return fmt.Errorf("%d are, the status says %d", n, said)
		}
		return nil
	})
}

// locked checks that nobody can have the destination.
func (b *directBench) locked() {
	b.M.Helper()
	f, err := os.OpenFile(b.dest.Path, os.O_RDWR|os.O_EXCL, 0)
	if err == nil {
		f.Close()
	}
	if !errors.Is(err, syscall.EBUSY) {
		b.M.Errorf("the destination can be opened exclusively: %v", err)
	}
}

// free checks that nothing is left of the clone but what its destination holds.
func (b *directBench) free() {
	b.M.Helper()
	b.Path = ""
	b.M.WaitFor(harness.CleanLimit, "the layer to go", func() error { // the kernel removes one that its last user has closed
		if o := b.M.Try("dmsetup", "info", harness.LayerName); o.Code == 0 {
			return errors.New(o.Stdout)
		}
		return nil
	})
	b.M.LayerGone()
	if o := b.M.Try("dmsetup", "info", directUnder); o.Code == 0 {
		b.M.Errorf("there is a device over the destination:\n%s", o.Stdout)
	}
	f, err := os.OpenFile(b.dest.Path, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		b.M.Errorf("the destination is not free: %v", err)
		return
	}
	f.Close()
}

// wrote writes bytes of one value at off, and holds checks that they are there.
func (b *directBench) wrote(v *harness.Volume, off int64, value byte) {
	b.M.Helper()
	b.NoError(v.Write(b.block(value), off))
}

func (b *directBench) block(value byte) []byte {
	block := b.M.Buffer(64 << 10)
	copy(block, bytes.Repeat([]byte{value}, len(block)))
	return block
}

func (b *directBench) holds(v *harness.Volume, off int64, value byte) {
	b.M.Helper()
	got := b.M.Buffer(64 << 10)
	b.NoError(v.Read(got, off))
	if !bytes.Equal(got, b.block(value)) {
		b.M.Errorf("byte %d is %x, not %x", off, got[0], value)
	}
}

// TestDirect: fio writes and reads what it has written while more and more of the device is led to
// the destination, and away from it again; requests there do not come to the daemon. The
// destination is nobody else's before and meanwhile. Then the clone is finished.
func TestDirect(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newDirectBench(t, "")
	m := b.M
	b.locked()
	m.MustRun("dmsetup", "info", directUnder)
	var out bytes.Buffer
	cmd := exec.Command("fio", "--name=verify", "--filename="+harness.LayerPath, "--size=40m", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--rw=randrw",
		"--bs=16k", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--time_based", "--runtime=50", "--randseed=7")
	cmd.Stdout, cmd.Stderr = &out, &out
	b.NoError(cmd.Start())
	b.HydrateFast()
	b.WaitHydrated()
	b.waitDirect(directAll)
	b.Event("direct")
	device := m.Block(b.Status().Device)
	seen, straight := device.Traffic(), b.dest.Traffic()
	m.WaitFor(directLimit, "fio to go on", func() error {
		if n := b.dest.Traffic().Since(straight).Writes; n < 50 {
			return fmt.Errorf("%d writes of the destination", n)
		}
		return nil
	})
	if n := device.Traffic().Since(seen).Writes; n > 0 {
		t.Errorf("%d writes have come to the daemon", n)
	}
	b.Setting("direct=off")
	b.waitDirect(0)
	b.Setting("direct=on")
	b.waitDirect(directAll)
	if err := cmd.Wait(); err != nil {
		t.Errorf("fio: %v\n%s", err, &out)
	}
	b.locked()
	v := m.Open(harness.LayerPath, os.O_RDWR)
	b.wrote(v, 8*harness.MiB, 0x11)
	m.MustRun(harness.Command, "restart", b.Name)
	b.waitDirect(directAll)
	b.holds(v, 8*harness.MiB, 0x11)
	m.MustRun(harness.Command, "finish", b.Name)
	if got := m.Under(); got != b.dest.Number() {
		t.Errorf("the layer leads to %s, not to the destination", got)
	}
	b.holds(v, 8*harness.MiB, 0x11)
	v.Close()
	m.MustRun("dmsetup", "remove", "--retry", harness.LayerName)
	b.free()
	v = m.Open(b.dest.Path, os.O_RDONLY)
	b.holds(v, 8*harness.MiB, 0x11)
	v.Close()
	m.CheckTail(b.dest, directSize)
	b.source.M.Sweep(b.source.Path, directSize, func(off int64, got []byte) error {
		if !harness.Holds(got[:harness.Sector], off/harness.Sector, harness.Original) {
			return fmt.Errorf("the source has changed at byte %d", off)
		}
		return nil
	})
}

// TestDirectDead: the daemon is dead, and what is direct is read and written on, discarded and
// zeroed; the rest waits for the next daemon. Nobody can take the destination meanwhile.
func TestDirectDead(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newDirectBench(t, "")
	m := b.M
	v := m.Open(harness.LayerPath, os.O_RDWR)
	b.wrote(v, directAll, 0x22)
	b.HydrateFast()
	b.WaitHydrated()
	b.waitDirect(directAll)
	b.End(syscall.SIGKILL)
	b.locked()
	for i := range int64(8) {
		b.wrote(v, i*4*harness.MiB, byte(0x30+i))
	}
	b.NoError(v.Zero(3*harness.MiB, harness.MiB))
	b.holds(v, 3*harness.MiB, 0)
	waits := make(chan error, 1)
	other := m.Open(harness.LayerPath, os.O_RDWR)
	go func() { waits <- other.Flush() }()
	select {
	case err := <-waits:
		t.Errorf("a flush has ended without a daemon: %v", err)
	case <-time.After(time.Second):
	}
	m.MustRun(harness.Command, append([]string{"add", b.Name, "--dry-run"}, b.Args...)...)
	m.MustRun("dmsetup", "info", directUnder)
	m.MustRun("dmsetup", "remove", "--retry", directUnder) // by somebody who does not know better
	b.locked()
	b.Recover()
	m.MustRun("dmsetup", "info", directUnder)
	if err := <-waits; err != nil {
		t.Errorf("the flush: %v", err)
	}
	other.Close()
	for i := range int64(8) {
		b.holds(v, i*4*harness.MiB, byte(0x30+i))
	}
	b.holds(v, directAll, 0x22)
	b.waitDirect(directAll)

	pid := b.Status().PID
	conn, err := net.Dial("unix", filepath.Join(harness.RunDir, b.Name+".sock"))
	b.NoError(err)
	_, err = conn.Write([]byte(`{"verb":"leave"}` + "\n")) // as the previous release asks, which opens the destination itself
	b.NoError(err)
	b.WaitEnded(pid)
	conn.Close()
	if o := m.Try("dmsetup", "info", directUnder); o.Code == 0 || m.LedTo(b.dest.Number()) != 0 {
		t.Errorf("left for the previous release: %d bytes are direct\n%s", m.LedTo(b.dest.Number()), o.Stdout)
	}
	b.Recover()
	b.waitDirect(directAll)
	v.Close()
	b.Del()
	b.free()
	v = m.Open(b.dest.Path, os.O_RDONLY)
	for i := range int64(8) {
		b.holds(v, i*4*harness.MiB, byte(0x30+i))
	}
	v.Close()

	b.Add() // from the map, which says what is hydrated
	b.waitDirect(directAll)
	b.End(syscall.SIGKILL)
	m.MustRun(harness.Command, "prune")
	b.free()
}

// TestDirectKilled: the daemon dies behind each step of an exchange, in turn; the next one goes on
// with the layer, and with what is direct in it.
func TestDirectKilled(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newDirectBench(t, "die 1")
	m := b.M
	v := m.Open(harness.LayerPath, os.O_RDWR)
	b.wrote(v, 8*harness.MiB, 0x11)
	pid := b.Status().PID
	b.HydrateFast()
	for step := 1; step <= 3; step++ {
		m.WaitFor(directLimit, "the daemon to die", func() error {
			if b.Status().State != "dead" {
				return errors.New("it lives")
			}
			return nil
		})
		b.WaitEnded(pid)
		b.locked()
		want := int64(0)
		if step == 3 {
			want = m.LedTo(b.dest.Number())
			if want == 0 {
				t.Error("nothing is direct behind the last step")
			}
			b.holds(v, 8*harness.MiB, 0x11)
			b.wrote(v, 9*harness.MiB, 0x12)
		} else if n := m.LedTo(b.dest.Number()); n != 0 {
			t.Errorf("behind step %d %d bytes are direct", step, n)
		}
		t.Setenv(exchangeFault, fmt.Sprintf("die %d", step+1))
		if got := strings.TrimSpace(m.MustRun(faulty, "recover", b.Name)); got != b.Path {
			t.Fatalf("recover has printed %q", got)
		}
		pid = b.Status().PID
		b.holds(v, 8*harness.MiB, 0x11)
	}
	b.WaitHydrated()
	b.waitDirect(directAll)
	b.holds(v, 9*harness.MiB, 0x12)
	v.Close()
	b.Del()
	b.free()
}

// TestDirectForced: a clone that is forced away, of a daemon that lives and of a dead one: its users
// get errors also where they were led to the destination, which is free for others.
func TestDirectForced(t *testing.T) {
	runs.On(t, "7.3")
	for _, dead := range []bool{false, true} {
		t.Run(fmt.Sprintf("dead=%v", dead), func(t *testing.T) {
			b := newDirectBench(t, "")
			m := b.M
			m.Kernel.Expect("I/O error")
			b.HydrateFast()
			b.WaitHydrated()
			b.waitDirect(directAll)
			v := m.Open(harness.LayerPath, os.O_RDWR)
			b.wrote(v, 8*harness.MiB, 0x11)
			m.ExpectFailure(m.Try(harness.Command, "del", b.Name), exit.Busy)
			b.holds(v, 8*harness.MiB, 0x11)
			if dead {
				b.End(syscall.SIGKILL)
				m.ExpectFailure(m.Try(harness.Command, "del", b.Name), exit.Busy)
				b.holds(v, 8*harness.MiB, 0x11)
			}
			m.MustRun(harness.Command, "del", "--force", b.Name)
			if err := v.Write(b.block(0x13), 8*harness.MiB); err == nil {
				t.Error("a write to the destination succeeds")
			}
			v.Close()
			b.free()
			v = m.Open(b.dest.Path, os.O_RDONLY)
			b.holds(v, 8*harness.MiB, 0x11)
			v.Close()
		})
	}
}

// TestDirectOldMap: the newest metadata and the live map are lost, and an older copy does not know of
// what is direct: only --force goes on, and leads all of the layer to the clone again.
func TestDirectOldMap(t *testing.T) {
	runs.On(t, "7.3")
	b := newDirectBench(t, "")
	m := b.M
	older, err := os.ReadFile(b.meta.Path)
	b.NoError(err)
	b.HydrateFast()
	b.WaitHydrated()
	b.waitDirect(directAll)
	v := m.Open(harness.LayerPath, os.O_RDWR)
	b.wrote(v, 8*harness.MiB, 0x11)
	b.End(syscall.SIGKILL)
	m.DropLiveMaps()
	b.NoError(os.WriteFile(b.meta.Path, older, 0o600))
	m.ExpectFailure(m.Try(harness.Command, "recover", b.Name), exit.Metadata)
	if n := m.LedTo(b.dest.Number()); n != directAll {
		t.Errorf("a recovery that was refused has led all but %d bytes to the clone", n)
	}
	m.MustRun(harness.Command, "recover", b.Name, "--force")
	if n := m.LedTo(b.dest.Number()); n != 0 {
		t.Errorf("%d bytes are direct, of which the map knows nothing", n)
	}
	if warned := strings.Join(b.Status().Warnings, " "); !strings.Contains(warned, "is led to the clone again") {
		t.Errorf("the warnings are %q", warned)
	}
	got := m.Buffer(harness.Sector)
	b.NoError(v.Read(got, 8*harness.MiB))
	if !harness.Holds(got, 8*harness.MiB/harness.Sector, harness.Original) {
		t.Error("what is read is not the source's")
	}
	v.Close()
	b.HydrateFast()
	b.WaitHydrated()
	b.waitDirect(directAll)
	b.Del()
	b.free()
}

// TestDirectUnfit: nothing is led to a destination with which the layer would be another device to
// its users, and that is told: one that takes no discards, or on 6.12 one that wants memory better
// aligned than the block device does.
func TestDirectUnfit(t *testing.T) {
	runs.On(t, "6.12", "7.3")
	b := newDirectBenchOn(t, harness.Command, unaligned(t))
	attribute := "/sys/block/" + filepath.Base(b.M.MapperPath(harness.LayerName)) + "/queue/dma_alignment"
	alignment := b.M.ReadFile(attribute)
	b.HydrateFast()
	b.WaitHydrated()
	b.Event("direct")
	if n := b.M.LedTo(b.dest.Number()); n != 0 {
		t.Errorf("%d bytes are direct", n)
	}
	if got := b.M.ReadFile(attribute); got != alignment {
		t.Errorf("the alignment of memory is %s, and was %s", got, alignment)
	}
	b.Del()
	b.free()
}
