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

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestFinishSwap: swap on the layer goes on. What was paged out before is read from the destination after, and a process
// that is paged out and in all the time notices nothing.
func TestFinishSwap(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest, meta := m.nullBlk("src", nullOptions{mib: 32}), m.nullBlk("dst", nullOptions{mib: 32}), m.missing("meta")
	p := &pager{m: m, reclaim: filepath.Join(m.mountGroups(), "memory.reclaim")}
	m.run("mkswap", source.path)
	c := m.addClone(source, dest, meta, "--dm", layerName, "--no-hydration")
	m.Cleanup(func() { m.try("dmsetup", "remove", "--retry", layerName) })
	m.run("swapon", c.path)
	m.Cleanup(func() { m.try("swapoff", layerPath) })

	still, busy := m.pageable(8*mib), m.pageable(mib)
	random := m.random()
	for i := range still {
		still[i] = byte(random.Uint32())
	}
	before := bytes.Clone(still)
	if err := p.out(still); err != nil {
		t.Fatal(err)
	}
	if used := m.swapUsed(); used < 6*mib {
		t.Fatalf("%d KiB are paged out", used/kib)
	}
	var rounds atomic.Int64
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- pageInAndOut(busy, &rounds, stop) }()
	goesOn := func(d *disk) {
		t.Helper()
		from, before := rounds.Load(), d.traffic()
		m.waitFor(cleanLimit, "pages to go out and come in", func() error {
			n, bytes := rounds.Load()-from, d.traffic().since(before).writeBytes
			if n < 3 || bytes < mib {
				return fmt.Errorf("%d rounds, %d bytes written", n, bytes)
			}
			return nil
		})
	}
	goesOn(&disk{m: m, name: filepath.Base(c.status().Device)})
	c.hydrateFast()
	c.waitHydrated()
	m.run(command, "finish", c.name)
	c.path = ""
	goesOn(dest)
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if used := m.swapUsed(); used < 6*mib {
		t.Errorf("%d KiB are paged out after the finish: what was before is to be read after", used/kib)
	}
	if got := m.under(); got != dest.number() {
		t.Errorf("the layer leads to %s, not to the destination", got)
	}
	from := dest.traffic()
	if !bytes.Equal(still, before) {
		t.Error("what was paged out before came back as something else")
	}
	if got := dest.traffic().since(from).readBytes; got < 6*mib {
		t.Errorf("only %d KiB of it were read from the destination", got/kib)
	}
	m.run("swapoff", layerPath)
	m.run("dmsetup", "remove", "--retry", layerName)
}

// pager pages memory out. MADV_PAGEOUT only starts the writes to a device that is not synchronous: the pages stay in the
// swap cache until somebody looks for memory.
type pager struct {
	m       *machine
	reclaim string // memory.reclaim of all, who writes to it looks for memory
}

// out sees to it that what comes in again is read from the device, but for a part.
func (p *pager) out(b []byte) error {
	if err := unix.Madvise(b, unix.MADV_PAGEOUT); err != nil {
		return err
	}
	for range 1000 {
		if p.m.memoryNumber("SwapCached") < int64(len(b)/8) {
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
func (m *machine) pageable(size int64) []byte {
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
func (m *machine) swapUsed() int64 {
	m.Helper()
	lines := strings.Split(strings.TrimSpace(m.readFile("/proc/swaps")), "\n")
	var name, kind string
	var size, used int64
	if _, err := fmt.Sscan(lines[len(lines)-1], &name, &kind, &size, &used); err != nil || len(lines) != 2 {
		m.Fatalf("/proc/swaps: %v: %q", err, lines)
	}
	return used * kib
}
