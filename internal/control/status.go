package control

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// FailedIO counts the requests of users that one side has failed.
type FailedIO struct {
	Side     string    `json:"side"` // source, destination
	Requests int64     `json:"requests"`
	Offset   int64     `json:"last_offset"` // of the last of them, bytes
	Error    string    `json:"last_error"`
	Time     time.Time `json:"last_time"`
}

// Schema names the JSON that status, list and events print. It only ever
// gains fields.
const Schema = "ublk-clone/v1"

// The states of a clone, each with a reason.
const (
	StateStarting   = "starting"
	StateRecovering = "recovering" // a new daemon takes the device over
	StateHydrating  = "hydrating"
	StatePaused     = "paused"
	StateYielding   = "yielding"
	StateStalled    = "stalled"
	StateHydrated   = "hydrated"
	StateFinishing  = "finishing" // its destination is about to stand alone
	StateFinished   = "finished"  // it does; only `finish` itself tells
	StateFailed     = "failed"
	StateStopping   = "stopping"
	StateDead       = "dead"   // its daemon is; the device waits for the next one
	StateSilent     = "silent" // its daemon lives and does not answer
)

// Status is one clone. Sizes are bytes, rates bytes a second. In JSON the groups are one object.
type Status struct {
	Identity
	Condition
	Devices
	Progress

	Settings       definition.Settings `json:"settings"`        // in effect
	MetadataBlocks BlockCounts         `json:"metadata_blocks"` // of 4 KiB
	Warnings       []string            `json:"warnings,omitempty"`
	Failed         []FailedIO          `json:"failed,omitempty"` // requests of users, by side, since the daemon's start
	Queues         []QueueStatus       `json:"queues"`
	ZeroCopy       bool                `json:"zero_copy"`  // devices get the memory of users as it is
	LastEvent      uint64              `json:"last_event"` // sequence number; 0: none yet

	Holders []blockdev.Holder `json:"holders,omitempty"` // who has the device of a dead daemon open
}

// Identity is what a clone is called.
type Identity struct {
	Name   string `json:"name"`
	UUID   string `json:"uuid"`
	Device string `json:"device"`
	// Path is what users are to open: a link to the device-mapper device, where there is one, or to
	// the device.
	Path string `json:"path"`
	// The device-mapper device over it, where there is one: users are to have that open.
	DMName   string `json:"dm_name,omitempty"`
	DMDevice string `json:"dm_device,omitempty"`
	PID      int    `json:"pid"`
}

// Condition is how a clone is.
type Condition struct {
	State  string `json:"state"`
	Reason string `json:"reason"`           // why it is in this state, and whether data is at risk
	Action string `json:"action,omitempty"` // what to do about it
	Mode   string `json:"mode"`             // of the metadata: rw, ro, Fail
	// StalledBy is the side that a stalled clone waits for: source, destination.
	StalledBy string `json:"stalled_by,omitempty"`
	// FinishWaits is what a clone waits for that is to finish by itself.
	FinishWaits string `json:"finish_waits,omitempty"`
}

// Devices are what a clone consists of.
type Devices struct {
	Source     string `json:"source"`
	Dest       string `json:"dest"`
	Metadata   string `json:"metadata"`
	Size       int64  `json:"size"`
	RegionSize int64  `json:"region_size"`
}

// Progress is how far hydration is.
type Progress struct {
	Bytes      ByteCounts `json:"bytes"`
	Regions    Regions    `json:"regions"`
	Rate       int64      `json:"rate"`
	LastRate   int64      `json:"last_rate"`   // when it was last copying
	ETA        *int64     `json:"eta_seconds"` // null where it is not known
	BadRanges  []BadRange `json:"bad_ranges"`
	ActiveSecs int64      `json:"active_seconds"`
	Starts     int64      `json:"starts"`
}

// Serves says whether there is a daemon that serves the clone: no other knows its figures.
func (s *Status) Serves() bool {
	return !slices.Contains([]string{StateStarting, StateRecovering, StateFinishing, StateStopping, StateDead, StateSilent}, s.State)
}

// Finish makes it the status of a clone whose destination stands alone.
func (s *Status) Finish(def *definition.Definition) {
	s.Name, s.DMName, s.DMDevice = def.Name, def.DM, def.LayerPath()
	s.Devices = Devices{Source: def.Source, Dest: def.Dest, Metadata: def.Metadata, Size: def.Size, RegionSize: def.RegionSize}
	if s.BadRanges == nil {
		s.BadRanges, s.Queues = []BadRange{}, []QueueStatus{}
	}
	s.State, s.Reason, s.Action, s.FinishWaits = StateFinished, def.FinishedText()+".", "", ""
}

// UserPath is what users are to open.
func (s *Status) UserPath() string { return cmp.Or(s.Path, s.DMDevice, s.Device) }

// Unserved is an error with exit code 13 unless the clone is served.
func (s *Status) Unserved() error {
	if s.Serves() {
		return nil
	}
	return &exit.Error{Code: exit.NoAnswer, Doing: "ask the daemon of", Object: s.Name, Cause: fmt.Errorf("%s: %s", s.State, s.Reason), Next: s.Action}
}

// QueueStatus is one queue of the block device.
type QueueStatus struct {
	Requests int64 `json:"requests"` // since the daemon's start
}

// ByteCounts says where the bytes of the device are, and how they got there.
type ByteCounts struct {
	Hydrated  int64 `json:"hydrated"`  // in the destination: written there or known to be zero
	Copied    int64 `json:"copied"`    // by copies from the source
	Written   int64 `json:"written"`   // by writes of whole regions
	Discarded int64 `json:"discarded"` // by discards, zeroing and holes
	Remaining int64 `json:"remaining"`
	// SourceRead is what was read from the source since the daemon's start, for users and copies.
	SourceRead int64 `json:"source_read"`
	Direct     int64 `json:"direct"` // led straight to the destination by the layer
}

// Regions are dm-clone's figures.
type Regions struct {
	Hydrated  uint64 `json:"hydrated"` // hydrated and zero; below Total until all of it is durable
	Total     uint64 `json:"total"`
	Hydrating uint64 `json:"hydrating"` // copies in flight
}

type BlockCounts struct {
	Used  int64 `json:"used"`
	Total int64 `json:"total"`
}

// BadRange could not be copied.
type BadRange struct {
	Offset   int64 `json:"offset"`
	Length   int64 `json:"length"`
	Attempts int   `json:"attempts"`
}

// done is the share that is in the destination, 0 to 1. It is 1 only when
// nothing remains.
func (s *Status) done() float64 {
	if s.Size == 0 {
		return 0
	}
	return float64(s.Bytes.Hydrated) / float64(s.Size)
}
