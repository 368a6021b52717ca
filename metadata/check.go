package metadata

import (
	"errors"
	"fmt"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// Problem is something wrong that Check found.
type Problem struct {
	Offset int64  `json:"offset"` // bytes from the start of the device
	What   string `json:"what"`
	Fatal  bool   `json:"fatal"` // the metadata cannot be opened
}

// CheckReport is what Check found.
type CheckReport struct {
	Superblock Superblock `json:"superblock"` // the copy that wins; zero if there is none
	Pages      uint64     `json:"pages"`      // pages of the region map
	PagesUsed  uint64     `json:"pages_used"` // pages that are not empty
	Hydrated   uint64     `json:"hydrated"`   // regions in H
	Zero       uint64     `json:"zero"`       // regions in Z and not in H
	Problems   []Problem  `json:"problems"`

	sum uint64
}

// OK reports whether the metadata can be opened, whatever the warnings.
func (r *CheckReport) OK() bool {
	for _, p := range r.Problems {
		if p.Fatal {
			return false
		}
	}
	return true
}

func (r *CheckReport) add(off int64, fatal bool, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{Offset: off, Fatal: fatal, What: fmt.Sprintf(format, args...)})
}

// Check reads all of the metadata, writes nothing, and names what is wrong: which copy of
// the superblock, which slot, where. Its error is ErrEmpty or the device's; damage is in
// the report. Each slot is described by itself, so one page may give several problems.
func Check(dev Device) (CheckReport, error) {
	var r CheckReport
	buf := newScratch(dev)
	found, err := r.checkSuperblock(dev, buf)
	if err != nil || !found {
		return r, err
	}
	sb := &r.Superblock
	r.Pages = bitmap.PagesFor(sb.NrRegions)
	if need := Size(sb.NrRegions); dev.Size() < need {
		r.add(dev.Size(), true, "device of %d bytes, the metadata needs %d", dev.Size(), need)
		return r, nil
	}
	if err := walk(dev, buf, sb, r.checkPage); err != nil {
		return r, fmt.Errorf("check metadata: %w", err)
	}
	r.checkTotals()
	return r, nil
}

// checkSuperblock describes both copies and reports whether one of them can be used.
func (r *CheckReport) checkSuperblock(dev Device, buf []byte) (found bool, err error) {
	copies := readCopies(dev, buf)
	winner, warnings, err := pick(&copies)
	if errors.Is(err, ErrEmpty) {
		return false, fmt.Errorf("check metadata: %w", err)
	}
	for i := range copies {
		if c := &copies[i]; c.err != nil {
			r.add(copyOffset(i), err != nil, "superblock copy %d: %v", i, c.err)
		}
	}
	if err != nil {
		if copies[0].err == nil && copies[1].err == nil {
			r.add(copyOffset(0), true, "%v", err)
		}
		return false, nil
	}
	if copies[1-winner].err == nil && len(warnings) > 0 {
		r.add(copyOffset(1-winner), false, "%s", warnings[0])
	}
	r.Superblock = copies[winner].sb
	return true, nil
}

// checkPage takes one page that is not empty.
func (r *CheckReport) checkPage(page uint64, slots *[2]slot) error {
	winner, err := judge(page, slots)
	for i := range slots {
		if e := slots[i].err; e != nil {
			r.add(slotOffset(page, i), err != nil, "page %d slot %d: %v", page, i, e)
		}
	}
	if err != nil && slots[0].err == nil {
		r.add(slotOffset(page, 0), true, "%v", err)
	}
	if winner < 0 {
		return nil
	}
	w := &slots[winner]
	hydrated, zero := w.img.Counts()
	r.PagesUsed++
	r.Hydrated += hydrated
	r.Zero += zero
	r.sum += mix(page, w.sequence)
	return nil
}

// checkTotals compares what the superblock says of the map with the map.
func (r *CheckReport) checkTotals() {
	sb := &r.Superblock
	if sb.Clean && r.OK() && r.sum != sb.MapSum {
		r.add(sb.MapOffset, true, "clean, but map sum: found %016x, expected %016x: slots are lost or older than they were",
			r.sum, sb.MapSum)
	}
	if sb.Complete && r.Hydrated != sb.NrRegions {
		r.add(sb.MapOffset, false, "hydration complete, but %d of %d regions are hydrated", r.Hydrated, sb.NrRegions)
	}
}
