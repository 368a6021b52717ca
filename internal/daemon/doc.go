// Package daemon is the process of one clone: how it is started and reports, the steps of its
// start, control requests while it serves, and how it ends.
//
//	spawn.go       the command's side of a start, and the daemon's
//	prepare.go     settings of the process
//	daemon.go      the steps, and requests while the clone is up
//	stop.go        how it ends: with its clone, or for the next daemon
//	life.go        what a clone can be, and what leads from one to the other; requests that rely on the phase
//	succession.go  taking over from another daemon
//	manager.go     systemd: status line and watchdog
//	log.go         the log, for which nobody waits
//	dry_run.go     the process of a dry run
//
// The clone itself is an Engine, an interface: this package knows neither metadata nor regions.
//
// Threads: one goroutine runs the steps, waits for signals and stop requests, and stops the clone.
// Each control connection has one, and so do the log, the status line and the watchdog. life.mu is
// held for reading while a status is made, which waits for nothing.
//
// Invariants: I13 (a daemon leaves only if it can).
package daemon
