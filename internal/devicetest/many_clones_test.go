//go:build device

package devicetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Each of many clones has 8 MiB, of which the source has 1 MiB of data. That is the clone's own: its
// number is the version (harness.Fill).
const (
	manySize = 8 * harness.MiB
	manyData = harness.MiB
)

// herd is many clones at once: their sources are files in memory, their destinations files of one
// file system.
type herd struct {
	m      *harness.Machine
	clones []*harness.Clone
	dests  []*harness.Disk
	before int64 // memory that was available before the first was added
}

// newHerd makes the sources and destinations of n clones, and adds none.
func newHerd(m *harness.Machine, n int) *herd {
	m.Helper()
	h := &herd{m: m}
	raiseDeviceLimit(m)
	dir := m.Ext4Dir(int64(n)*2*manyData/harness.MiB + 64)
	data := make([]byte, manyData)
	for i := range n {
		source := m.File(fmt.Sprintf("source%d", i), manySize)
		harness.Fill(data, 0, version(i))
		if err := os.WriteFile(source.Path, data, 0o600); err != nil {
			m.Fatal(err)
		}
		if err := os.Truncate(source.Path, manySize); err != nil {
			m.Fatal(err)
		}
		dest := &harness.Disk{Path: filepath.Join(dir, fmt.Sprint("dest", i)), Size: manySize}
		m.MustRun("truncate", "-s", fmt.Sprint(manySize), dest.Path)
		c := m.NewClone(source, dest, m.Missing(fmt.Sprint("meta", i)), "--no-hydration")
		c.Name = fmt.Sprint("many", i)
		h.clones, h.dests = append(h.clones, c), append(h.dests, dest)
	}
	h.before = h.available()
	return h
}

// raiseDeviceLimit lets a machine with a kernel before 6.15 have more than 64 devices, as `doctor` says.
func raiseDeviceLimit(m *harness.Machine) {
	m.Helper()
	const limit = "/sys/module/ublk_drv/parameters/ublks_max"
	was := strings.TrimSpace(m.ReadFile(limit))
	m.WriteFile(limit, "256")
	m.Cleanup(func() { m.WriteFile(limit, was) })
}

func version(i int) harness.Version { return harness.Original + harness.Version(1+i) }

func (h *herd) available() int64 {
	h.m.Helper()
	h.m.MustRun("sync")
	h.m.DropCaches()
	return h.m.MemoryNumber("MemAvailable")
}

// timed does something, and tells how long that took for all clones.
func (h *herd) timed(what string, do func()) {
	h.m.Helper()
	from := time.Now()
	do()
	took := time.Since(from)
	h.m.Logf("%s: %v, %v for each", what, took.Round(100*time.Millisecond), (took / time.Duration(len(h.clones))).Round(time.Millisecond))
}

// commandsAtOnce is for how many clones commands run at the same time.
const commandsAtOnce = 4

// each calls do for every clone, for some at a time.
func (h *herd) each(do func(c *harness.Clone) error) {
	h.m.Helper()
	var all sync.WaitGroup
	next := make(chan *harness.Clone)
	for range commandsAtOnce {
		all.Go(func() {
			for c := range next {
				if err := do(c); err != nil {
					h.m.Errorf("%s: %v", c.Name, err)
				}
			}
		})
	}
	for _, c := range h.clones {
		next <- c
	}
	close(next)
	all.Wait()
	if h.m.Failed() {
		h.m.FailNow()
	}
}

// command runs ublk-clone, and returns what it prints.
func (h *herd) command(args ...string) (string, error) {
	o := h.m.Try(harness.Command, args...)
	if o.Code != 0 {
		return "", fmt.Errorf("%s: exit status %d: %s", args[0], o.Code, o.Stderr)
	}
	return strings.TrimSpace(o.Stdout), nil
}

func (h *herd) add() {
	h.m.Helper()
	h.each(func(c *harness.Clone) (err error) {
		c.Path, err = h.command(append([]string{"add", c.Name}, c.Args...)...)
		return err
	})
}

// hydrate has all of them hydrate at the same time.
func (h *herd) hydrate() {
	h.m.Helper()
	h.each(func(c *harness.Clone) error {
		_, err := h.command("message", c.Name, "enable_hydration")
		return err
	})
	for _, c := range h.clones {
		h.m.WaitFor(harness.HydrateLimit, c.Name+" to be complete", func() error {
			if s := c.Status(); s.State != "hydrated" || s.Regions.Hydrated != s.Regions.Total || s.Bytes.Remaining != 0 {
				return fmt.Errorf("status %+v", s)
			}
			return nil
		})
	}
}

// restart replaces all daemons.
func (h *herd) restart() {
	h.m.Helper()
	pids := h.pids()
	o := h.m.TryFor(harness.HydrateLimit+time.Duration(len(h.clones))*harness.StandLimit/10, harness.Command, "restart", "--all")
	h.m.Must(o, harness.Command, "restart", "--all")
	for i, now := range h.pids() {
		if now == pids[i] {
			h.m.Errorf("the daemon of %s was not replaced", h.clones[i].Name)
		}
	}
}

