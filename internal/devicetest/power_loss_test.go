//go:build device

package devicetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// Power loss. Destination and metadata are parts of one disk whose writes are logged. A file system on the clone
// and a stretch behind it are written, flushed, discarded and zeroed while the clone is hydrated, and what was
// acknowledged as durable is marked in the log. Then the disk is made as the power may have left it at points of
// the log, and what is there must be what was promised (I4, I5): the metadata open, the clone serves, every sector
// holds its newest durable version or one that was issued later, and the file system mounts and has no fault.

const (
	lossFiles    = 32 * mib // bytes of the clone that the file system has: two groups of XFS, or its tool refuses to look
	lossRaw      = 2 * mib  // and what is written without one, behind it
	lossDest     = lossFiles + lossRaw
	lossMetadata = mib
	lossRegion   = 16 * kib
)

// lossBench is the clone that is used, and the one of what the power has left.
type lossBench struct {
	*machine
	rng     *rand.Rand
	kind    fsKind
	source  *disk
	log     writeLog
	crashed *disk // a disk like the logged one, in parts again
	dest    *disk
	clone   *clone // over the parts of crashed
	files   *fileStream
	raw     *rawStream
}

// halves makes the parts of a disk.
func (m *machine) halves(name string, d *disk) (dest, metadata *disk) {
	m.Helper()
	dest = m.linear(name+"dst", d, lossDest)
	metadata = m.mapper(name+"meta", fmt.Sprintf("0 %d linear %s %d", lossMetadata/sector, d.path, lossDest/sector))
	return dest, metadata
}

func newLossBench(m *machine, kind fsKind) *lossBench {
	const mibs = (lossDest + lossMetadata) / mib
	b := &lossBench{machine: m, rng: m.random(), kind: kind, source: m.nullBlk("src", nullOptions{mib: lossDest / mib})}
	b.files = newFileStream(b)
	m.fillPart(b.source, lossFiles, lossDest, original) // now: mkfs.xfs clears the end of the disk
	under := m.nullBlk("disk", nullOptions{mib: mibs, discard: true})
	m.fillPart(under, 0, lossDest, junk)
	b.log = m.logged("logged", under, m.nullBlk("log", nullOptions{mib: 1024}))
	b.crashed = m.nullBlk("crashed", nullOptions{mib: mibs, discard: true})
	return b
}

// use is the life of the clone that is logged.
func (b *lossBench) use() []logEntry {
	b.Helper()
	dest, meta := b.halves("logged", b.log.disk)
	c := b.addClone(b.source, dest, meta, "--region-size", kibText(lossRegion), "--rate", kibText(int64(count(1024, 192))*kib)+"/s")
	b.files.mount(c.path)
	b.raw = &rawStream{stream: newStream("raw"), v: b.open(c.path, os.O_RDWR), buf: b.buffer(ioSize), mark: b.log.mark,
		rng: rand.New(rand.NewPCG(b.rng.Uint64(), 1))}
	b.mark("up")
	raw := make(chan error, 1)
	go func() { raw <- b.raw.run(count(40, 200)) }()
	err := b.files.run(count(4, 50))
	if rawErr := <-raw; err != nil || rawErr != nil {
		b.Fatalf("files: %v; behind them: %v", err, rawErr)
	}
	b.raw.v.close()
	b.files.unmount()
	b.Logf("%+v", c.status().Bytes)
	c.del()
	b.mark("end")
	return b.log.read()
}

func (b *lossBench) mark(text string) {
	b.Helper()
	if err := b.log.mark(text); err != nil {
		b.Fatal(err)
	}
}

// up is the entry from which on the clone is there.
func (b *lossBench) up(entries []logEntry) int {
	return slices.IndexFunc(entries, func(e logEntry) bool { return e.mark == "up" })
}

// points chooses n places of the log: behind all marks, then in front of and behind what has FUA, then in front of
// FLUSHes, where most is in doubt, then any.
func (b *lossBench) points(entries []logEntry, n int) []int {
	b.Helper()
	var groups [4][]int
	for i := b.up(entries); i < len(entries); i++ {
		switch e := &entries[i]; {
		case e.is(logMark):
			groups[0] = append(groups[0], i+1)
		case e.is(logFUA):
			groups[1] = append(groups[1], i, i+1)
		case e.is(logFlush):
			groups[2] = append(groups[2], i)
		default:
			groups[3] = append(groups[3], i+1)
		}
	}
	var points []int
	for i, group := range groups {
		b.rng.Shuffle(len(group), func(i, j int) { group[i], group[j] = group[j], group[i] })
		chosen := group[:min(len(group), n-len(points))]
		points = append(points, chosen...)
		b.Logf("%d of %d points at %s", len(chosen), len(group), [...]string{"marks", "FUA", "FLUSH", "other writes"}[i])
	}
	slices.Sort(points)
	return slices.Compact(points)
}

// tears says between which blocks a write may be torn: between sectors. But of file systems, which do not all
// stand that within a block of theirs, between those of 4 KiB.
func tears(off int64) int64 {
	if off < lossFiles {
		return 4 * kib
	}
	return sector
}

