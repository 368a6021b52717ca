//go:build device

package devicetest

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Reads, writes, zeroings, discards and flushes of four threads, two at random places and two in
// sequence, with hydration running, go through a model of every sector. The destination holds junk
// before, so that what shows of it is found; the sizes leave a short region at the end.

// shape is what a clone is made from.
type shape struct {
	region                  int64
	size                    int64 // of the source, bytes
	destExtra               int64 // bytes that the destination is larger
	sourceBlock, destBlock  int   // logical blocks
	files                   bool  // source and destination are files
	destDiscards, loopDisks bool
	sourceMBps              int // its pace; 0 = none
	args                    []string
}

func TestRandomRequests4KiB(t *testing.T) {
	runs.On(t, "6.12", runs.Layered, runs.Sampled)
	testRandomRequests(t, shape{region: 4 * harness.KiB, size: 12*harness.MiB + 3*harness.Sector, sourceBlock: 512, destBlock: 512})
}

func TestRandomRequests64KiB(t *testing.T) {
	runs.On(t, "7.3", runs.Layered, runs.Sampled)
	testRandomRequests(t, shape{region: 64 * harness.KiB, size: 12*harness.MiB + 17*harness.Sector, sourceBlock: 512, destBlock: 512, destDiscards: true})
}

func TestRandomRequests1MiB(t *testing.T) {
	runs.On(t, "6.18", runs.Layered, runs.Sampled)
	testRandomRequests(t, shape{region: harness.MiB, size: 12*harness.MiB + 29*harness.Sector, sourceBlock: 512, destBlock: 512, destDiscards: true, sourceMBps: 16})
}

// One region is the whole device.
func TestRandomRequestsWholeDevice(t *testing.T) {
	runs.On(t, "6.18", runs.Layered, runs.Sampled)
	testRandomRequests(t, shape{region: 8 * harness.MiB, size: 8 * harness.MiB, sourceBlock: 512, destBlock: 512, sourceMBps: 16})
}

// Regions larger than a copy buffer are copied in pieces.
func TestRandomRequests4MiB(t *testing.T) {
	runs.On(t, "7.3", runs.Layered, runs.Sampled)
	testRandomRequests(t, shape{region: 4 * harness.MiB, size: 22*harness.MiB + 5*harness.Sector, sourceBlock: 512, destBlock: 512})
}

func TestRandomRequestsSource4096(t *testing.T) {
	runs.On(t, "7.3", runs.Layered, runs.Sampled)
	testRandomRequests(t, shape{region: 16 * harness.KiB, size: 12*harness.MiB + 3*4096, sourceBlock: 4096, destBlock: 512})
}

func TestRandomRequestsDest4096(t *testing.T) {
	runs.On(t, "6.18", runs.Layered, runs.Sampled)
	testRandomRequests(t, shape{region: 16 * harness.KiB, size: 12*harness.MiB + 3*4096, sourceBlock: 512, destBlock: 4096, args: []string{"--force"}})
}

func TestRandomRequestsBoth4096(t *testing.T) {
	runs.On(t, "7.3", runs.Layered, runs.Sampled)
	testRandomRequests(t, shape{region: 4 * harness.KiB, size: 12*harness.MiB + 3*4096, sourceBlock: 4096, destBlock: 4096, loopDisks: true})
}

func TestRandomRequestsLargerDest(t *testing.T) {
	runs.On(t, "6.12", runs.Layered, runs.Sampled)
	testRandomRequests(t, shape{region: 64 * harness.KiB, size: 12*harness.MiB + harness.Sector, destExtra: 3*harness.MiB + 9*harness.Sector, sourceBlock: 512, destBlock: 512})
}

func TestRandomRequestsFiles(t *testing.T) {
	runs.On(t, "6.18", runs.Layered, runs.Sampled)
	testRandomRequests(t, shape{region: 4 * harness.KiB, size: 12*harness.MiB + harness.Sector, sourceBlock: 512, destBlock: 512, files: true})
}

