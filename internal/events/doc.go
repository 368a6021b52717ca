// Package events keeps the last events of a clone, and turns changes of its condition into events.
//
//	Log       the last 64 events, numbered without gaps; the live map keeps the number when the daemon dies
//	Watcher   compares the condition of the clone with the last one seen, every second and when it is kicked
//	Failures  counts the failed requests of users, by side
//
// Any thread may add an event or a failure: each takes a leaf lock for a moment and never waits.
// The watcher is a goroutine of its own and may block. A new kind of event is a constant in
// internal/control/events.go, and is named in the help of `events` and in docs/operations.md.
package events