// check is what must hold at point p.
func (b *lossBench) check(entries []logEntry, p int, image []byte, complete bool) {
	b.Helper()
	report, err := metadata.Check(snapshot(image[lossDest:]))
	if err != nil || !report.OK() {
		b.Fatalf("metadata: %v, %+v", err, report)
	}
	b.writeImage(image)
	b.clone.add()
	b.raw.check(b, b.clone.path, entries, p)
	b.files.check(b, b.clone.path, entries, p)
	if complete {
		b.clone.setting("rate=none") // the metadata keep the one that was set: three minutes a point
		b.clone.hydrateFast()
		b.clone.waitHydrated()
	}
	b.clone.del()
	if complete {
		b.raw.check(b, b.dest.path, entries, p)
		b.files.check(b, b.dest.path, entries, p)
	}
}

// survives is what the power leaves of what was not flushed: all of it now and then, else a part.
func (b *lossBench) survives() func(*logEntry, int64) bool {
	if b.rng.IntN(4) == 0 {
		return func(*logEntry, int64) bool { return true }
	}
	return subset(b.rng, tears)
}

func newReplay(entries []logEntry) *replay {
	r := &replay{entries: entries, durable: make([]byte, lossDest+lossMetadata)}
	fill(r.durable[:lossDest], 0, junk)
	return r
}

// examineAll looks, without a clone, at what is behind the file system in front of each FLUSH and behind each entry
// that changes something there: the metadata say for each region where its bytes are.
func (b *lossBench) examineAll(entries []logEntry) {
	b.Helper()
	r := &replay{entries: behindFiles(entries), durable: make([]byte, lossRaw+lossMetadata)}
	fill(r.durable[:lossRaw], lossFiles, junk)
	looked := 0
	for p := b.up(entries); p < len(entries); p++ {
		if r.entries[p-1].length == 0 && !r.entries[p].is(logFlush) {
			continue
		}
		looked++
		image := r.image(p, b.survives())
		if err := b.raw.compare(b.cloneOf(image), lossFiles/sector, b.raw.at(entries, p)); err != nil {
			b.Fatalf("in front of entry %d: %v", p, err)
		}
	}
	b.Logf("looked at %d points behind the file system", looked)
}

// behindFiles are the entries with what they do behind the file system only, as of a disk that begins there.
func behindFiles(entries []logEntry) []logEntry {
	cut := slices.Clone(entries)
	for i := range cut {
		e := &cut[i]
		skip := min(max(0, lossFiles-e.off), e.length)
		if len(e.data) > 0 {
			e.data = e.data[skip:]
		}
		e.off, e.length = max(0, e.off-lossFiles), e.length-skip
	}
	return cut
}

// cloneOf is what a clone shows of an image of what is behind the file system.
func (b *lossBench) cloneOf(image []byte) []byte {
	b.Helper()
	regions, content := b.mapOf(image[lossRaw:]), image[:lossRaw]
	for off := int64(0); off < lossRaw; off += lossRegion {
		part := content[off : off+lossRegion]
		switch regions.State(uint64((lossFiles + off) / lossRegion)) {
		case bitmap.Zero:
			fill(part, lossFiles+off, zeros)
		case bitmap.Source:
			fill(part, lossFiles+off, original)
		}
	}
	return content
}

func (b *lossBench) writeImage(image []byte) {
	b.Helper()
	v := b.open(b.crashed.path, os.O_WRONLY)
	defer v.close()
	buf, free := b.scratch(ioSize)
	defer free()
	for off := int64(0); off < int64(len(image)); off += ioSize {
		if err := v.write(buf[:copy(buf, image[off:])], off); err != nil {
			b.Fatal(err)
		}
	}
}

// otherBoot makes the machine one that was started again, as far as a daemon can see.
func (m *machine) otherBoot() {
	m.Helper()
	id := filepath.Join(m.dir, "boot_id")
	if err := os.WriteFile(id, []byte("0b0e0b0e-0000-4000-8000-000000000001\n"), 0o444); err != nil {
		m.Fatal(err)
	}
	const path = "/proc/sys/kernel/random/boot_id"
	if err := unix.Mount(id, path, "", unix.MS_BIND, ""); err != nil {
		m.Fatalf("hide the boot id: %v", err)
	}
	m.Cleanup(func() { unix.Unmount(path, 0) })
}

// completeEvery is how many points there are to one at which the clone is hydrated to the end.
const completeEvery = 8

func testPowerLoss(t *testing.T, kind fsKind) {
	b := newLossBench(newMachine(t), kind)
	entries := b.use()
	b.examineAll(entries)
	points := b.points(entries, count(10, 300))
	r := newReplay(entries)
	b.otherBoot()
	dest, meta := b.halves("crashed", b.crashed)
	b.dest, b.clone = dest, b.newClone(b.source, dest, meta, "--no-hydration")
	for i, p := range points {
		t.Logf("point %d: in front of entry %d", i, p)
		b.check(entries, p, r.image(p, b.survives()), i%completeEvery == 0)
	}
	t.Logf("%d entries, %d points", len(entries), len(points))
}

func TestPowerLossExt4(t *testing.T) {
	runs.On(t, "6.12", runs.OwnGuestInFull)
	testPowerLoss(t, ext4)
}

func TestPowerLossXFS(t *testing.T) {
	runs.On(t, "6.18", runs.OwnGuestInFull)
	testPowerLoss(t, xfs)
}
