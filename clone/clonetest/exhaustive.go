package clonetest

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// crashes checks, after every event of a run, every power loss that could come now: each choice of
// what the disks keep of each unflushed sector.
//
// The choices are not multiplied where that would show nothing new. After a power loss a sector of
// the clone is decided by its region's state, which the metadata alone tell, and by one sector of
// the destination. So for each map that some choice of the metadata's sectors leaves, each sector
// is looked at by itself, with each of its versions: together that is every choice. Versions of the
// same content are one.
type crashes struct {
	sim  *sim
	maps [][]bitmap.State // of each region, that may be found now

	metaCalls, destCalls, now int // when it was last looked
	meta                      *fakedisk.Disk
	checked                   int // power losses, as sectors in one of their versions
}

// check is for sim.each.
func (x *crashes) check() error {
	d, o := x.sim.disks, x.sim.oracle
	if x.meta != d.meta || x.metaCalls != d.meta.Calls() {
		if err := x.findMaps(); err != nil {
			return fmt.Errorf("open after power loss: %w", err)
		}
	} else if x.destCalls == d.dest.Calls() && x.now == o.now {
		return nil
	}
	x.meta, x.metaCalls, x.destCalls, x.now = d.meta, d.meta.Calls(), d.dest.Calls(), o.now
	for _, states := range x.maps {
		if err := x.checkMap(states); err != nil {
			return err
		}
	}
	return nil
}

// checkMap looks at each sector in each of its versions.
func (x *crashes) checkMap(states []bitmap.State) (first error) {
	d, o := x.sim.disks, x.sim.oracle
	x.sim.area.each(func(sector int64, i int) {
		var values []value
		var err error
		switch states[o.geo.Region(sector*sectorBytes)] {
		case bitmap.Source:
			var v value
			v, err = look(d.source, sector)
			values = append(values, v)
		case bitmap.Zero:
			values = append(values, valueZeros)
		default:
			values, err = versions(d.dest, sector)
		}
		for _, v := range values {
			x.checked++
			if err == nil && !o.mayHold(i, v) {
				err = errNotAllowed
			}
			if err != nil && first == nil {
				first = o.wrong(sector, fmt.Sprintf("a power loss now may leave regions in %v and", states), v, err)
			}
		}
	})
	return first
}

// versions gives what a sector may hold after a power loss.
func versions(d *fakedisk.Disk, sector int64) (values []value, err error) {
	var buf [sectorBytes]byte
	for i := range d.Versions(sector) {
		d.Version(sector, i, buf[:])
		v, e := decode(buf[:], sector)
		if e != nil {
			return []value{v}, e
		}
		values = append(values, v)
	}
	return values, nil
}

// findMaps opens the metadata after every choice of their unflushed sectors.
func (x *crashes) findMaps() error {
	x.maps = x.maps[:0]
	meta := x.sim.disks.meta
	var distinct [][]int // by unflushed sector, its versions that differ
	for _, u := range meta.Unflushed() {
		distinct = append(distinct, distinctVersions(meta, u.Sector))
	}
	choice := make([]int, len(distinct))
	for {
		at := 0
		err := x.openMap(meta.CrashClone(func(fakedisk.Unflushed) int {
			at++
			return distinct[at-1][choice[at-1]]
		}))
		if err != nil {
			return err
		}
		if !advance(choice, distinct) {
			return nil
		}
	}
}

// advance goes on to the next choice; false: that was the last.
func advance(choice []int, of [][]int) bool {
	for i := range choice {
		if choice[i]++; choice[i] < len(of[i]) {
			return true
		}
		choice[i] = 0
	}
	return false
}

// distinctVersions gives one version of a sector for each content that it may have.
func distinctVersions(d *fakedisk.Disk, sector int64) (list []int) {
	var contents [][]byte
next:
	for i := range d.Versions(sector) {
		buf := make([]byte, sectorBytes)
		d.Version(sector, i, buf)
		for _, c := range contents {
			if bytes.Equal(c, buf) {
				continue next
			}
		}
		contents, list = append(contents, buf), append(list, i)
	}
	return list
}

// openMap adds the map that the metadata holds, unless it is known.
func (x *crashes) openMap(meta *fakedisk.Disk) error {
	store, _, err := metadata.Open(crashedMeta{meta, x.sim})
	if err != nil {
		return err
	}
	nr := x.sim.geo.Regions()
	regions := bitmap.New(nr, make([]bitmap.Page, bitmap.PagesFor(nr)))
	if err := store.Load(regions.Load); err != nil {
		return err
	}
	states := make([]bitmap.State, nr)
	for r := range states {
		states[r] = regions.State(uint64(r))
	}
	if !slices.ContainsFunc(x.maps, func(known []bitmap.State) bool { return slices.Equal(known, states) }) {
		x.maps = append(x.maps, states)
	}
	return nil
}

// crashedMeta is the metadata's device after a power loss that is only looked at.
type crashedMeta struct {
	*fakedisk.Disk
	sim *sim
}

// AllocBuffer is not the running store's.
func (m crashedMeta) AllocBuffer(size int) []byte { return m.sim.spare.get(size) }
