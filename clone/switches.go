package clone

import "sync/atomic"

// switches are settings of the core's, to be changed and looked at by any thread.
type switches struct {
	readThrough atomic.Bool   // what users read from the source is kept
	passdown    atomic.Bool   // the destination is told of discards
	spares      atomic.Uint32 // a Spare: before which zeros are written the destination is read (spare.go)
}

// SetReadThrough says whether what users read from the source is kept in the destination. At any
// time, from any thread.
func (s *switches) SetReadThrough(on bool) { s.readThrough.Store(on) }

// SetDiscardPassdown says whether the destination is told of discards, and may give up the space.
// At any time, from any thread.
func (s *switches) SetDiscardPassdown(on bool) { s.passdown.Store(on) }

// SetSpareZeros says what of that which is to become zero in the destination is read first, and
// left as it is where it is zero already: for a destination where zeros that are written take
// space, and zeros that are read stay. At any time, from any thread.
func (s *switches) SetSpareZeros(to Spare) { s.spares.Store(uint32(to)) }

func (s *switches) spare() Spare { return Spare(s.spares.Load()) }
