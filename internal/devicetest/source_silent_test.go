//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// silentTimeout is the source timeout of these tests, and noticeLimit how long after it the outage
// is to be told.
const (
	silentTimeout = 3 * time.Second
	noticeLimit   = 5 * time.Second
)

// silentBench is a clone that hydrates from a source about to fall silent.
func silentBench(m *harness.Machine, source, dest *harness.Disk) *harness.Clone {
	m.Helper()
	m.FillDisk(dest, harness.Junk)
	return m.AddClone(source, dest, m.Missing("meta"), "--region-size", harness.KiBText(awayRegion), "--rate", "256KiB/s", "--min-rate", "none",
		"--read-through=off", "--source-timeout", silentTimeout.String())
}

// silence waits for the outage to be told, which began at from.
func silence(c *harness.Clone, from time.Time) {
	c.M.Helper()
	c.M.WaitFor(harness.StandLimit, "the outage", func() error {
		if s := c.Status(); s.State != "stalled" || !strings.Contains(s.Reason, "has not answered") {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	c.M.InTime(silentTimeout+noticeLimit, "notice of the outage", time.Since(from))
	c.Event("stalled")
}

// TestSourceSilent: a device that queues for ever, as multipath without a path does. What is
// hydrated is served, new reads fail, and an answer ends it.
func TestSourceSilent(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	source := m.FaultyDisk("src", 8)
	m.FillDisk(source.Disk, harness.Original)
	dest := m.NullBlk("dst", harness.NullOptions{MiB: 8})
	c := silentBench(m, source.Disk, dest)
	w := harness.NewModel(8*harness.MiB, awayRegion)
	v, buf := m.Open(c.Path, os.O_RDWR), m.Buffer(int(awayRegion))
	if err := w.Write(v, buf, 0, false); err != nil {
		t.Fatal(err)
	}
	source.Hold()
	from := time.Now()
	hung, slow := m.Open(c.Path, os.O_RDONLY), m.Buffer(4096)
	var reader sync.WaitGroup
	reader.Go(func() {
		if err := w.Read(hung, slow, 7*harness.MiB); err != nil {
			t.Errorf("the read that waited: %v", err)
		}
		hung.Close()
	})
	silence(c, from)
	began := time.Now()
	if err := w.Read(v, buf, 0); err != nil {
		t.Errorf("a hydrated region: %v", err)
	}
	if err := v.Read(buf[:4096], 6*harness.MiB); !errors.Is(err, unix.EIO) {
		t.Errorf("a read of what only the source has: %v", err)
	}
	if err := w.Write(v, buf, 5*harness.MiB, false); err != nil {
		t.Errorf("a write of whole regions: %v", err)
	}
	m.InTime(2*time.Second, "three requests meanwhile", time.Since(began))
	m.ExpectFailure(m.Try(harness.Command, "resume", c.Name), exit.Source, "has not answered")
	source.Release()
	reader.Wait()
	v.Close()
	m.MustRun(harness.Command, "set", c.Name, "rate=none", "source-timeout=none")
	c.WaitHydrated()
	c.Del()
	w.Check(m, dest.Path)
}

// TestDelOfSilentSource: a clone whose background reads hang is deleted in seconds, destination and
// metadata are free at once, and the source is when it answers. Users' requests that hang are a
// reason to refuse.
func TestDelOfSilentSource(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	m := harness.New(t)
	source := m.FaultyDisk("src", 8)
	m.FillDisk(source.Disk, harness.Original)
	dest := m.NullBlk("dst", harness.NullOptions{MiB: 8})
	c := silentBench(m, source.Disk, dest)
	source.Hold()
	from := time.Now()
	silence(c, from)
	began := time.Now()
	c.Del()
	m.InTime(20*time.Second, "del", time.Since(began))
	m.WaitFor(harness.CleanLimit, "the destination to be free", func() error {
		f, err := os.OpenFile(dest.Path, os.O_RDWR|unix.O_EXCL, 0)
		if err == nil {
			f.Close()
		}
		return err
	})
	source.Release()
	m.WaitFor(harness.CleanLimit, "the source to be free", func() error {
		if n := m.OpenCount("src"); n != 0 {
			return fmt.Errorf("it is open %d times", n)
		}
		return nil
	})
	again := m.NewClone(source.Disk, dest, m.Missing("meta"), c.Args[6:]...)
	again.Add()
	again.M.MustRun(harness.Command, "set", again.Name, "rate=none")
	again.WaitHydrated()
	again.Del()
	harness.NewModel(8*harness.MiB, awayRegion).Check(m, dest.Path)
}

// TestNetworkSourceDies: the server of a network block device is killed.
func TestNetworkSourceDies(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	m.Kernel.Expect("I/O error", "nbd0")
	m.MustRun("modprobe", "nbd", "nbds_max=1")
	image, socket := &harness.Disk{M: &m.Devices, Path: filepath.Join(m.Dir, "image"), Size: 8 * harness.MiB}, filepath.Join(m.Dir, "nbd.sock")
	truncateNew(m, image.Path, image.Size)
	m.FillDisk(image, harness.Original)
	server := exec.Command("qemu-nbd", "-r", "-f", "raw", "-k", socket, "-t", "-e", "4", image.Path)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	m.WaitFor(harness.CleanLimit, "the server", func() error { _, err := os.Stat(socket); return err })
	m.MustRun("nbd-client", "-unix", socket, "/dev/nbd0", "-R")
	t.Cleanup(func() { m.Try("nbd-client", "-d", "/dev/nbd0") })
	dest := m.NullBlk("dst", harness.NullOptions{MiB: 8})
	c := silentBench(m, m.Block("/dev/nbd0"), dest)
	time.Sleep(time.Second)
	from := time.Now()
	if err := errors.Join(syscall.Kill(server.Process.Pid, syscall.SIGKILL), ignore(server.Wait())); err != nil {
		t.Fatal(err)
	}
	m.WaitFor(harness.StandLimit, "the outage", func() error {
		if s := c.Status(); s.State != "stalled" {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	m.InTime(silentTimeout+noticeLimit, "notice of the outage", time.Since(from))
	began := time.Now()
	c.Del()
	m.InTime(20*time.Second, "del", time.Since(began))
}

func ignore(error) error { return nil }

// truncateNew makes an empty file of so many bytes.
func truncateNew(m *harness.Machine, path string, size int64) {
	m.Helper()
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		m.Fatal(err)
	}
}

// TestUnreadableSample: sectors of the source cannot be read that its sample would cover, in the
// first and last MiB and in the middle. The clone is made all the same, recovered, restarted and
// begun again, and hydrated but for them.
func TestUnreadableSample(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	const size = 16 * harness.MiB
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	bad := []int64{128 * harness.KiB, 8*harness.MiB + 128*harness.KiB, size - 128*harness.KiB}
	for _, at := range bad {
		source.BadBlocks(at, at+4*harness.KiB)
	}
	c := m.AddClone(source, dest, m.Missing("meta"), "--region-size", harness.KiBText(awayRegion), "--retries", "1")
	stalled := func() {
		t.Helper()
		m.WaitFor(harness.HydrateLimit, "all but the bad regions to be hydrated", func() error {
			if s := c.Status(); s.State != "stalled" || s.Bytes.Remaining != int64(len(bad))*awayRegion {
				return fmt.Errorf("state %s, %d bytes remain: %s", s.State, s.Bytes.Remaining, s.Reason)
			}
			return nil
		})
	}
	stalled()
	c.End(syscall.SIGKILL)
	m.MustRun(harness.Command, "recover", c.Name)
	stalled()
	m.MustRun(harness.Command, "restart", c.Name)
	stalled()
	c.Del()
	c.Add()
	stalled()
	m.WriteFile(filepath.Join(harness.NullBlkDir, source.Name, "badblocks"), fmt.Sprintf("-%d-%d", bad[0]/harness.Sector, (bad[0]+4*harness.KiB)/harness.Sector-1))
	source.BadBlocks(512*harness.KiB, 512*harness.KiB+4*harness.KiB) // another one goes bad, one can be read again
	m.MustRun(harness.Command, "restart", c.Name)
	m.MustRun(harness.Command, "resume", c.Name)
	m.WaitFor(harness.HydrateLimit, "the sector that can be read again", func() error {
		if s := c.Status(); s.Bytes.Remaining != int64(len(bad)-1)*awayRegion {
			return fmt.Errorf("%d bytes remain: %s", s.Bytes.Remaining, s.Reason)
		}
		return nil
	})
	c.Del()
}
