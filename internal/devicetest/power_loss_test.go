//go:build device

package devicetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// Power loss. Destination and metadata are parts of one disk whose writes are logged. A file system
// on the clone and a stretch behind it are written, flushed, discarded and zeroed while the clone
// is hydrated, and what was acknowledged as durable is marked in the log. Then the disk is made as
// the power may have left it at points of the log, and what is there must be what was promised (I4,
// I5): the metadata open, the clone serves, every sector holds its newest durable version or one
// that was issued later, and the file system mounts and has no fault.

const (
	lossFiles    = 32 * harness.MiB // bytes of the clone that the file system has: two groups of XFS, or its tool refuses to look
	lossRaw      = 2 * harness.MiB  // and what is written without one, behind it
	lossDest     = lossFiles + lossRaw
	lossMetadata = harness.MiB
	lossRegion   = 16 * harness.KiB
)

// lossBench is the clone that is used, and the one of what the power has left.
type lossBench struct {
	*harness.Machine
	rng     *rand.Rand
	kind    harness.FSKind
	source  *harness.Disk
	log     harness.WriteLog
	crashed *harness.Disk // a disk like the logged one, in parts again
	dest    *harness.Disk
	clone   *harness.Clone // over the parts of crashed
	files   *fileStream
	raw     *rawStream
}

// halves makes the parts of a disk.
func halves(m *harness.Machine, name string, d *harness.Disk) (dest, metadata *harness.Disk) {
	m.Helper()
	dest = m.Linear(name+"dst", d, lossDest)
	metadata = m.Mapper(name+"meta", fmt.Sprintf("0 %d linear %s %d", lossMetadata/harness.Sector, d.Path, lossDest/harness.Sector))
	return dest, metadata
}

func newLossBench(m *harness.Machine, kind harness.FSKind) *lossBench {
	const mibs = (lossDest + lossMetadata) / harness.MiB
	b := &lossBench{Machine: m, rng: m.Random(), kind: kind, source: m.NullBlk("src", harness.NullOptions{MiB: lossDest / harness.MiB})}
	b.files = newFileStream(b)
	m.FillPart(b.source, lossFiles, lossDest, harness.Original) // now: mkfs.xfs clears the end of the disk
	under := m.NullBlk("disk", harness.NullOptions{MiB: mibs, Discard: true})
	m.FillPart(under, 0, lossDest, harness.Junk)
	b.log = m.Logged("logged", under, m.NullBlk("log", harness.NullOptions{MiB: 1024}))
	b.crashed = m.NullBlk("crashed", harness.NullOptions{MiB: mibs, Discard: true})
	return b
}

// use is the life of the clone that is logged.
func (b *lossBench) use() []harness.LogEntry {
	b.Helper()
	dest, meta := halves(b.Machine, "logged", b.log.Disk)
	c := b.AddClone(b.source, dest, meta, "--region-size", harness.KiBText(lossRegion), "--rate", harness.KiBText(int64(harness.Count(1024, 192))*harness.KiB)+"/s")
	b.files.Mount(c.Path)
	b.raw = &rawStream{stream: newStream("raw"), v: b.Open(c.Path, os.O_RDWR), buf: b.Buffer(harness.IOSize), mark: b.log.Mark,
		rng: rand.New(rand.NewPCG(b.rng.Uint64(), 1))}
	b.mark("up")
	raw := make(chan error, 1)
	go func() { raw <- b.raw.run(harness.Count(40, 200)) }()
	err := b.files.run(harness.Count(4, 50))
	if rawErr := <-raw; err != nil || rawErr != nil {
		b.Fatalf("files: %v; behind them: %v", err, rawErr)
	}
	b.raw.v.Close()
	b.files.Unmount()
	b.Logf("%+v", c.Status().Bytes)
	c.Del()
	b.mark("end")
	return b.log.Read()
}

func (b *lossBench) mark(text string) {
	b.Helper()
	if err := b.log.Mark(text); err != nil {
		b.Fatal(err)
	}
}

// up is the entry from which on the clone is there.
func (b *lossBench) up(entries []harness.LogEntry) int {
	return slices.IndexFunc(entries, func(e harness.LogEntry) bool { return e.Mark == "up" })
}

