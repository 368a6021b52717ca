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

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"golang.org/x/sys/unix"
)

// silentTimeout is the source timeout of these tests, and noticeLimit how long after it the outage is to be told.
const (
	silentTimeout = 3 * time.Second
	noticeLimit   = 5 * time.Second
)

// silentBench is a clone that hydrates from a source about to fall silent.
func (m *machine) silentBench(source, dest *disk) *clone {
	m.Helper()
	m.fillDisk(dest, junk)
	return m.addClone(source, dest, m.missing("meta"), "--region-size", kibText(awayRegion), "--rate", "256KiB/s", "--min-rate", "none",
		"--read-through=off", "--source-timeout", silentTimeout.String())
}

// silence waits for the outage to be told, which began at from.
func (c *clone) silence(from time.Time) {
	c.m.Helper()
	c.m.waitFor(standLimit, "the outage", func() error {
		if s := c.status(); s.State != "stalled" || !strings.Contains(s.Reason, "has not answered") {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	c.m.inTime(silentTimeout+noticeLimit, "notice of the outage", time.Since(from))
	c.event("stalled")
}

// TestSourceSilent: a device that queues for ever, as multipath without a path does. What is hydrated is served, new reads
// fail, and an answer ends it.
func TestSourceSilent(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	source := m.faultyDisk("src", 8)
	m.fillDisk(source.disk, original)
	dest := m.nullBlk("dst", nullOptions{mib: 8})
	c := m.silentBench(source.disk, dest)
	w := newModel(8*mib, awayRegion)
	v, buf := m.open(c.path, os.O_RDWR), m.buffer(int(awayRegion))
	if err := w.write(v, buf, 0, false); err != nil {
		t.Fatal(err)
	}
	source.hold()
	from := time.Now()
	hung, slow := m.open(c.path, os.O_RDONLY), m.buffer(4096)
	var reader sync.WaitGroup
	reader.Go(func() {
		if err := w.read(hung, slow, 7*mib); err != nil {
			t.Errorf("the read that waited: %v", err)
		}
		hung.close()
	})
	c.silence(from)
	began := time.Now()
	if err := w.read(v, buf, 0); err != nil {
		t.Errorf("a hydrated region: %v", err)
	}
	if err := v.read(buf[:4096], 6*mib); !errors.Is(err, unix.EIO) {
		t.Errorf("a read of what only the source has: %v", err)
	}
	if err := w.write(v, buf, 5*mib, false); err != nil {
		t.Errorf("a write of whole regions: %v", err)
	}
	m.inTime(2*time.Second, "three requests meanwhile", time.Since(began))
	m.expectFailure(m.try(command, "resume", c.name), exit.Source, "has not answered")
	source.release()
	reader.Wait()
	v.close()
	m.run(command, "set", c.name, "rate=none", "source-timeout=none")
	c.waitHydrated()
	c.del()
	w.check(m, dest.path)
}

// TestDelOfSilentSource: a clone whose background reads hang is deleted in seconds, destination and metadata are free at once,
// and the source is when it answers. Users' requests that hang are a reason to refuse.
func TestDelOfSilentSource(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	source := m.faultyDisk("src", 8)
	m.fillDisk(source.disk, original)
	dest := m.nullBlk("dst", nullOptions{mib: 8})
	c := m.silentBench(source.disk, dest)
	source.hold()
	from := time.Now()
	c.silence(from)
	began := time.Now()
	c.del()
	m.inTime(20*time.Second, "del", time.Since(began))
	m.waitFor(cleanLimit, "the destination to be free", func() error {
		f, err := os.OpenFile(dest.path, os.O_RDWR|unix.O_EXCL, 0)
		if err == nil {
			f.Close()
		}
		return err
	})
	source.release()
	m.waitFor(cleanLimit, "the source to be free", func() error {
		if n := m.openCount("src"); n != 0 {
			return fmt.Errorf("it is open %d times", n)
		}
		return nil
	})
	again := m.newClone(source.disk, dest, m.missing("meta"), c.args[6:]...)
	again.add()
	again.m.run(command, "set", again.name, "rate=none")
	again.waitHydrated()
	again.del()
	newModel(8*mib, awayRegion).check(m, dest.path)
}

// TestNetworkSourceDies: the server of a network block device is killed.
func TestNetworkSourceDies(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	m.kernel.expect("I/O error", "nbd0")
	m.run("modprobe", "nbd", "nbds_max=1")
	image, socket := &disk{m: m, path: filepath.Join(m.dir, "image"), size: 8 * mib}, filepath.Join(m.dir, "nbd.sock")
	m.truncateNew(image.path, image.size)
	m.fillDisk(image, original)
	server := exec.Command("qemu-nbd", "-r", "-f", "raw", "-k", socket, "-t", "-e", "4", image.path)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	m.waitFor(cleanLimit, "the server", func() error { _, err := os.Stat(socket); return err })
	m.run("nbd-client", "-unix", socket, "/dev/nbd0", "-R")
	t.Cleanup(func() { m.try("nbd-client", "-d", "/dev/nbd0") })
	dest := m.nullBlk("dst", nullOptions{mib: 8})
	c := m.silentBench(m.block("/dev/nbd0"), dest)
	time.Sleep(time.Second)
	from := time.Now()
	if err := errors.Join(syscall.Kill(server.Process.Pid, syscall.SIGKILL), ignore(server.Wait())); err != nil {
		t.Fatal(err)
	}
	m.waitFor(standLimit, "the outage", func() error {
		if s := c.status(); s.State != "stalled" {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	m.inTime(silentTimeout+noticeLimit, "notice of the outage", time.Since(from))
	began := time.Now()
	c.del()
	m.inTime(20*time.Second, "del", time.Since(began))
}

func ignore(error) error { return nil }

// truncateNew makes an empty file of so many bytes.
func (m *machine) truncateNew(path string, size int64) {
	m.Helper()
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		m.Fatal(err)
	}
}

// TestUnreadableSample: sectors of the source cannot be read that its sample would cover, in the first and last MiB and in the
// middle. The clone is made all the same, recovered, restarted and begun again, and hydrated but for them.
func TestUnreadableSample(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	const size = 16 * mib
	source, dest := m.nullBlk("src", nullOptions{mib: size / mib}), m.nullBlk("dst", nullOptions{mib: size / mib})
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	bad := []int64{128 * kib, 8*mib + 128*kib, size - 128*kib}
	for _, at := range bad {
		source.badBlocks(at, at+4*kib)
	}
	c := m.addClone(source, dest, m.missing("meta"), "--region-size", kibText(awayRegion), "--retries", "1")
	stalled := func() {
		t.Helper()
		m.waitFor(hydrateLimit, "all but the bad regions to be hydrated", func() error {
			if s := c.status(); s.State != "stalled" || s.Bytes.Remaining != int64(len(bad))*awayRegion {
				return fmt.Errorf("state %s, %d bytes remain: %s", s.State, s.Bytes.Remaining, s.Reason)
			}
			return nil
		})
	}
	stalled()
	c.end(syscall.SIGKILL)
	m.run(command, "recover", c.name)
	stalled()
	m.run(command, "restart", c.name)
	stalled()
	c.del()
	c.add()
	stalled()
	m.writeFile(filepath.Join(nullBlkFolder, source.name, "badblocks"), fmt.Sprintf("-%d-%d", bad[0]/sector, (bad[0]+4*kib)/sector-1))
	source.badBlocks(512*kib, 512*kib+4*kib) // another one goes bad, one can be read again
	m.run(command, "restart", c.name)
	m.run(command, "resume", c.name)
	m.waitFor(hydrateLimit, "the sector that can be read again", func() error {
		if s := c.status(); s.Bytes.Remaining != int64(len(bad)-1)*awayRegion {
			return fmt.Errorf("%d bytes remain: %s", s.Bytes.Remaining, s.Reason)
		}
		return nil
	})
	c.del()
}
