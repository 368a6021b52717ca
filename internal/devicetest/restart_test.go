//go:build device

package devicetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A clone that was deleted and added again with the same words goes on where it was.

// Deleted at random moments of its hydration, with writes before each, it never falls back, reads
// the source about once in all, and ends with the right content.
func TestDeleteDuringHydration(t *testing.T) {
	runs.On(t, "6.12", runs.Layered, runs.Sampled)
	m := harness.New(t)
	rng := m.Random()
	rounds := harness.Count(3, 10)
	size, region := int64(harness.Count(16, 128))*harness.MiB, 64*harness.KiB
	source := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB, MBps: 6})
	dest := m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	w := harness.NewModel(size, region)
	// Only writes: a read of an unhydrated region would go to the source and be counted.
	writes := harness.Load{Threads: 2, Requests: 15, Block: harness.Sector, Kinds: harness.Mix{Write: 1}}

	c := m.NewClone(source, dest, m.Missing("meta"), "--region-size", harness.KiBText(region))
	before, hydrated := source.Traffic(), uint64(0)
	for round := range rounds {
		c.Add()
		s := c.Status()
		if s.Regions.Hydrated < hydrated {
			t.Fatalf("round %d: %d regions hydrated after add, %d before del", round, s.Regions.Hydrated, hydrated)
		}
		w.Run(m, rng, c.Path, writes)
		written := dest.Traffic().WriteBytes
		goal := written + rng.Int64N(1+c.Status().Bytes.Remaining/2)
		m.WaitFor(harness.HydrateLimit, "the destination to be written", func() error {
			if n := dest.Traffic().WriteBytes; n < goal {
				return fmt.Errorf("%d of %d bytes", n-written, goal-written)
			}
			return nil
		})
		hydrated = c.Status().Regions.Hydrated
		c.Del()
		t.Logf("round %d: deleted with %d of %d regions hydrated", round, hydrated, s.Regions.Total)
	}
	c.Add()
	c.WaitHydrated()
	total := source.Traffic().Since(before).ReadBytes
	w.Check(m, c.Path)
	c.Del()
	opening := openingReads(m, source)
	once := total - int64(rounds+1)*opening
	t.Logf("the source was read %d KiB, of which %d for %d openings; its size is %d KiB", total/harness.KiB, (total-once)/harness.KiB, rounds+1, size/harness.KiB)
	if once > size+size/20 {
		t.Errorf("the source of %d bytes was read %d bytes", size, once)
	}
	w.Check(m, dest.Path)
	harness.NewModel(size, region).Check(m, source.Path)
}

// openingReads is how many bytes of the source one add reads, to know it again.
func openingReads(m *harness.Machine, source *harness.Disk) int64 {
	m.Helper()
	c := m.NewClone(source, m.NullBlk("other", harness.NullOptions{MiB: source.Size / harness.MiB}), m.Missing("othermeta"), "--no-hydration")
	before := source.Traffic()
	c.Add()
	c.Del()
	return source.Traffic().Since(before).ReadBytes
}

// An idle clone loses nothing and copies nothing twice: with hydration off every count stays, and
// when it is on again exactly what is left is read.
func TestDeleteIdle(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	m := harness.New(t)
	rng := m.Random()
	size, region := 32*harness.MiB, 64*harness.KiB
	source := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB})
	dest := m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	w := harness.NewModel(size, region)
	c := m.AddClone(source, dest, m.NullBlk("meta", harness.NullOptions{MiB: 1}), "--region-size", harness.KiBText(region), "--no-hydration")
	w.Run(m, rng, c.Path, harness.Load{Threads: 4, Requests: harness.Count(40, 400), Block: harness.Sector, Kinds: harness.Everything})
	idle := c.Status()
	c.Del()

	c.Add()
	after, opened, written := c.Status(), source.Traffic(), dest.Traffic()
	if after.Regions != idle.Regions || after.Bytes != idle.Bytes || after.UUID != idle.UUID {
		t.Errorf("before del %+v %+v, after add %+v %+v", idle.Regions, idle.Bytes, after.Regions, after.Bytes)
	}
	if n := source.Traffic().Since(opened).Reads; n != 0 {
		t.Errorf("hydration is off, and the source was read %d times", n)
	}
	c.HydrateFast()
	s := c.WaitHydrated()
	if got, want := source.Traffic().Since(opened).ReadBytes, idle.Bytes.Remaining; got != want {
		t.Errorf("%d bytes were left, %d were read from the source", want, got)
	}
	t.Logf("%d KiB were left; the destination was written %d KiB; in all %d KiB copied, %d written, %d discarded", idle.Bytes.Remaining/harness.KiB,
		dest.Traffic().Since(written).WriteBytes/harness.KiB, s.Bytes.Copied/harness.KiB, s.Bytes.Written/harness.KiB, s.Bytes.Discarded/harness.KiB)
	c.Del()

	written = dest.Traffic()
	c.Add()
	complete := c.WaitHydrated()
	if complete.Bytes != s.Bytes {
		t.Errorf("complete with %+v, after another add %+v", s.Bytes, complete.Bytes)
	}
	w.Check(m, c.Path)
	if n := dest.Traffic().Since(written).Writes; n != 0 {
		t.Errorf("a complete clone wrote its destination %d times", n)
	}
	c.Del()
	w.Check(m, dest.Path)
}

// Settings changed live are kept.
func TestSettingsSurvive(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	c := m.AddClone(source, dest, m.Missing("meta"), "--region-size", "64KiB")
	m.MustRun(harness.Command, "pause", c.Name)
	c.Message("hydration_threshold", "7")
	c.Message("hydration_batch_size", "3")
	before := m.MustRun(harness.Command, "status", c.Name, "-o", "dm")
	c.Del()
	c.Add()
	line := c.DMStatus()
	after := m.MustRun(harness.Command, "status", c.Name, "-o", "dm")
	if !slices.Contains(line.Features, "no_hydration") || !slices.Contains(strings.Fields(after), "7") || !slices.Contains(strings.Fields(after), "3") {
		t.Errorf("before del %q, after add %q", before, after)
	}
	c.Del()
}
