package engine

import (
	"errors"
	"fmt"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// deltaStep is the most that is added at a time: pages.
const deltaStep = 256

// markMemory is the memory of such marks. It belongs to the goroutine of memory, while that runs.
type markMemory struct {
	core   *clone.Core
	first  *sys.Mapping // there until the clone is complete
	mapped []*sys.Mapping
}

// take takes what is there from the start, for a core with a map of so many pages.
func (m *markMemory) take(pages uint64, want func()) (clone.DeltaConfig, error) {
	start := int(min(footprint.MarkPages, pages))
	var err error
	m.first, err = sys.Map(2*start*bitmap.PageBytes, true)
	if err != nil {
		return clone.DeltaConfig{}, fmt.Errorf("allocate: %w", err)
	}
	return clone.DeltaConfig{Pages: footprint.MostMarkPages, Start: start, Memory: sys.As[bitmap.Page](m.first), Want: want}, nil
}

// grow doubles the room for marks.
func (m *markMemory) grow() {
	now, most := m.core.DeltaSlots()
	for n := min(now, most-now); n > 0; n -= deltaStep {
		step := min(n, deltaStep)
		mapped, err := sys.Map(2*step*bitmap.PageBytes, true)
		if err != nil {
			return // a commit makes room
		}
		pages := sys.As[bitmap.Page](mapped)
		if !m.core.GrowDelta(pages[:step], pages[step:2*step]) {
			_ = mapped.Close()
			return
		}
		m.mapped = append(m.mapped, mapped)
	}
}

// shrink gives back all of it, if nobody has marks.
func (m *markMemory) shrink() {
	switch {
	case !m.surplus():
	case m.core.Complete() && m.core.ShrinkDelta():
		_ = m.free()
	case m.core.ShrinkDelta():
		_ = m.freeAdded()
	}
}

// surplus says whether there is anything to give back, now or soon.
func (m *markMemory) surplus() bool {
	return len(m.mapped) > 0 || m.first != nil && m.core != nil && m.core.Complete()
}

func (m *markMemory) freeAdded() (err error) {
	for _, mapped := range m.mapped {
		err = errors.Join(err, mapped.Close())
	}
	m.mapped = nil
	return err
}

func (m *markMemory) free() error {
	err := m.freeAdded()
	if m.first != nil {
		err = errors.Join(err, m.first.Close())
		m.first = nil
	}
	return err
}