// disk makes one side of a clone.
func (s shape) disk(m *harness.Machine, role string, size int64, block, mbps int) *harness.Disk {
	m.Helper()
	switch {
	case s.files:
		return m.File(role, size)
	case s.loopDisks:
		return m.Loop(m.File(role, size).Path, block)
	}
	under := m.NullBlk(role, harness.NullOptions{MiB: size/harness.MiB + 1, Blocksize: block, Discard: s.destDiscards, MBps: mbps})
	return m.Linear(role, under, size)
}

func testRandomRequests(t *testing.T, s shape) {
	m := harness.New(t)
	rng := m.Random()
	if s.files {
		m.Dir = m.Ext4Dir(128)
	}
	source := s.disk(m, "src", s.size, s.sourceBlock, s.sourceMBps)
	dest := s.disk(m, "dst", s.size+s.destExtra, s.destBlock, 0)
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	c := m.AddClone(source, dest, m.Missing("meta"), append(s.args, "--region-size", harness.KiBText(s.region), "--no-hydration")...)
	w := harness.NewModel(s.size, s.region)
	block := int64(max(s.sourceBlock, s.destBlock))
	if got := m.Number(fmt.Sprintf("/sys/block/%s/queue/logical_block_size", m.Block(c.Path).Name)); got != block {
		t.Errorf("logical blocks of the clone have %d bytes, expected %d", got, block)
	}

	part := harness.Load{Threads: 4, Sequential: 2, Requests: harness.Count(60, 2000), Block: block, Kinds: harness.Everything}
	if s.sourceMBps == 0 { // on a slow source the few large regions are hydrated while requests come
		w.Run(m, rng, c.Path, part) // nothing is hydrated but what the requests hydrate
		w.Check(m, c.Path)
	}
	c.HydrateSlowly()
	w.Run(m, rng, c.Path, part)
	during := c.Status()
	t.Logf("%d of %d regions hydrated after the requests", during.Regions.Hydrated, during.Regions.Total)
	c.HydrateFast()
	w.Run(m, rng, c.Path, part)
	c.WaitHydrated()
	w.Run(m, rng, c.Path, part)
	w.Check(m, c.Path)
	c.Del()

	w.Check(m, dest.Path)
	harness.NewModel(s.size, s.region).Check(m, source.Path)
	m.CheckTail(dest, s.size)
}

// fio trims blocks and writes them again in four jobs, with a checksum in each, while the clone
// hydrates; then it reads them.
func TestTrimWriteByFio(t *testing.T) {
	runs.On(t, "6.18", runs.Layered, runs.Sampled)
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 32, MBps: 4}), m.NullBlk("dst", harness.NullOptions{MiB: 32, Discard: true})
	m.FillDisk(dest, harness.Junk)
	c := m.AddClone(source, dest, m.Missing("meta"), "--region-size", harness.KiBText(16*harness.KiB))
	share := source.Size / 4
	out := m.MustRun("fio", "--name=trim", "--filename="+c.Path, "--direct=1", "--ioengine=libaio", "--iodepth=8", "--rw=randtrimwrite",
		"--bsrange=4k-64k", "--blockalign=4k", "--verify=crc32c", "--verify_fatal=1", "--randseed="+strconv.FormatUint(harness.Seed(), 10),
		fmt.Sprintf("--size=%d", share), fmt.Sprintf("--offset_increment=%d", share),
		fmt.Sprintf("--io_size=%d", int64(harness.Count(2, 8))*harness.MiB), "--numjobs=4", "--thread", "--group_reporting")
	for line := range strings.SplitSeq(out, "\n") {
		if strings.Contains(line, "IOPS=") {
			t.Log(strings.TrimSpace(line))
		}
	}
	during := c.Status()
	t.Logf("%d of %d regions hydrated when fio had ended", during.Regions.Hydrated, during.Regions.Total)
	c.WaitHydrated()
	c.Del()
}
