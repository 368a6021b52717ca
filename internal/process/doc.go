// Package process is the place of a daemon's process in the system: what it inherits of whoever started it, the mount
// namespace that it runs in, its threads and its heap. It knows nothing of what the process does.
//
// Invariants: I6 (the daemon sees the live maps of process 1) and I9 (memory is there before it is needed).
package process