// points chooses n places of the log: behind all marks, then in front of and behind what has FUA,
// then in front of FLUSHes, where most is in doubt, then any.
func (b *lossBench) points(entries []harness.LogEntry, n int) []int {
	b.Helper()
	var groups [4][]int
	for i := b.up(entries); i < len(entries); i++ {
		switch e := &entries[i]; {
		case e.Is(harness.LogMark):
			groups[0] = append(groups[0], i+1)
		case e.Is(harness.LogFUA):
			groups[1] = append(groups[1], i, i+1)
		case e.Is(harness.LogFlush):
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

// tears says between which blocks a write may be torn: between sectors. But of file systems, which
// do not all stand that within a block of theirs, between those of 4 KiB.
func tears(off int64) int64 {
	if off < lossFiles {
		return 4 * harness.KiB
	}
	return harness.Sector
}

// check is what must hold at point p.
func (b *lossBench) check(entries []harness.LogEntry, p int, image []byte, complete bool) {
	b.Helper()
	report, err := metadata.Check(snapshot(image[lossDest:]))
	if err != nil || !report.OK() {
		b.Fatalf("metadata: %v, %+v", err, report)
	}
	b.writeImage(image)
	b.clone.Add()
	b.raw.check(b, b.clone.Path, entries, p)
	b.files.check(b, b.clone.Path, entries, p)
	if complete {
		b.clone.Setting("rate=none") // the metadata keep the one that was set: three minutes a point
		b.clone.HydrateFast()
		b.clone.WaitHydrated()
	}
	b.clone.Del()
	if complete {
		b.raw.check(b, b.dest.Path, entries, p)
		b.files.check(b, b.dest.Path, entries, p)
	}
}

// survives is what the power leaves of what was not flushed: all of it now and then, else a part.
func (b *lossBench) survives() func(*harness.LogEntry, int64) bool {
	if b.rng.IntN(4) == 0 {
		return func(*harness.LogEntry, int64) bool { return true }
	}
	return subset(b.rng, tears)
}

func newReplay(entries []harness.LogEntry) *replay {
	r := &replay{entries: entries, durable: make([]byte, lossDest+lossMetadata)}
	harness.Fill(r.durable[:lossDest], 0, harness.Junk)
	return r
}

// compareAll looks, without a clone, at what is behind the file system in front of each FLUSH and
// behind each entry that changes something there: the metadata says for each region where its bytes
// are.
func (b *lossBench) compareAll(entries []harness.LogEntry) {
	b.Helper()
	r := &replay{entries: behindFiles(entries), durable: make([]byte, lossRaw+lossMetadata)}
	harness.Fill(r.durable[:lossRaw], lossFiles, harness.Junk)
	looked := 0
	for p := b.up(entries); p < len(entries); p++ {
		if r.entries[p-1].Length == 0 && !r.entries[p].Is(harness.LogFlush) {
			continue
		}
		looked++
		image := r.image(p, b.survives())
		if err := b.raw.compare(b.cloneOf(image), lossFiles/harness.Sector, b.raw.at(entries, p)); err != nil {
			b.Fatalf("in front of entry %d: %v", p, err)
		}
	}
	b.Logf("looked at %d points behind the file system", looked)
}

// behindFiles are the entries with what they do behind the file system only, as of a disk that
// begins there.
func behindFiles(entries []harness.LogEntry) []harness.LogEntry {
	cut := slices.Clone(entries)
	for i := range cut {
		e := &cut[i]
		skip := min(max(0, lossFiles-e.Off), e.Length)
		if len(e.Data) > 0 {
			e.Data = e.Data[skip:]
		}
		e.Off, e.Length = max(0, e.Off-lossFiles), e.Length-skip
	}
	return cut
}

// cloneOf is what a clone shows of an image of what is behind the file system.
func (b *lossBench) cloneOf(image []byte) []byte {
	b.Helper()
	regions, content := mapOf(b.Machine, image[lossRaw:]), image[:lossRaw]
	for off := int64(0); off < lossRaw; off += lossRegion {
		part := content[off : off+lossRegion]
		switch regions.State(uint64((lossFiles + off) / lossRegion)) {
		case bitmap.Zero:
			harness.Fill(part, lossFiles+off, harness.Zeros)
		case bitmap.Source:
			harness.Fill(part, lossFiles+off, harness.Original)
		}
	}
	return content
}

func (b *lossBench) writeImage(image []byte) {
	b.Helper()
	v := b.Open(b.crashed.Path, os.O_WRONLY)
	defer v.Close()
	buf, free := b.Scratch(harness.IOSize)
	defer free()
	for off := int64(0); off < int64(len(image)); off += harness.IOSize {
		if err := v.Write(buf[:copy(buf, image[off:])], off); err != nil {
			b.Fatal(err)
		}
	}
}

// completeEvery is how many points there are to one at which the clone is hydrated to the end.
const completeEvery = 8

func testPowerLoss(t *testing.T, kind harness.FSKind) {
	b := newLossBench(harness.New(t), kind)
	entries := b.use()
	b.compareAll(entries)
	points := b.points(entries, harness.Count(10, 300))
	r := newReplay(entries)
	b.OtherBoot()
	dest, meta := halves(b.Machine, "crashed", b.crashed)
	b.dest, b.clone = dest, b.NewClone(b.source, dest, meta, "--no-hydration")
	for i, p := range points {
		t.Logf("point %d: in front of entry %d", i, p)
		b.check(entries, p, r.image(p, b.survives()), i%completeEvery == 0)
	}
	t.Logf("%d entries, %d points", len(entries), len(points))
}

func TestPowerLossExt4(t *testing.T) {
	runs.On(t, "6.12", runs.Layered, runs.OwnGuestInFull, runs.Sampled)
	testPowerLoss(t, harness.Ext4)
}

func TestPowerLossXFS(t *testing.T) {
	runs.On(t, "6.18", runs.Layered, runs.OwnGuestInFull, runs.Sampled)
	testPowerLoss(t, harness.XFS)
}
