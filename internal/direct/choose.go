package direct

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/dm"
)

// What may go direct: runs long enough to be worth a target, cut to boundaries that every device
// likes, and no more than a table looks up in a few steps.
const (
	Unit     = 1 << 20 // bytes, to whose multiples extents are cut
	leastRun = 4 << 20
	most     = 256
)

// Choose gives the extents that may go direct, in order, of a device of that many bytes. each visits
// what is durably hydrated, in order; stretches may touch. The last unit stays.
func Choose(size int64, each func(visit func(off, length int64))) []dm.Extent {
	c := chooser{end: (size - 1) / Unit * Unit}
	var run dm.Extent
	each(func(off, length int64) {
		if off == run.End() {
			run.Length += length
			return
		}
		c.add(run)
		run = dm.Extent{Off: off, Length: length}
	})
	c.add(run)
	c.longest()
	slices.SortFunc(c.found, func(a, b dm.Extent) int { return cmp.Compare(a.Off, b.Off) })
	return c.found
}

// chooser keeps the longest runs.
type chooser struct {
	end   int64 // nothing behind it
	found []dm.Extent
}

// add takes a run, cut to whole units, if it is long enough.
func (c *chooser) add(run dm.Extent) {
	first, end := (run.Off+Unit-1)/Unit*Unit, min(run.End(), c.end)/Unit*Unit
	if end-first < leastRun {
		return
	}
	if c.found = append(c.found, dm.Extent{Off: first, Length: end - first}); len(c.found) >= 8*most {
		c.longest()
	}
}

func (c *chooser) longest() {
	if len(c.found) > most {
		slices.SortStableFunc(c.found, func(a, b dm.Extent) int { return cmp.Compare(b.Length, a.Length) })
		c.found = c.found[:most]
	}
}

// Bytes is how much extents cover.
func Bytes(extents []dm.Extent) (n int64) {
	for _, e := range extents {
		n += e.Length
	}
	return n
}

// When an exchange is worth that its users wait for a moment.
const (
	Pause     = 10 * time.Second // between two choices, and so between two exchanges
	Again     = 2 * time.Second  // before another try of one for which requests at work have not ended in time
	fraction  = 20               // of the device becomes direct: a twentieth
	someBytes = 64 << 20         // become direct, and the last exchange was long ago
	longAgo   = 5 * time.Minute
	growth    = 4 // times as much is direct afterwards, if hydration goes on and it is less than a twentieth
)

// Progress is what says whether it is time for an exchange.
type Progress struct {
	Size, Direct, More  int64         // bytes: of the device, direct now, and direct after it beyond that
	Since               time.Duration // the last exchange, or the last try
	Hydrating, Complete bool          // more comes by itself; no more is to come
}

// Worth says whether it is time. While hydration goes on, less than a twentieth is worth it only
// while little is direct: however slow it is, it has about as many exchanges as a fast one. What
// users alone hydrate does not come to much, and is what they use.
func (p Progress) Worth() bool {
	switch {
	case p.Since < Pause || p.More <= 0:
		return false
	case p.Complete, p.More >= p.Size/fraction:
		return true
	case p.Hydrating && p.More < (growth-1)*p.Direct:
		return false
	}
	return p.More >= someBytes && p.Since >= longAgo
}

// WorthLater says whether that may become true by itself, as time goes by.
func (p Progress) WorthLater() bool {
	p.Since = longAgo
	return p.Worth()
}

// Limits are what the layer's users go by, of the clone's block device or of the destination.
type Limits struct {
	LogicalBlock, DMAAlignment int64 // bytes
	Discards                   bool
}

// LimitsAt are those of the block device with that directory in sysfs; a partition has its disk's.
func LimitsAt(dir string) (l Limits, err error) {
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir += "/.." // a link is followed first
	}
	number := func(attribute string) int64 {
		text, errRead := os.ReadFile(dir + "/queue/" + attribute)
		n, errParse := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		err = cmp.Or(err, errRead, errParse)
		return n
	}
	l.LogicalBlock, l.DMAAlignment = number("logical_block_size"), number("dma_alignment")+1
	l.Discards = number("discard_max_bytes") > 0
	return l, err
}

// Fit says why the layer would be another device to its users when extents of it lead to the
// destination, nil if it would not. Its limits are those of both, together.
func (clone Limits) Fit(dest Limits) error {
	switch {
	case dest.LogicalBlock > clone.LogicalBlock:
		return fmt.Errorf("the destination has logical blocks of %d bytes, the clone of %d", dest.LogicalBlock, clone.LogicalBlock)
	case dest.DMAAlignment > clone.DMAAlignment:
		return fmt.Errorf("the destination wants memory aligned to %d bytes, the clone to %d", dest.DMAAlignment, clone.DMAAlignment)
	case clone.Discards && !dest.Discards:
		return fmt.Errorf("the destination takes no discards, and the clone does")
	}
	return nil
}
