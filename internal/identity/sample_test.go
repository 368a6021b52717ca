package identity

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

const (
	ofUsers = metadata.SampleWritten
	oneByte = metadata.SampleUniform
	atRest  = metadata.SampleSteady
)

// TestJudge: which of the blocks count, and how many of them must be there.
func TestJudge(t *testing.T) {
	type group struct {
		n, there int
		flags    uint64
	}
	for _, c := range []struct {
		name   string
		groups []group
		exact  bool
		want   bool
	}{
		{"nothing known", nil, false, true},
		{"all there", []group{{48, 48, 0}}, true, true},
		{"one is another, after a clean stop", []group{{48, 47, 0}}, true, false},
		{"one is another, after a power cut", []group{{48, 47, 0}}, false, true},
		{"users wrote most", []group{{48, 6, 0}}, false, true},
		{"hardly one is there", []group{{48, 5, 0}}, false, false},
		{"none is there", []group{{48, 0, 0}}, false, false},
		{"none of few is there", []group{{1, 0, 0}}, false, false},
		{"one of few is there", []group{{3, 1, 0}}, false, true},
		{"another clone of the source: what users wrote is not there", []group{{12, 12, atRest}, {36, 0, ofUsers | atRest}}, false, false},
		{"users wrote again what they wrote, but for a part", []group{{12, 12, atRest}, {36, 5, ofUsers | atRest}}, false, true},
		{"users wrote again all that they had just written", []group{{12, 12, atRest}, {36, 0, ofUsers}}, false, true},
		{"too few were written to tell", []group{{12, 12, atRest}, {3, 0, ofUsers | atRest}}, false, true},
		{"what is steady counts more", []group{{40, 40, 0}, {4, 0, atRest}}, false, false},
		{"zeros are everywhere", []group{{16, 16, oneByte}, {8, 0, 0}}, false, false},
		{"zeros that users wrote tell no more", []group{{16, 16, oneByte | ofUsers}, {8, 0, 0}}, false, false},
		{"only zeros, and they are not there", []group{{16, 0, oneByte}}, false, false},
		{"only zeros", []group{{16, 16, oneByte}}, false, true},
	} {
		var blocks, found []metadata.SampleBlock
		for _, g := range c.groups {
			for i := range g.n {
				b := metadata.SampleBlock{Place: uint64(len(blocks))<<12 | g.flags | metadata.SampleUsed, Sum: 1}
				blocks = append(blocks, b)
				if i >= g.there {
					b.Sum = 2
				}
				found = append(found, b)
			}
		}
		if there, n, got := judge(blocks, found, c.exact); got != c.want {
			t.Errorf("%s: %v with %d of %d", c.name, got, there, n)
		}
	}
	unread := []metadata.SampleBlock{{Place: 1, Sum: 1}, {Place: 4097, Sum: 1}}
	if _, n, got := judge(unread, []metadata.SampleBlock{{}, {Place: 4097, Sum: 1}}, true); n != 1 || !got {
		t.Errorf("a block that cannot be read counts: %d, %v", n, got)
	}
}

// sampleBench is a destination of random content, hydrated throughout, and its sample.
type sampleBench struct {
	t    *testing.T
	rng  *rand.Rand
	dest *blockdev.Device
	DestSample
}

const sampleBenchSize = 1 << 20

func newSampleBench(t *testing.T) *sampleBench {
	dest, err := blockdev.Open(blockdev.Dest, filepath.Join(t.TempDir(), "dest"), blockdev.Options{Create: true, Size: sampleBenchSize, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dest.Close() })
	b := &sampleBench{t: t, rng: rand.New(rand.NewPCG(1, 1)), dest: dest}
	geo, err := clone.NewGeometry(sampleBenchSize, 4096)
	if err != nil {
		t.Fatal(err)
	}
	regions := bitmap.New(geo.Regions(), make([]bitmap.Page, bitmap.PagesFor(geo.Regions())))
	regions.Mark(bitmap.PlaneHydrated, 0, geo.Regions(), bitmap.NewDelta(regions.NrPages(), int(regions.NrPages())))
	b.begun = time.Now()
	b.core = clone.New(clone.Config{Geometry: geo, Map: regions, Kick: func() {}, Event: func() {}})
	b.DestSample.dest, b.size, b.quit = dest, sampleBenchSize, make(chan struct{})
	b.fill(0, sampleBenchSize)
	return b
}

