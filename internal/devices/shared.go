package devices

import (
	"fmt"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/events"
	"github.com/ublk-clone/ublk-clone/internal/faults"
)

// Shared is what the parts of a clone have in common: what it was started with, how it is to end,
// and where they tell what happens. Only the daemon's goroutine, which runs the steps and takes
// them back, changes it.
type Shared struct {
	Wanted   definition.Start // the metadata completes the size of regions
	Ending   Ending
	Log      zerolog.Logger
	Happened *events.Log
	Warned   []string // what the user should know of the start
}

// NewShared is of a clone that is started.
func NewShared(st definition.Start, log zerolog.Logger) *Shared {
	return &Shared{Wanted: st, Ending: Ending{Keep: st.Recover}, Log: log, Happened: events.NewLog(st.Definition.Name, log)}
}

// Events are what has happened to the clone.
func (s *Shared) Events() *events.Log { return s.Happened }

// Warn notes what the user should know, for the log and the status. During the start only.
func (s *Shared) Warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.Warned = append(s.Warned, text)
	s.Log.Warn().Msg(text)
}

// accepts says whether what only costs something is accepted: by force, or because the clone is
// there already, and so somebody has accepted it.
func (s *Shared) accepts() bool { return s.Wanted.Force || s.Wanted.Recover }

// tolerance of others that use the devices: see blockdev.Tolerance.
func (s *Shared) tolerance() blockdev.Tolerance {
	switch {
	case s.Wanted.Replace, s.Wanted.Force:
		return blockdev.TolerateEveryone
	case s.Wanted.Recover:
		return blockdev.TolerateIdle
	}
	return blockdev.TolerateNobody
}

// Ending says how the steps are to be taken back.
type Ending struct {
	Keep         bool // the block device stays, with its users waiting
	Plain        bool // and nothing that the previous release does not know
	HandedOver   bool // by `finish`: the layer leads to the destination
	Forced       bool // by `del --force`: the device goes from under its users
	Finished     bool // for good: what only an unfinished clone needs goes, too
	KeepMetadata bool // all the same
}

// Fault is faults.Finish of steps that every end of a daemon has.
func (e Ending) Fault(k int) error {
	if !e.Finished {
		return nil
	}
	return faults.Finish(k)
}