func (h *herd) del() {
	h.m.Helper()
	h.each(func(c *harness.Clone) error {
		if _, err := h.command("del", c.Name); err != nil {
			return err
		}
		c.Path = ""
		return nil
	})
}

func (h *herd) pids() (pids []int) {
	h.m.Helper()
	for _, c := range h.clones {
		pids = append(pids, c.Status().PID)
	}
	return pids
}

// some calls visit for a few of the clones, the last among them.
func (h *herd) some(visit func(i int, c *harness.Clone)) {
	for i, c := range h.clones {
		if i%(1+len(h.clones)/8) == 0 || i == len(h.clones)-1 {
			visit(i, c)
		}
	}
}

// written is what a user writes to the beginning of some clones.
const written = 64 * harness.KiB

func (h *herd) write() {
	h.m.Helper()
	buf := h.m.Buffer(int(written))
	h.some(func(i int, c *harness.Clone) {
		v := h.m.Open(c.Path, os.O_RDWR)
		defer v.Close()
		harness.Fill(buf, 0, version(i+len(h.clones)))
		if err := v.Write(buf, 0); err != nil {
			h.m.Fatal(err)
		}
	})
}

// holds checks all bytes of some clones, or of their destinations.
func (h *herd) holds(path func(i int) string) {
	h.m.Helper()
	h.some(func(i int, c *harness.Clone) {
		h.m.Sweep(path(i), manySize, func(off int64, b []byte) error {
			for at := int64(0); at < int64(len(b)); at += harness.Sector {
				want := version(i)
				switch n := off + at; {
				case n < written:
					want = version(i + len(h.clones))
				case n >= manyData:
					want = harness.Zeros
				}
				if sector := b[at : at+harness.Sector]; !harness.Holds(sector, (off+at)/harness.Sector, want) {
					return fmt.Errorf("%s, sector %d: %s", c.Name, (off+at)/harness.Sector, harness.Describe(sector))
				}
			}
			return nil
		})
	})
}

// weight is what all daemons take: memory by their mappings, where each page counts in part for each
// who has it (Pss), by what the machine has less of, and threads.
type weight struct{ proportional, gone, threads int64 }

func (h *herd) weigh(what string) (w weight) {
	h.m.Helper()
	w.gone = h.before - h.available()
	for i, pid := range h.pids() {
		for line := range strings.Lines(h.m.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))) {
			var n int64
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				_, _ = fmt.Sscan(rest, &n)
				w.proportional += n * harness.KiB
			}
		}
		w.threads += int64(len(h.clones[i].Threads()))
	}
	n := int64(len(h.clones))
	h.m.Logf("%s: %d clones, %d MiB less memory available, %d KiB for each; %d KiB of each are resident, of what they share its part; %d threads, %.1f for each",
		what, n, w.gone/harness.MiB, w.gone/n/harness.KiB, w.proportional/n/harness.KiB, w.threads, float64(w.threads)/float64(n))
	return w
}

// What a clone among many takes at most, and what the machine loses for it: docs/requirements.md.
const (
	mostOfMany        = 16 * harness.MiB
	mostGoneForOne    = 22 * harness.MiB
	mostThreadsOfMany = 20
)

func (h *herd) light(w weight) {
	h.m.Helper()
	n := int64(len(h.clones))
	if w.proportional > n*mostOfMany || w.gone > n*mostGoneForOne || w.threads > n*mostThreadsOfMany {
		h.m.Errorf("%d clones take %d MiB, of which the machine misses %d, and %d threads: more than %d MiB, %d MiB and %d threads for each",
			n, w.proportional/harness.MiB, w.gone/harness.MiB, w.threads, mostOfMany/harness.MiB, mostGoneForOne/harness.MiB, mostThreadsOfMany)
	}
}

// TestHundredClones: a machine of 4 GiB takes a hundred clones at once, or twelve without FULL. They
// are added, written to, hydrated, restarted and deleted, hold what they should, and take no more
// memory and threads than the document says.
func TestHundredClones(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled, runs.OwnGuestInFull)
	m := harness.New(t)
	h := newHerd(m, harness.Count(12, 100))
	ofClone := func(i int) string { return h.clones[i].Path }
	h.timed("add", h.add)
	h.write()
	h.light(h.weigh("new"))
	h.timed("hydrate", h.hydrate)
	h.holds(ofClone)
	time.Sleep(25 * time.Second) // until what hydration has needed is given back
	h.light(h.weigh("complete"))
	h.timed("restart --all", h.restart)
	h.light(h.weigh("restarted"))
	h.holds(ofClone)
	h.timed("del", h.del)
	h.holds(func(i int) string { return h.dests[i].Path })
}
