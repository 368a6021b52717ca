// Package preflight looks at all that a daemon will need to take a clone over, while the daemon
// that serves it still does. Nothing is locked, written or flushed (I13).
package preflight
