package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/testkit"
)

// value is what a sector holds: zeros, the source's, or a write's content.
type value uint32

const (
	valueZero   value = 0
	valueSource value = 1
)

// fillSectors makes the content of value v from byte off on.
func fillSectors(b []byte, off int64, v value) {
	clear(b)
	if v == valueZero {
		return
	}
	for i := int64(0); i < int64(len(b)); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(v)<<32|uint64(off+i))
	}
}

// script is 60 operations of all kinds, always the same.
func script() (ops []scripted) {
	rng := (&assembly{}).random()
	for range 60 {
		s := scripted{op: clone.Op(rng.IntN(int(clone.OpWriteZeroes) + 1)), fua: rng.IntN(3) == 0}
		if s.op != clone.OpFlush {
			first := rng.Int64N(assemblySize / definition.SectorSize)
			s.off, s.length = first*definition.SectorSize, min(1+rng.Int64N(4*assemblyRegion/definition.SectorSize), assemblySize/definition.SectorSize-first)*definition.SectorSize
		}
		ops = append(ops, s)
	}
	return ops
}

type scripted struct {
	op          clone.Op
	fua         bool
	off, length int64
}

// allowed is what each sector may hold: a request that has failed leaves what was or what was to
// be.
type allowed [][]value

func newAllowed() allowed {
	a := make(allowed, assemblySize/definition.SectorSize)
	for i := range a {
		a[i] = []value{valueSource}
	}
	return a
}

// change notes a request over sectors [first, end).
func (a allowed) change(first, end int64, v value, err error) {
	for n := first; n < end; n++ {
		if err == nil {
			a[n] = nil
		}
		a[n] = append(a[n], v)
	}
}

func (a allowed) check(b []byte, off int64) error {
	want := make([]byte, definition.SectorSize)
	for i := int64(0); i < int64(len(b)); i += definition.SectorSize {
		n := (off + i) / definition.SectorSize
		right := slices.ContainsFunc(a[n], func(v value) bool {
			fillSectors(want, off+i, v)
			return bytes.Equal(want, b[i:i+definition.SectorSize])
		})
		if !right {
			return fmt.Errorf("sector %d holds %x, allowed are %v", n, b[i:i+16], a[n])
		}
	}
	return nil
}

// runScript carries the script out, one request at a time from two lanes by turns, while the
// hydrator works.
func (p *assembly) runScript(a allowed) error {
	for i, s := range script() {
		if i == 30 { // regions of all states have been there
			p.background.hydrator.Configure(assemblySettings(true))
		}
		l, v := p.users[i%len(p.users)], value(i+2)
		b := l.data[:s.length]
		if s.op == clone.OpWrite {
			fillSectors(b, s.off, v)
		}
		err := l.do(s.op, s.off, s.length, s.fua)
		if err != nil && !p.plan.hit() {
			return fmt.Errorf("operation %d, %v: %w", i, s.op, err)
		}
		first, end := s.off/definition.SectorSize, (s.off+s.length)/definition.SectorSize
		switch s.op {
		case clone.OpWrite:
			a.change(first, end, v, err)
		case clone.OpWriteZeroes:
			a.change(first, end, valueZero, err)
		case clone.OpDiscard: // of whole regions; the end of the device ends one
			first, end = covered(s.off, s.off+s.length)
			a.change(first, end, valueZero, err)
		case clone.OpRead:
			if err == nil {
				err = a.check(b, s.off)
				if err != nil {
					return fmt.Errorf("operation %d, READ: %w", i, err)
				}
			}
		}
	}
	return nil
}

// covered are the sectors of the regions that [off, end) covers whole.
func covered(off, end int64) (first, last int64) {
	first = (off + assemblyRegion - 1) / assemblyRegion * assemblyRegion
	if end != assemblySize {
		end = end / assemblyRegion * assemblyRegion
	}
	return first / definition.SectorSize, max(first, end) / definition.SectorSize
}

// readAll reads the whole clone.
func (p *assembly) readAll(a allowed) error {
	l := p.users[0]
	for off := int64(0); off < assemblySize; off += assemblyRegion {
		b := l.data[:min(assemblyRegion, assemblySize-off)]
		if err := l.do(clone.OpRead, off, int64(len(b)), false); err != nil {
			return fmt.Errorf("read at %d when nothing fails any more: %w", off, err)
		}
		if err := a.check(b, off); err != nil {
			return err
		}
	}
	return nil
}

// complete waits for hydration, and looks at the destination alone.
func (p *assembly) complete(a allowed) error {
	for deadline := time.Now().Add(time.Minute); !p.core.Complete(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not complete: %+v", p.background.hydrator.Status())
		}
		p.background.hydrator.Resume()
		p.committer.Kick()
	}
	b, err := os.ReadFile(p.engine.Dest.Path())
	if err != nil {
		return err
	}
	return a.check(b[:assemblySize], 0)
}

// runFaulty is one run.
func runFaulty(t *testing.T, dir string, plan *faultPlan) error {
	t.Helper()
	plan.kinds = map[string]int{}
	p, a := newAssembly(t, dir, plan), newAllowed()
	err := p.runScript(a)
	plan.heal()
	if err == nil {
		err = p.readAll(a)
	}
	if err == nil && p.core.Mode() == clone.ReadWrite {
		err = p.complete(a)
	}
	if closeErr := p.close(); err == nil {
		err = closeErr
	}
	return err
}

// has counts what this process holds: what a clone that was taken down must have given back.
func has(t *testing.T) (files, goroutines int, rings int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return testkit.OpenFiles(t), runtime.NumGoroutine(), strings.Count(string(maps), "\n")
}

// TestFailEveryCallOfAssembly: each call of a device, ring or live map fails in turn, once or from
// then on. No byte is wrong, nobody waits for ever, and descriptors, goroutines and mappings are
// given back. Threads make the number of a call that of another one now and then.
func TestFailEveryCallOfAssembly(t *testing.T) {
	dir := t.TempDir()
	source := make([]byte, assemblySize)
	fillSectors(source, 0, valueSource)
	if err := os.WriteFile(filepath.Join(dir, "source"), source, 0o600); err != nil {
		t.Fatal(err)
	}
	_, goroutines, _ := has(t)
	sound := &faultPlan{}
	if err := runFaulty(t, dir, sound); err != nil {
		t.Fatalf("nothing fails: %v", err)
	}
	if len(sound.kinds) < 10 {
		t.Errorf("the script makes calls of %v only", sound.kinds)
	}
	files, _, mappings := has(t)
	step, runs := 3, 0
	if os.Getenv("FULL") == "1" {
		step = 1
	}
	for at := 1; at <= sound.calls; at += step {
		for _, lasting := range []bool{false, true} {
			if err := runFaulty(t, dir, &faultPlan{at: at, lasting: lasting}); err != nil {
				t.Fatalf("call %d fails, from then on: %t: %v", at, lasting, err)
			}
			runs++
		}
	}
	testkit.AwaitCount(t, "descriptors", files, func() int { return testkit.OpenFiles(t) })
	testkit.AwaitCount(t, "goroutines", goroutines, runtime.NumGoroutine)
	testkit.AwaitCount(t, "mappings", mappings+runs/2, func() int { _, _, n := has(t); return n }) // the runtime makes a few
	t.Logf("%d calls: %v; %d runs; %d descriptors, %d goroutines, %d mappings before", sound.calls, sound.kinds, runs, files, goroutines, mappings)
}