// fill gives a stretch new content.
func (b *sampleBench) fill(off, length int64) {
	p := make([]byte, length)
	for i := range p {
		p[i] = byte(b.rng.Uint32())
	}
	b.put(off, p)
}

func (b *sampleBench) put(off int64, p []byte) {
	b.t.Helper()
	m, err := sys.Map(len(p), false)
	if err != nil {
		b.t.Fatal(err)
	}
	defer m.Close()
	copy(m.Bytes(), p)
	if _, err := b.dest.File().WriteAt(m.Bytes(), off); err != nil {
		b.t.Fatal(err)
	}
}

// TestSampleKeepsWhatUsersLeaveAlone: a block that changes once is of users, one that changes again
// goes; in an exact sample it stays, as it is then.
func TestSampleKeepsWhatUsersLeaveAlone(t *testing.T) {
	b := newSampleBench(t)
	if !b.read(false) || len(b.blocks) != metadata.SampleBlocks || b.count(ofUsers) != 0 {
		t.Fatalf("%d blocks, %d written", len(b.blocks), b.count(ofUsers))
	}
	if b.read(false) {
		t.Error("nothing has changed, and the sample is said to have")
	}
	off := b.blocks[7].Offset()
	b.fill(off, metadata.BlockSize)
	if !b.read(false) || b.count(ofUsers) != 1 || !b.has(off) {
		t.Fatalf("after a write: %d are written, the block is in the sample: %v", b.count(ofUsers), b.has(off))
	}
	b.fill(off, metadata.BlockSize)
	if b.read(true); !b.has(off) {
		t.Error("it is not in the exact sample")
	}
	b.fill(off, metadata.BlockSize)
	b.read(false)
	for _, block := range b.blocks {
		if block.Offset() == off && block.Is(ofUsers) {
			t.Error("a block that changes each time is kept as one of users")
		}
	}
	blocks := b.table(true).Used()
	found, err := readSample(b.dest, blocks, destReadLimit)
	if _, n, ok := judge(blocks, found, true); err != nil || !ok || n != metadata.SampleBlocks {
		t.Errorf("the sample is not what is there: %v, %v", err, ok)
	}
}

// TestSamplePrefersWhatTells: blocks of one byte give way.
func TestSamplePrefersWhatTells(t *testing.T) {
	b := newSampleBench(t)
	b.put(0, make([]byte, sampleBenchSize))
	b.read(false)
	if n := b.count(oneByte); n != mostUniform || len(b.blocks) != n {
		t.Fatalf("%d of %d blocks are zeros, expected %d", n, len(b.blocks), mostUniform)
	}
	b.fill(0, sampleBenchSize/2)
	for range 12 {
		b.read(false)
	}
	if n := b.count(oneByte); n > 0 || len(b.blocks) != metadata.SampleBlocks {
		t.Errorf("%d of %d blocks are zeros", n, len(b.blocks))
	}
}

// TestSampleTellsWhatIsSteady: of a daemon that has served for long, blocks that may change any
// moment are not told.
func TestSampleTellsWhatIsSteady(t *testing.T) {
	b := newSampleBench(t)
	b.read(false)
	if n := len(b.table(false).Used()); n != metadata.SampleBlocks {
		t.Errorf("at first %d blocks are told", n)
	}
	b.begun = time.Now().Add(-time.Hour)
	if n := len(b.table(false).Used()); n != 0 {
		t.Errorf("after an hour %d blocks are told that are not steady", n)
	}
	for i := range b.blocks[:10] {
		b.blocks[i].since = time.Now().Add(-steadyAfter * sampleSeldom)
	}
	b.fill(b.blocks[3].Offset(), metadata.BlockSize)
	if !b.read(false) || len(b.table(false).Used()) != 9 {
		t.Errorf("%d blocks are steady, expected 9", len(b.table(false).Used()))
	}
}

