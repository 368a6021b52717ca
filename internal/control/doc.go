// Package control is how commands and daemons talk: the run directory with its locks and
// definitions, the control socket and its protocol, the status, the events, and the time limits of
// both sides.
//
//	dir.go       /run/ublk-clone: names, locks, definitions, logs
//	control.go   one request and one answer, each a line of JSON
//	asking.go    a request does not outlive whoever sent it
//	status.go    what a daemon reports about its clone; words.go puts it into words
//	dry_run.go   what a dry run reports
//	events.go    kinds of events; follow.go reads them for a command
//	limits.go    how long each side waits
//
// A new verb is a constant in control.go, with a line in Request.check, and in Request.changes or
// Request.ends if it does that. Package daemon carries it out.
//
// Threads: one goroutine accepts, one serves each connection, 32 at most, and one for each request
// watches whether its client is still there. Nothing here knows what a clone does.
package control
