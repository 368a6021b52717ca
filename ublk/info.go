package ublk

import "fmt"

// AnyID lets the driver choose a device's number.
const AnyID = -1

// State of a device in the driver.
type State uint16

// States (UBLK_S_DEV_*).
const (
	StateDead     State = 0 // not started, or stopped
	StateLive     State = 1
	StateQuiesced State = 2 // without a server, requests wait
	StateFailIO   State = 3 // without a server, requests fail
)

func (s State) String() string {
	names := [...]string{"dead", "live", "quiesced", "fail-io"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint16(s))
}

// Info is a device as the driver has it.
type Info struct {
	ID        int
	Queues    int // the driver makes no more than there are CPUs
	Depth     int // of each queue
	MaxIO     int // bytes: the largest READ or WRITE
	State     State
	Features  Features
	Private   uint64 // ublksrv_flags: the server's own, kept by the driver
	ServerPID int    // as the server said, in its process namespace; it may be dead
}

// Served says that the device is live and that its server is a process that is not about to end. A
// device that is being started or recovered is not served yet.
func (i Info) Served() bool {
	return i.State == StateLive && processLives(i.ServerPID)
}

// ServerLives says that the process that is or was the device's server lives, whatever state the
// device is in.
func (i Info) ServerLives() bool { return processLives(i.ServerPID) }

// recoverable: the driver keeps the device, without a server, for the next one.
func (i Info) recoverable() bool {
	return i.State == StateQuiesced || i.State == StateFailIO
}

func (k *devInfo) decode() Info {
	return Info{
		ID:        int(int32(k.devID)),
		Queues:    int(k.nrHWQueues),
		Depth:     int(k.queueDepth),
		MaxIO:     int(k.maxIOBufBytes),
		State:     State(k.state),
		Features:  decodeFeatures(k.flags),
		Private:   k.ublksrvFlags,
		ServerPID: int(k.ublksrvPID),
	}
}

// CharPath is the node that the server of device id opens.
func CharPath(id int) string { return fmt.Sprintf("/dev/ublkc%d", id) }

// BlockPath is the block device id.
func BlockPath(id int) string { return fmt.Sprintf("/dev/ublkb%d", id) }
