package control

import (
	"time"
)

// AskLimit is how long a daemon may take to answer what needs no waiting.
const AskLimit = 10 * time.Second

// ResumeLimit is for a repair of the metadata, which reads and writes all of them.
const ResumeLimit = 10 * time.Minute

// StopLimit is how long a daemon may take to stop: the last commit and the
// driver's own work.
const StopLimit = 60 * time.Second

// HolderPause is between two looks at who holds the device.
const HolderPause = 50 * time.Millisecond

// Limits of what the driver is asked: LookLimit for a command that only tells, DeadLimit to delete
// a device without server.
const (
	LookLimit = 2 * time.Second
	DeadLimit = 10 * time.Second
)

// RetakeLimit is how long it may take to have the destination back after a handover that has
// failed.
const RetakeLimit = FenceLimit

// LeaveLimit is how long that may take, if nobody says.
const LeaveLimit = 20 * time.Second

// FenceLimit is how long a recovery waits for the last traces of the dead daemon, if nobody says.
const FenceLimit = 60 * time.Second

// EndLimit is how long a daemon that has answered may take to let go of its name, and DyingLimit
// one that has hung up.
const (
	EndLimit   = 5 * time.Second
	DyingLimit = time.Second
)

// StartLimit is how long a daemon may take to bring its clone up: opening a
// slow source, reading the map, the driver's own limits.
const StartLimit = 90 * time.Second
