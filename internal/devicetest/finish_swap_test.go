//go:build device

package devicetest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestFinishSwap: swap on the layer goes on, when it is led straight to the destination and when it is
// finished. What was paged out before is read from the destination after, and a process that is paged
// out and in all the time notices nothing.
func TestFinishSwap(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	source, dest, meta := m.NullBlk("src", harness.NullOptions{MiB: 32}), m.NullBlk("dst", harness.NullOptions{MiB: 32, Discard: true}), m.Missing("meta")
	p := &pager{m: m, reclaim: filepath.Join(m.MountGroups(), "memory.reclaim")}
	m.MustRun("mkswap", source.Path)
	c := m.AddClone(source, dest, meta, "--dm", harness.LayerName, "--no-hydration")
	m.Cleanup(func() { m.Try("dmsetup", "remove", "--retry", harness.LayerName) })
	m.MustRun("swapon", c.Path)
	m.Cleanup(func() { m.Try("swapoff", harness.LayerPath) })

	still, busy := pageable(m, 8*harness.MiB), pageable(m, harness.MiB)
	random := m.Random()
	for i := range still {
		still[i] = byte(random.Uint32())
	}
	before := bytes.Clone(still)
	if err := p.out(still); err != nil {
		t.Fatal(err)
	}
	if used := swapUsed(m); used < 6*harness.MiB {
		t.Fatalf("%d KiB are paged out", used/harness.KiB)
	}
	var rounds atomic.Int64
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- pageInAndOut(busy, &rounds, stop) }()
	goesOn := func(d *harness.Disk) {
		t.Helper()
		from, before := rounds.Load(), d.Traffic()
		m.WaitFor(harness.CleanLimit, "pages to go out and come in", func() error {
			n, bytes := rounds.Load()-from, d.Traffic().Since(before).WriteBytes
			if n < 3 || bytes < harness.MiB {
				return fmt.Errorf("%d rounds, %d bytes written", n, bytes)
			}
			return nil
		})
	}
	goesOn(m.Block(harness.LayerPath))
	c.HydrateFast()
	c.WaitHydrated()
	if !unaligned(t) {
		waitDirect(c, dest, dest.Size-harness.MiB)
		goesOn(dest)
		c.Setting("direct=off")
		goesOn(m.Block(c.Status().Device))
		c.Setting("direct=on")
		waitDirect(c, dest, dest.Size-harness.MiB)
		goesOn(dest)
	}
	m.MustRun(harness.Command, "finish", c.Name)
	c.Path = ""
	goesOn(dest)
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if used := swapUsed(m); used < 6*harness.MiB {
		t.Errorf("%d KiB are paged out after the finish: what was before is to be read after", used/harness.KiB)
	}
	if got := m.Under(); got != dest.Number() {
		t.Errorf("the layer leads to %s, not to the destination", got)
	}
	from := dest.Traffic()
	if !bytes.Equal(still, before) {
		t.Error("what was paged out before came back as something else")
	}
	if got := dest.Traffic().Since(from).ReadBytes; got < 6*harness.MiB {
		t.Errorf("only %d KiB of it were read from the destination", got/harness.KiB)
	}
	m.MustRun("swapoff", harness.LayerPath)
	m.MustRun("dmsetup", "remove", "--retry", harness.LayerName)
}

// pager pages memory out. MADV_PAGEOUT only starts the writes to a device that is not synchronous:
// the pages stay in the swap cache until somebody looks for memory.
type pager struct {
	m       *harness.Machine
	reclaim string // memory.reclaim of all, who writes to it looks for memory
}

// out sees to it that what comes in again is read from the device, but for a part.
func (p *pager) out(b []byte) error {
	if err := unix.Madvise(b, unix.MADV_PAGEOUT); err != nil {
		return err
	}
	for range 1000 {
		if p.m.MemoryNumber("SwapCached") < int64(len(b)/8) {
			return nil
		}
		err := os.WriteFile(p.reclaim, []byte("1M swappiness=200"), 0)
		if err != nil && !errors.Is(err, unix.EAGAIN) { // less than that was found
			return err
		}
	}
	return errors.New("the swap cache stays full")
}

// pageInAndOut writes, pages out and reads again, until stop.
func pageInAndOut(b []byte, rounds *atomic.Int64, stop <-chan struct{}) error {
	for n := byte(1); ; n++ {
		for i := range b {
			b[i] = n + byte(i>>12)
		}
		if err := unix.Madvise(b, unix.MADV_PAGEOUT); err != nil {
			return err
		}
		for i := range b {
			if b[i] != n+byte(i>>12) {
				return fmt.Errorf("byte %d of round %d came back as %d", i, n, b[i])
			}
		}
		rounds.Add(1)
		select {
		case <-stop:
			return nil
		default:
		}
	}
}

// pageable is memory that can be paged out, of no collector.
func pageable(m *harness.Machine, size int64) []byte {
	m.Helper()
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err == nil {
		err = unix.Madvise(b, unix.MADV_NOHUGEPAGE)
	}
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			m.Error(err)
		}
	})
	return b
}

// swapUsed is how much is paged out, in bytes (proc_swaps(5): file, type, size, used, priority).
func swapUsed(m *harness.Machine) int64 {
	m.Helper()
	lines := strings.Split(strings.TrimSpace(m.ReadFile("/proc/swaps")), "\n")
	var name, kind string
	var size, used int64
	if _, err := fmt.Sscan(lines[len(lines)-1], &name, &kind, &size, &used); err != nil || len(lines) != 2 {
		m.Fatalf("/proc/swaps: %v: %q", err, lines)
	}
	return used * harness.KiB
}
