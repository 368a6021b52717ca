//go:build device

package devicetest

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Reads, writes, zeroings, discards and flushes of four threads, two at random places and two in sequence,
// with hydration running, go through a model of every sector. The destination holds junk before, so that what shows of it is
// found; the sizes leave a short region at the end.

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
	runs.On(t, "6.12")
	testRandomRequests(t, shape{region: 4 * kib, size: 12*mib + 3*sector, sourceBlock: 512, destBlock: 512})
}

func TestRandomRequests64KiB(t *testing.T) {
	runs.On(t, "7.3")
	testRandomRequests(t, shape{region: 64 * kib, size: 12*mib + 17*sector, sourceBlock: 512, destBlock: 512, destDiscards: true})
}

func TestRandomRequests1MiB(t *testing.T) {
	runs.On(t, "6.18")
	testRandomRequests(t, shape{region: mib, size: 12*mib + 29*sector, sourceBlock: 512, destBlock: 512, destDiscards: true, sourceMBps: 16})
}

// One region is the whole device.
func TestRandomRequestsWholeDevice(t *testing.T) {
	runs.On(t, "6.18")
	testRandomRequests(t, shape{region: 8 * mib, size: 8 * mib, sourceBlock: 512, destBlock: 512, sourceMBps: 16})
}

// Regions larger than a copy buffer are copied in pieces.
func TestRandomRequests4MiB(t *testing.T) {
	runs.On(t, "7.3")
	testRandomRequests(t, shape{region: 4 * mib, size: 22*mib + 5*sector, sourceBlock: 512, destBlock: 512})
}

func TestRandomRequestsSource4096(t *testing.T) {
	runs.On(t, "7.3")
	testRandomRequests(t, shape{region: 16 * kib, size: 12*mib + 3*4096, sourceBlock: 4096, destBlock: 512})
}

func TestRandomRequestsDest4096(t *testing.T) {
	runs.On(t, "6.18")
	testRandomRequests(t, shape{region: 16 * kib, size: 12*mib + 3*4096, sourceBlock: 512, destBlock: 4096, args: []string{"--force"}})
}

func TestRandomRequestsBoth4096(t *testing.T) {
	runs.On(t, "7.3")
	testRandomRequests(t, shape{region: 4 * kib, size: 12*mib + 3*4096, sourceBlock: 4096, destBlock: 4096, loopDisks: true})
}

func TestRandomRequestsLargerDest(t *testing.T) {
	runs.On(t, "6.12")
	testRandomRequests(t, shape{region: 64 * kib, size: 12*mib + sector, destExtra: 3*mib + 9*sector, sourceBlock: 512, destBlock: 512})
}

func TestRandomRequestsFiles(t *testing.T) {
	runs.On(t, "6.18")
	testRandomRequests(t, shape{region: 4 * kib, size: 12*mib + sector, sourceBlock: 512, destBlock: 512, files: true})
}

// disk makes one side of a clone.
func (s shape) disk(m *machine, role string, size int64, block, mbps int) *disk {
	m.Helper()
	switch {
	case s.files:
		return m.file(role, size)
	case s.loopDisks:
		return m.loop(m.file(role, size).path, block)
	}
	under := m.nullBlk(role, nullOptions{mib: size/mib + 1, blocksize: block, discard: s.destDiscards, mbps: mbps})
	return m.linear(role, under, size)
}

func testRandomRequests(t *testing.T, s shape) {
	m := newMachine(t)
	rng := m.random()
	if s.files {
		m.dir = m.ext4Folder(128)
	}
	source := s.disk(m, "src", s.size, s.sourceBlock, s.sourceMBps)
	dest := s.disk(m, "dst", s.size+s.destExtra, s.destBlock, 0)
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	c := m.addClone(source, dest, m.missing("meta"), append(s.args, "--region-size", kibText(s.region), "--no-hydration")...)
	w := newModel(s.size, s.region)
	block := int64(max(s.sourceBlock, s.destBlock))
	if got := m.number(fmt.Sprintf("/sys/block/%s/queue/logical_block_size", m.block(c.path).name)); got != block {
		t.Errorf("logical blocks of the clone have %d bytes, expected %d", got, block)
	}

	part := load{threads: 4, sequential: 2, requests: count(60, 2000), block: block, kinds: everything}
	if s.sourceMBps == 0 { // on a slow source the few large regions are hydrated while requests come
		w.run(m, rng, c.path, part) // nothing is hydrated but what the requests hydrate
		w.check(m, c.path)
	}
	c.hydrateSlowly()
	w.run(m, rng, c.path, part)
	during := c.status()
	t.Logf("%d of %d regions hydrated after the requests", during.Regions.Hydrated, during.Regions.Total)
	c.hydrateFast()
	w.run(m, rng, c.path, part)
	c.waitHydrated()
	w.run(m, rng, c.path, part)
	w.check(m, c.path)
	c.del()

	w.check(m, dest.path)
	newModel(s.size, s.region).check(m, source.path)
	m.checkTail(dest, s.size)
}

// fio trims blocks and writes them again in four jobs, with a checksum in each, while the clone hydrates; then
// it reads them.
func TestTrimWriteByFio(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 32, mbps: 4}), m.nullBlk("dst", nullOptions{mib: 32, discard: true})
	m.fillDisk(dest, junk)
	c := m.addClone(source, dest, m.missing("meta"), "--region-size", kibText(16*kib))
	share := source.size / 4
	out := m.run("fio", "--name=trim", "--filename="+c.path, "--direct=1", "--ioengine=libaio", "--iodepth=8", "--rw=randtrimwrite",
		"--bsrange=4k-64k", "--blockalign=4k", "--verify=crc32c", "--verify_fatal=1", "--randseed="+strconv.FormatUint(seed(), 10),
		fmt.Sprintf("--size=%d", share), fmt.Sprintf("--offset_increment=%d", share),
		fmt.Sprintf("--io_size=%d", int64(count(2, 8))*mib), "--numjobs=4", "--thread", "--group_reporting")
	for line := range strings.SplitSeq(out, "\n") {
		if strings.Contains(line, "IOPS=") {
			t.Log(strings.TrimSpace(line))
		}
	}
	during := c.status()
	t.Logf("%d of %d regions hydrated when fio had ended", during.Regions.Hydrated, during.Regions.Total)
	c.waitHydrated()
	c.del()
}

// checkTail: what lies behind the clone's end in a larger destination is not the clone's.
func (m *machine) checkTail(dest *disk, size int64) {
	m.Helper()
	m.sweep(dest.path, dest.size, func(off int64, b []byte) error {
		for i := max(0, size-off); i < int64(len(b)); i += sector {
			if !holds(b[i:i+sector], 0, junk) {
				return fmt.Errorf("sector %d behind the clone's end was overwritten: %s", (off+i)/sector, describe(b[i:i+sector]))
			}
		}
		return nil
	})
}
