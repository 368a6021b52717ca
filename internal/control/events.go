package control

import (
	"time"
)

// The kinds of events.
const (
	EventStarted     = "started"
	EventSettings    = "settings"
	EventSource      = "source"       // it was opened again
	EventSourceError = "source-error" // the first of a burst
	EventDestError   = "dest-error"   // the same of the destination
	EventStalled     = "stalled"
	EventResumed     = "resumed" // after stalled
	EventMode        = "mode"
	EventHydrated    = "hydrated"
	EventDirect      = "direct"       // the layer leads more or less of the device straight to the destination
	EventFinishWaits = "finish-waits" // a clone that is to finish by itself cannot do so yet
	// EventRequestRefused: a request that has killed the daemon again and again is answered EIO.
	EventRequestRefused = "request-refused"
	EventFinished       = "finished"
)

// Event is something that has happened to a clone.
type Event struct {
	Seq   uint64    `json:"seq"` // from 1 without gaps; a daemon that recovers goes on where the dead one was
	Time  time.Time `json:"time"`
	Clone string    `json:"clone"`
	Kind  string    `json:"kind"`
	Text  string    `json:"text"`
}

// Limits of an events.Log.
const (
	KeptEvents = 64
	BurstGap   = time.Minute // without an error of a side ends a burst of them
	// MaxPolls is how many connections may wait for an event at a time, and PollLimit for how long:
	// the other connections are for commands that are not to wait for them.
	MaxPolls  = 8
	PollLimit = 5 * time.Second
)
