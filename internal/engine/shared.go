package engine

import (
	"fmt"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/events"
	"github.com/ublk-clone/ublk-clone/internal/faults"
)

// shared is what the parts of a clone have in common: what it was started with, how it is to end, and where they tell what
// happens. Only the daemon's goroutine, which runs the steps and takes them back, changes it.
type shared struct {
	start    definition.Start // the metadata completes the size of regions
	ending   ending
	log      zerolog.Logger
	happened *events.Log
	warnings []string // for the user, of the start
}

func newShared(st definition.Start, log zerolog.Logger) *shared {
	return &shared{start: st, ending: ending{keep: st.Recover}, log: log, happened: events.NewLog(st.Definition.Name, log)}
}

// Events are what has happened to the clone.
func (s *shared) Events() *events.Log { return s.happened }

// Warn notes what the user should know, for the log and the status. During the start only.
func (s *shared) Warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.warnings = append(s.warnings, text)
	s.log.Warn().Msg(text)
}

// accepts says whether what only costs something is accepted: by force, or because the clone is there already, and so somebody
// has accepted it.
func (s *shared) accepts() bool { return s.start.Force || s.start.Recover }

// tolerance of others that use the devices: see blockdev.Tolerance.
func (s *shared) tolerance() blockdev.Tolerance {
	switch {
	case s.start.Replace, s.start.Force:
		return blockdev.TolerateEveryone
	case s.start.Recover:
		return blockdev.TolerateIdle
	}
	return blockdev.TolerateNobody
}

// ending says how the steps are to be taken back.
type ending struct {
	keep         bool // the block device stays, with its users waiting
	handedOver   bool // by `finish`: the layer leads to the destination
	forced       bool // by `del --force`: the device goes from under its users
	finished     bool // for good: what only an unfinished clone needs goes, too
	keepMetadata bool // all the same
}

// fault is faults.Finish of steps that every end of a daemon has.
func (e ending) fault(k int) error {
	if !e.finished {
		return nil
	}
	return faults.Finish(k)
}
