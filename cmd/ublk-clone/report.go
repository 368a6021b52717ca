package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// schema names the JSON that status, list and events print. It only ever
// gains fields.
const schema = "ublk-clone/v1"

// report is what `-o json` prints.
type report struct {
	Schema string        `json:"schema"`
	Clones []cloneStatus `json:"clones"`
}

// The states of a clone, each with a reason.
const (
	stateStarting   = "starting"
	stateRecovering = "recovering" // a new daemon takes the device over
	stateHydrating  = "hydrating"
	statePaused     = "paused"
	stateYielding   = "yielding"
	stateStalled    = "stalled"
	stateHydrated   = "hydrated"
	stateFinishing  = "finishing" // its destination is about to stand alone
	stateFinished   = "finished"  // it does; only `finish` itself tells
	stateFailed     = "failed"
	stateStopping   = "stopping"
	stateDead       = "dead"   // its daemon is; the device waits for the next one
	stateSilent     = "silent" // its daemon lives and does not answer
)

// cloneStatus is one clone. Sizes are bytes, rates bytes a second.
type cloneStatus struct {
	Name   string `json:"name"`
	UUID   string `json:"uuid"`
	Device string `json:"device"`
	// The device-mapper device over it, where there is one: users are to have that open.
	DMName   string `json:"dm_name,omitempty"`
	DMDevice string `json:"dm_device,omitempty"`
	PID      int    `json:"pid"`

	State  string `json:"state"`
	Reason string `json:"reason"`           // why it is in this state, and whether data is at risk
	Action string `json:"action,omitempty"` // what to do about it
	Mode   string `json:"mode"`             // of the metadata: rw, ro, Fail
	// StalledBy is the side that a stalled clone waits for: source, destination.
	StalledBy string `json:"stalled_by,omitempty"`

	Source     string `json:"source"`
	Dest       string `json:"dest"`
	Metadata   string `json:"metadata"`
	Size       int64  `json:"size"`
	RegionSize int64  `json:"region_size"`

	Bytes      byteCounts `json:"bytes"`
	Regions    regions    `json:"regions"`
	Rate       int64      `json:"rate"`
	LastRate   int64      `json:"last_rate"`   // when it was last copying
	ETA        *int64     `json:"eta_seconds"` // null where it is not known
	BadRanges  []badRange `json:"bad_ranges"`
	ActiveSecs int64      `json:"active_seconds"`
	Starts     int64      `json:"starts"`

	Settings       settings      `json:"settings"`        // in effect
	MetadataBlocks blockCounts   `json:"metadata_blocks"` // of 4 KiB
	Warnings       []string      `json:"warnings,omitempty"`
	Failed         []failedIO    `json:"failed,omitempty"` // requests of users, by side, since the daemon's start
	Queues         []queueStatus `json:"queues"`
	ZeroCopy       bool          `json:"zero_copy"`  // devices get the memory of users as it is
	LastEvent      uint64        `json:"last_event"` // sequence number; 0: none yet

	Holders []blockdev.Holder `json:"holders,omitempty"` // who has the device of a dead daemon open
}

// serves says whether there is a daemon that serves the clone: no other knows its figures.
func (s *cloneStatus) serves() bool {
	return !slices.Contains([]string{stateStarting, stateRecovering, stateFinishing, stateStopping, stateDead, stateSilent}, s.State)
}

// unserved is an error with exit code 13 unless the clone is served.
func (s *cloneStatus) unserved() error {
	if s.serves() {
		return nil
	}
	return &exit.Error{Code: exit.NoAnswer, Doing: "ask the daemon of", Object: s.Name, Cause: fmt.Errorf("%s: %s", s.State, s.Reason), Next: s.Action}
}

// queueStatus is one queue of the block device.
type queueStatus struct {
	Requests int64 `json:"requests"` // since the daemon's start
}

// byteCounts says where the bytes of the device are, and how they got there.
type byteCounts struct {
	Hydrated  int64 `json:"hydrated"`  // in the destination: written there or known to be zero
	Copied    int64 `json:"copied"`    // by copies from the source
	Written   int64 `json:"written"`   // by writes of whole regions
	Discarded int64 `json:"discarded"` // by discards, zeroing and holes
	Remaining int64 `json:"remaining"`
	// SourceRead is what was read from the source since the daemon's start, for users and copies.
	SourceRead int64 `json:"source_read"`
}

// regions are dm-clone's figures.
type regions struct {
	Hydrated  uint64 `json:"hydrated"` // hydrated and zero; below Total until all of it is durable
	Total     uint64 `json:"total"`
	Hydrating uint64 `json:"hydrating"` // copies in flight
}

type blockCounts struct {
	Used  int64 `json:"used"`
	Total int64 `json:"total"`
}

// badRange could not be copied.
type badRange struct {
	Offset   int64 `json:"offset"`
	Length   int64 `json:"length"`
	Attempts int   `json:"attempts"`
}

// done is the share that is in the destination, 0 to 1. It is 1 only when
// nothing remains.
func (s *cloneStatus) done() float64 {
	if s.Size == 0 {
		return 0
	}
	return float64(s.Bytes.Hydrated) / float64(s.Size)
}

// rateSpan is the time over which the rate is taken: long enough that a figure
// can be read, short enough that a stop shows.
const rateSpan = 5 * time.Second

// rateMeter turns totals of hydrated bytes into a rate. It keeps a few samples
// of the last rateSpan.
type rateMeter struct {
	samples []rateSample
	last    int64 // bytes a second, the last that was not zero
}

type rateSample struct {
	at    time.Time
	bytes int64
}

// add notes the total at a time and returns the rate over the last rateSpan,
// bytes a second.
func (m *rateMeter) add(at time.Time, total int64) int64 {
	m.samples = append(m.samples, rateSample{at, total})
	for len(m.samples) > 2 && at.Sub(m.samples[1].at) >= rateSpan {
		m.samples = m.samples[1:]
	}
	first := m.samples[0]
	seconds := at.Sub(first.at).Seconds()
	if seconds <= 0 {
		return 0
	}
	rate := int64(float64(total-first.bytes) / seconds)
	if rate > 0 {
		m.last = rate
	}
	return rate
}

// eta is the time left in seconds, nil where nobody can know.
func eta(state string, remaining, rate int64) *int64 {
	if state == stateHydrated {
		return new(int64)
	}
	moving := state == stateHydrating || state == stateYielding
	if !moving || rate <= 0 {
		return nil
	}
	seconds := (remaining + rate - 1) / rate
	return &seconds
}