// TestSampleIsDurableAfterACommit: what was read counts when a commit that began later has
// succeeded.
func TestSampleIsDurableAfterACommit(t *testing.T) {
	b := newSampleBench(t)
	b.first, b.begun = make(chan struct{}, 1), time.Now()
	b.read(false)
	known := func() int {
		s := b.Known(1)
		return len(s.Blocks.Used())
	}
	if b.Begin() || b.End(nil) || known() != 0 {
		t.Error("a commit without a new sample has made one durable")
	}
	b.publish()
	if !b.Begin() || b.End(errors.New("a flush has failed")) || known() != 0 {
		t.Error("a commit that failed has made it durable")
	}
	if !b.Begin() || known() != 0 || !b.End(nil) || known() != metadata.SampleBlocks {
		t.Errorf("after a commit %d blocks are known", known())
	}
}

// TestKnowDest: which destinations are refused, whatever their content.
func TestKnowDest(t *testing.T) {
	b := newSampleBench(t)
	b.read(false)
	e := &DestCheck{Dest: b.dest, Sample: &DestSample{}, Warn: func(string, ...any) {}}
	instance := DestInstance(b.dest, 0)
	instance.Session = 5
	other := instance
	other.Disk++
	table := *b.table(true)
	wrong := table
	for i := range wrong {
		wrong[i].Sum++
	}
	here := metadata.UUID{1}
	for _, c := range []struct {
		name   string
		change func(*metadata.Superblock)
		says   string // of the refusal, "" for none
	}{
		{"the instance is right: the content is not looked at", func(sb *metadata.Superblock) { sb.DestSample.Blocks = wrong }, ""},
		{"another boot", func(sb *metadata.Superblock) { sb.BootID = metadata.UUID{2} }, ""},
		{"another boot, other content", func(sb *metadata.Superblock) { sb.BootID, sb.DestSample.Blocks = metadata.UUID{2}, wrong }, "0 of 48"},
		{"another disk", func(sb *metadata.Superblock) { sb.DestInstance, sb.DestSample.Blocks = other, wrong }, "0 of 48"},
		{"the same disk again, put in elsewhere", func(sb *metadata.Superblock) { sb.DestInstance = other }, ""},
		{"another disk, nothing known of its content", func(sb *metadata.Superblock) { sb.DestInstance, sb.DestSample = other, metadata.DestSample{} }, "block device"},
		{"the same, but it has a serial number", func(sb *metadata.Superblock) {
			sb.DestInstance, sb.DestSample, sb.Dest.ID = other, metadata.DestSample{}, "serial:1"
		}, ""},
		{"instances and sample of a session before a downgrade", func(sb *metadata.Superblock) {
			sb.Session, sb.DestInstance, sb.DestSample.Blocks = 6, other, wrong
		}, ""},
		{"a clean stop, one block changed", func(sb *metadata.Superblock) {
			sb.Clean, sb.DestSample.ExactAt, sb.DestSample.Blocks[3].Sum = true, sb.Sequence, 0
		}, "somebody has written"},
		{"the same, but it was complete, and may be in use", func(sb *metadata.Superblock) {
			sb.Clean, sb.Complete, sb.DestSample.ExactAt, sb.DestSample.Blocks[3].Sum = true, true, sb.Sequence, 0
		}, ""},
		{"the same, of a sample that was not brought up to date", func(sb *metadata.Superblock) {
			sb.Clean, sb.DestSample.ExactAt, sb.DestSample.Blocks[3].Sum = true, sb.Sequence-1, 0
		}, ""},
		{"a file that was made at another time", func(sb *metadata.Superblock) {
			sb.BootID, sb.DestSample, sb.DestInstance.Birth = metadata.UUID{2}, metadata.DestSample{}, instance.Birth+1
		}, "another time"},
	} {
		sb := &metadata.Superblock{
			State: metadata.State{Session: 5}, Sequence: 9, Host: metadata.Host{BootID: here}, DestInstance: instance,
			DestSample: metadata.DestSample{Session: 5, Blocks: table},
		}
		c.change(sb)
		err := e.Know(sb, &metadata.Superblock{Host: metadata.Host{BootID: here}})
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.says != "" && (exit.Code(err) != exit.Refused || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: found %v, expected a refusal that says %q", c.name, err, c.says)
		}
		e.Force = true
		if err := e.Know(sb, &metadata.Superblock{Host: metadata.Host{BootID: here}}); err != nil {
			t.Errorf("%s, forced: %v", c.name, err)
		}
		e.Force = false
	}
}
