//go:build device

package devicetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Memory is freed by writing to the clone, while the clone is what needs memory to be freed (I9).
// This test has a guest of its own, with little memory and devices outside of it
// (scripts/memory-pressure).

const (
	pressureFS   = 2560 * harness.MiB // partition 1 of the clone: ext4
	pressureSwap = 768 * harness.MiB  // partition 2: swap
	pressureFile = 32 * harness.MiB   // a file that is written
	// stallLimit is how long nothing may move. Memory that is full is written back in a quarter of
	// it.
	stallLimit = 150 * time.Second
)

// pressure is the state of a run.
type pressure struct {
	*harness.Clone
	dir   string
	hog   []byte // memory that has to be swapped out
	moved atomic.Int64
	slow  atomic.Int64 // the longest write, nanoseconds
	swap  atomic.Int64 // the most in use, bytes
}

// TestMemoryPressure writes twice the memory through the page cache of a file system on a clone
// that is hydrating, where most memory may be dirty: half of it without swap, half with swap on the
// clone itself and a process that needs more memory than there is. Nothing stands still, everything
// is right in the end. With FULL=1 each half is four times the memory, and so it goes on for ten
// minutes.
func TestMemoryPressure(t *testing.T) {
	runs.On(t, "7.3", runs.SmallMemory)
	m := harness.New(t)
	m.MustRun("modprobe", "virtio_blk")
	// kswapd that drops inodes lets ext4 allocate memory that must not fail, of which the allocator
	// warns when it is short (__alloc_pages_slowpath, 6.13 and later; seen once on 7.3). It loses
	// nothing, and no block device can help it.
	m.Kernel.Excuse("super_cache_scan")
	memory := m.MemoryNumber("MemTotal")
	source, dest, metadata := m.Block("/dev/vda"), m.Block("/dev/vdb"), m.Block("/dev/vdc")
	p := &pressure{Clone: m.AddClone(source, dest, metadata, "--rate", "2MiB/s"), dir: filepath.Join(m.Dir, "fs")}
	makeDirty(m)
	m.MustRun("addpart", p.Path, "1", "2048", fmt.Sprint(pressureFS/harness.Sector))
	m.MustRun("addpart", p.Path, "2", fmt.Sprint(2048+pressureFS/harness.Sector), fmt.Sprint(pressureSwap/harness.Sector))
	fs, swap := p.Path+"p1", p.Path+"p2"
	m.WaitFor(harness.CleanLimit, "the partitions", func() error {
		_, err1 := os.Stat(fs)
		_, err2 := os.Stat(swap)
		return errors.Join(err1, err2)
	})
	m.MustRun("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", fs) // not discarded: there is to be something to hydrate
	m.MustRun("mkswap", swap)
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m.MustRun("mount", fs, p.dir)
	t.Logf("memory %d MiB; the daemon has %d MiB, %d KiB of it swapped", memory/harness.MiB, p.ProcessNumber("VmRSS")/harness.MiB, p.ProcessNumber("VmSwap")/harness.KiB)

	// As udev's rule does (packaging/udev/59-ublk-clone.rules): with it 7.3 hung once in about
	// fifteen runs, kswapd in rq_qos_wait, with nothing at work in the daemon: its rings were
	// empty, and each tag had its command at the driver.
	m.WriteFile("/sys/block/"+filepath.Base(p.Path)+"/queue/wbt_lat_usec", "0")
	stop := p.watch()
	for begin, round := time.Now(), 0; round == 0 || os.Getenv("FULL") == "1" && time.Since(begin) < 10*time.Minute; round++ {
		p.write("without swap", memory)
		m.MustRun("swapon", swap)
		p.occupy(memory * 5 / 4)
		p.write("with swap on the clone", memory)
		p.release()
		m.TryFor(stallLimit, "swapoff", swap)
	}
	stop()
	t.Logf("the daemon has %d MiB, %d KiB of it swapped; %d MiB are hydrated", p.ProcessNumber("VmRSS")/harness.MiB, p.ProcessNumber("VmSwap")/harness.KiB,
		p.Status().Bytes.Hydrated/harness.MiB)
	if n := p.ProcessNumber("VmSwap"); n > 0 {
		t.Errorf("%d bytes of the daemon were swapped out", n)
	}
	m.MustRun("umount", p.dir)
	m.MustRun("fsck.ext4", "-fn", fs)
	p.Del()
}

// makeDirty lets nearly all memory be dirty before anybody is held back, and has the kernel
// complain of what stands still.
func makeDirty(m *harness.Machine) {
	m.Helper()
	for name, value := range map[string]string{
		"vm/dirty_ratio": "80", "vm/dirty_background_ratio": "50", "vm/dirty_expire_centisecs": "30000", "kernel/hung_task_timeout_secs": "120",
	} {
		m.WriteFile("/proc/sys/"+name, value)
	}
}

