// Package control is how commands and daemons talk: the run folder with its locks and definitions, the control socket and its
// protocol, the status, the events, and the time limits of both sides.
//
//	dir.go       /run/ublk-clone: names, locks, definitions, logs
//	control.go   one request and one answer, each a line of JSON
//	asking.go    a request does not outlive whoever sent it
//	status.go    what a daemon tells of its clone; words.go puts it into words
//	events.go    kinds of events
//	limits.go    how long each side waits
//
// A new verb is a constant in control.go, with a line in Request.check.
//
// Threads: one goroutine for each connection, 32 at most, and one that accepts. Nothing here knows what a clone does.
package control