// watch ends the machine when nothing moves any more: a test in it cannot be ended, nor anything be
// taken back.
func (p *pressure) watch() (stop func()) {
	end := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		last, since := p.moved.Load(), time.Now()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			if now := p.moved.Load(); now != last {
				last, since = now, time.Now()
			}
			p.swap.Store(max(p.swap.Load(), p.M.MemoryNumber("SwapTotal")-p.M.MemoryNumber("SwapFree")))
			if time.Since(since) > stallLimit {
				fmt.Printf("--- FAIL: TestMemoryPressure\n    nothing has moved for %v\n", stallLimit)
				_ = os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0) // shows who waits, and where
				_ = os.WriteFile("/proc/sysrq-trigger", []byte("o"), 0)
			}
		}
	})
	return func() { close(end); wait.Wait() }
}

// write writes files from two threads, and reads them again from the device.
func (p *pressure) write(how string, memory int64) {
	p.M.Helper()
	files := int(int64(harness.Count(1, 4))*memory/pressureFile + 1)
	from := time.Now()
	p.slow.Store(0)
	p.each(files, p.writeFile)
	unix.Sync()
	wrote := time.Since(from)
	p.M.DropCaches()
	p.each(files, p.checkFile)
	p.M.Logf("%s: %d MiB written in %v and read in %v, longest write %v, swap in use %d MiB", how, int64(files)*pressureFile/harness.MiB,
		wrote.Round(time.Second), (time.Since(from) - wrote).Round(time.Second), time.Duration(p.slow.Load()).Round(time.Millisecond), p.swap.Load()/harness.MiB)
}

// each calls work for every file, from two threads.
func (p *pressure) each(files int, work func(file int, buf []byte) error) {
	p.M.Helper()
	var wait sync.WaitGroup
	for thread := range 2 {
		wait.Go(func() {
			buf := make([]byte, harness.MiB)
			for file := thread; file < files; file += 2 {
				if err := work(file, buf); err != nil {
					p.M.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	if p.M.Failed() {
		p.M.FailNow()
	}
}

func (p *pressure) file(file int) string { return filepath.Join(p.dir, fmt.Sprint(file)) }

// pattern is the content of a file's bytes from off on.
func pattern(buf []byte, file int, off int64) {
	for i := 0; i < len(buf); i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], uint64(file+1)<<48|uint64(off)+uint64(i))
	}
}

func (p *pressure) writeFile(file int, buf []byte) error {
	f, err := os.Create(p.file(file))
	if err != nil {
		return err
	}
	for off := int64(0); off < pressureFile && err == nil; off += harness.MiB {
		pattern(buf, file, off)
		from := time.Now()
		_, err = f.Write(buf)
		took := int64(time.Since(from))
		for slow := p.slow.Load(); took > slow && !p.slow.CompareAndSwap(slow, took); slow = p.slow.Load() {
		}
		p.moved.Add(1)
	}
	return errors.Join(err, f.Close())
}

// checkFile reads a file again; without FULL=1 each fourth.
func (p *pressure) checkFile(file int, buf []byte) error {
	if file%harness.Count(4, 1) != 0 {
		return nil
	}
	f, err := os.Open(p.file(file))
	if err != nil {
		return err
	}
	defer f.Close()
	for off := int64(0); off < pressureFile; off += harness.MiB {
		if _, err := f.ReadAt(buf, off); err != nil {
			return err
		}
		for i := 0; i < len(buf); i += 8 {
			if got, want := binary.LittleEndian.Uint64(buf[i:]), uint64(file+1)<<48|uint64(off)+uint64(i); got != want {
				return fmt.Errorf("file %d holds %#x at %d, not %#x", file, got, off+int64(i), want)
			}
		}
		p.moved.Add(1)
	}
	return nil
}

// occupy takes memory and writes to all of it.
func (p *pressure) occupy(bytes int64) {
	p.M.Helper()
	var err error
	if p.hog, err = unix.Mmap(-1, 0, int(bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		p.M.Fatal(err)
	}
	for i := 0; i < len(p.hog); i += int(harness.MiB) {
		pattern(p.hog[i:min(i+int(harness.MiB), len(p.hog))], 0, int64(i))
		p.moved.Add(1)
	}
}

// release looks at all of that memory, brings it back from swap, and gives it up.
func (p *pressure) release() {
	p.M.Helper()
	for i := 0; i < len(p.hog); i += 4096 {
		if got, want := binary.LittleEndian.Uint64(p.hog[i:]), uint64(1)<<48|uint64(i); got != want {
			p.M.Fatalf("memory holds %#x at %d, not %#x", got, i, want)
		}
		p.moved.Add(1)
	}
	if err := unix.Munmap(p.hog); err != nil {
		p.M.Fatal(err)
	}
}
